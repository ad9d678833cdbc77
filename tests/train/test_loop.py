import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import train
from genlib.train import _log
from tests.train import toy
from tests.train.toy import assert_identical

TX = optax.adam(1e-2)
STEP = jax.jit(train.make_step(toy.noisy_loss_fn, TX), donate_argnums=0)


def start():
    return train.init(jax.random.key(0), toy.params(), TX)


def fit(batches: Any = toy.batch, step: Any = STEP, **settings: Any) -> train.State:
    return train.fit(step, start(), batches, **{"progress": False, **settings})


class Stream:
    """An iterator whose position is not the step."""

    def __init__(self, stop=1000):
        self.index, self.stop = 0, stop

    def __next__(self):
        if self.index == self.stop:
            raise StopIteration
        self.index += 1
        return toy.batch(self.index * 7)

    def get_state(self):
        return {"at": self.index}

    def set_state(self, state):
        self.index = state["at"]


PACE = ("step_time", "examples_per_second")


class Tape:
    """A writer that remembers, and keeps apart what differs from run to run."""

    def __init__(self):
        self.lines, self.pace, self.rewound = [], [], []

    def write(self, step, values):
        values = {k: float(v) for k, v in values.items()}
        self.pace.append((step, {k: values.pop(k) for k in PACE if k in values}))
        self.lines.append((step, values))

    def rewind(self, step):
        self.rewound.append(step)


@pytest.fixture(scope="module")
def by_hand():
    """Twelve steps without the loop: the states, and the metrics, after each."""
    states, logs = [start()], [{}]
    step = jax.jit(train.make_step(toy.noisy_loss_fn, TX))
    for index in range(12):
        state, metrics = step(states[-1], toy.batch(index))
        states.append(state)
        logs.append({name: float(value) for name, value in metrics.items()})
    return states, logs


def test_loop_is_the_steps_and_logs_every_few(by_hand):
    states, logs = by_hand
    tape = Tape()
    assert_identical(fit(steps=12, writer=tape, log_every=5), states[12])
    assert tape.lines == [(k, logs[k]) for k in (5, 10, 12)]
    assert tape.rewound == [0]


@pytest.mark.parametrize("batches", [toy.batch, Stream])
def test_ten_steps_are_five_and_five(tmp_path, batches):
    make = (lambda: batches) if batches is toy.batch else batches
    whole = fit(make(), steps=10)
    with train.Checkpointer(tmp_path) as checkpointer:
        fit(make(), steps=5, checkpointer=checkpointer)
    with train.Checkpointer(tmp_path) as checkpointer:
        resumed = fit(make(), steps=10, checkpointer=checkpointer)
        assert checkpointer.latest == 10
    assert_identical(resumed, whole)


def test_a_finished_run_does_nothing(tmp_path, by_hand):
    def refuse(*_):
        raise AssertionError

    with train.Checkpointer(tmp_path) as checkpointer:
        fit(steps=4, checkpointer=checkpointer)
        again = fit(refuse, step=refuse, steps=4, checkpointer=checkpointer)
    assert_identical(again, by_hand[0][4])


def test_checkpoints_are_regular_and_final(tmp_path):
    with train.Checkpointer(tmp_path, keep=9) as checkpointer:
        fit(steps=8, checkpointer=checkpointer, save_every=3)
    assert {x.name for x in tmp_path.iterdir()} == {"3", "6", "8"}


def test_interrupted_by_the_data_it_saves(tmp_path, by_hand):
    def batches(index):
        if index == 7:
            raise KeyboardInterrupt
        return toy.batch(index)

    tape = Tape()
    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(KeyboardInterrupt):
            fit(batches, steps=12, checkpointer=checkpointer, writer=tape, log_every=5)
        assert checkpointer.latest == 7
        assert [k for k, _ in tape.lines] == [5]
        assert_identical(fit(steps=12, checkpointer=checkpointer), by_hand[0][12])


def test_metrics_are_read_one_interval_late(monkeypatch):
    """Numbers are fetched at log steps only, and are those of the log step before."""
    dispatched, reads = [], []
    get = jax.device_get

    def step(state, batch):
        dispatched.append(1)
        return STEP(state, batch)

    def read(tree):
        if isinstance(tree, tuple):
            reads.append((len(dispatched), tree[0]))
        return get(tree)

    monkeypatch.setattr(jax, "device_get", read)
    fit(step=step, steps=11, writer=Tape(), log_every=3)
    assert reads == [(6, 3), (9, 6), (11, 9), (11, 11)]


def test_the_queue_of_the_device_is_bounded(monkeypatch):
    """Before a step is dispatched the loop waits for one that is four behind."""
    order = []

    def step(state, batch):
        order.append(f"step {batch}")
        return state, {"index": batch}

    wait = lambda metrics: order.append(f"wait {metrics['index']}")
    monkeypatch.setattr(jax, "block_until_ready", wait)
    fit(lambda index: np.int32(index), step=step, steps=6)
    first = [f"step {index}" for index in range(4)]
    assert order == [*first, "wait 0", "step 4", "wait 1", "step 5"]


def test_skipped_steps_are_counted_and_end_the_run():
    def batches(index):
        bad = index in (2, 3) or index >= 6
        batch = toy.batch(index)
        return {**batch, "y": batch["y"] * np.float32(np.nan)} if bad else batch

    tape = Tape()
    with pytest.raises(FloatingPointError, match="not finite in 3 steps in a row"):
        fit(batches, steps=50, writer=tape, log_every=4, max_skipped=3)
    assert [(k, v["skipped"]) for k, v in tape.lines] == [(4, 2), (8, 2), (12, 4)]
    fit(batches, steps=9, max_skipped=4)
    with pytest.raises(FloatingPointError):
        fit(batches, steps=10, max_skipped=4)
    fit(batches, steps=12, max_skipped=None)


def test_evaluation_shares_the_line_of_its_step():
    tape, seen = Tape(), []

    def eval_fn(state):
        seen.append(int(state.step))
        return {"norm": optax.tree.norm(state.ema), "seen": len(seen)}

    fit(steps=9, writer=tape, log_every=4, eval_fn=eval_fn, eval_every=2)
    assert seen == [2, 4, 6, 8, 9]
    names = {step: set(values) for step, values in tape.lines}
    logged = {"loss", "weight", "grad_norm", "skipped", "abs"}
    assert names[2] == names[6] == {"norm", "seen"}
    assert names[4] == names[8] == names[9] == {"norm", "seen"} | logged


def test_on_a_mesh_it_is_the_same_run(by_hand):
    mesh = train.make_mesh(8, devices=jax.devices("cpu"))
    step = train.jit_step(train.make_step(toy.noisy_loss_fn, TX), mesh)
    state = train.replicate(start(), mesh)
    with jax.transfer_guard_host_to_device("disallow"):
        state = train.fit(step, state, toy.batch, steps=5, mesh=mesh, progress=False)
    toy.assert_close(state.params, by_hand[0][5].params)


def test_progress_shows_the_loss(capsys, by_hand):
    fit(steps=12, log_every=1, progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert f"loss={by_hand[1][12]['loss']:.4g}" in shown


def test_lines_on_disk_are_those_of_one_run(tmp_path):
    def lines(folder):
        text = (folder / "metrics.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        drop = ("time", *PACE)
        return [{k: v for k, v in row.items() if k not in drop} for row in rows]

    def stop(index):
        if index == 8:
            raise ValueError("the data broke")
        return toy.batch(index)

    settings = dict(steps=12, log_every=2, save_every=4)
    fit(writer=train.Metrics(tmp_path / "one"), **settings)
    with train.Checkpointer(tmp_path / "two" / "checkpoints") as checkpointer:
        settings = dict(settings, checkpointer=checkpointer)
        with pytest.raises(ValueError, match="the data broke"):
            fit(stop, writer=train.Metrics(tmp_path / "two"), **settings)
        fit(writer=train.Metrics(tmp_path / "two"), **settings)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")


def test_batches_that_end_early():
    with pytest.raises(ValueError, match="must last for 9 steps; they ended after 4"):
        fit(Stream(stop=4), steps=9)


@pytest.mark.parametrize("batches", [[], iter([]), None])
def test_batches_of_another_kind(batches):
    with pytest.raises(ValueError, match="batches must be a function of the step"):
        fit(batches, steps=1)


@pytest.mark.parametrize(
    "name", ["steps", "log_every", "save_every", "eval_every", "max_skipped"]
)
def test_counts_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; it is 0"):
        fit(**{"steps": 1, name: 0})


def test_jnp_batches_are_taken_as_they_are(by_hand):
    batches = lambda index: jax.tree.map(jnp.asarray, toy.batch(index))
    assert_identical(fit(batches, steps=3), by_hand[0][3])


def test_pace_is_that_of_the_steps_alone(monkeypatch, tmp_path):
    """A clock that only waiting moves: 1 s a step, 100 s an evaluation or a save."""
    clock = [0.0]

    def take(seconds):
        clock[0] += seconds

    def save(*_, **__):
        take(100)

    monkeypatch.setattr(_log, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(jax, "block_until_ready", lambda x: take(1) or x)
    monkeypatch.setattr(train.Checkpointer, "save", save)
    tape, settings = Tape(), dict(log_every=4, eval_every=6, save_every=5)
    with train.Checkpointer(tmp_path) as checkpointer:
        settings |= dict(eval_fn=lambda _: take(100) or {}, checkpointer=checkpointer)
        fit(steps=16, writer=tape, **settings)
    one = {"step_time": 1.0, "examples_per_second": 32.0}
    assert tape.pace == [(4, {}), (8, one), (12, one), (16, one)]


def test_pace_of_batches_without_rows():
    tape = Tape()
    step = lambda state, batch: (state, {"index": batch})
    fit(lambda index: np.int32(index), step=step, steps=9, log_every=3, writer=tape)
    assert [set(pace) for _, pace in tape.pace] == [set(), {"step_time"}, {"step_time"}]


def test_steady_state_waits_for_nothing_and_compiles_nothing(by_hand):
    """No transfer but explicit ones, and the same program from first to last."""
    batches = lambda index: jax.device_put(toy.batch(index))
    state, tape = start(), Tape()
    with jax.transfer_guard("disallow"), toy.compilations() as compiled:
        settings = dict(steps=12, writer=tape, log_every=3, progress=False)
        state = train.fit(STEP, state, batches, **settings)
    assert_identical(state, by_hand[0][12])
    assert len(tape.lines) == 4
    assert not compiled


def test_the_best_checkpoint_is_that_of_its_own_line(tmp_path):
    """An evaluation counts for the checkpoint of its step, and for no other."""
    scores = {3: 5.0, 6: 1.0, 9: 7.0, 12: 2.0}
    eval_fn = lambda state: {"fid": scores[int(state.step)]}
    with train.Checkpointer(tmp_path, keep=1, best="fid") as checkpointer:
        settings = dict(eval_fn=eval_fn, eval_every=3, save_every=2)
        fit(steps=12, checkpointer=checkpointer, **settings)
        assert checkpointer.best == 6
    assert {x.name for x in tmp_path.iterdir()} == {"6", "12"}


def test_the_best_by_what_the_step_says(tmp_path, by_hand):
    losses = {k: by_hand[1][k]["loss"] for k in (4, 8, 12)}
    with train.Checkpointer(tmp_path, best="loss") as checkpointer:
        fit(steps=12, checkpointer=checkpointer, save_every=2, log_every=4)
        assert checkpointer.best == min(losses, key=lambda k: losses[k])


def test_a_best_that_nothing_measures(tmp_path):
    refused = pytest.raises(ValueError, match=r"metric of the step .*'loss'.* 'fid'")
    with train.Checkpointer(tmp_path, best="fid") as checkpointer, refused:
        fit(steps=12, checkpointer=checkpointer, log_every=4)


def test_a_profile_of_some_steps(tmp_path, monkeypatch):
    events = []
    start_trace = lambda directory: events.append(("start", directory))
    stop_trace = lambda: events.append("stop")
    monkeypatch.setattr(jax.profiler, "start_trace", start_trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)

    def step(state, batch):
        events.append(int(state.step) + 1)
        return STEP(state, batch)

    fit(step=step, steps=5, profile=train.Profile("there", 2, 3))
    assert events == [1, ("start", "there"), 2, 3, "stop", 4, 5]
    events.clear()
    with train.Checkpointer(tmp_path) as checkpointer:
        fit(steps=2, checkpointer=checkpointer)
        settings = dict(steps=4, checkpointer=checkpointer, step=step)
        fit(profile=train.Profile("there", 1, 9), **settings)
    assert events == [("start", "there"), 3, 4, "stop"]
    for first, last in [(0, 3), (3, 2)]:
        with pytest.raises(ValueError, match="profile must have 1 <= first <= last"):
            fit(steps=1, profile=train.Profile("there", first, last))


def test_a_profile_is_written(tmp_path):
    fit(steps=2, profile=train.Profile(str(tmp_path), 1, 1))
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_learning_rate_is_that_of_the_optimizer_step(tmp_path, accumulate):
    """schedule(0) for the first step; resuming and microbatches change nothing."""
    rates = jnp.array([1.0, 0.1, 0.01, 0.001])
    tx = optax.sgd(lambda count: rates[count])
    loss_fn = lambda params, batch, key: (params * batch.sum(), batch.size, {})
    make = train.make_step(loss_fn, tx, accumulate=accumulate, ema=None)
    step, seen = jax.jit(make), []
    batches = lambda index: np.ones(4, np.float32)
    for steps in (1, 3, 4):
        state = train.init(jax.random.key(0), jnp.zeros(()), tx, ema=False)
        with train.Checkpointer(tmp_path) as checkpointer:
            settings = dict(steps=steps, checkpointer=checkpointer, progress=False)
            state = train.fit(step, state, batches, **settings)
        seen.append(-float(state.params))
    np.testing.assert_allclose(seen, [1.0, 1.11, 1.111], rtol=1e-6)
