"""SIGTERM and Ctrl-C: the step in flight is finished, saved, and nothing is lost."""

import json
import os
import signal

import jax
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from genlib import train
from genlib.train._format import location, newest, together
from genlib.train._leaves import WrongModelError
from genlib.train._preemption import Interrupts
from tests.train import toy
from tests.train.test_loop import Stream
from tests.train.toy import assert_identical

TX = optax.adam(1e-2)
STEP = jax.jit(train.make_step(toy.noisy_loss_fn, TX), donate_argnums=0)
STOPS = {signal.SIGTERM: train.Preempted, signal.SIGINT: KeyboardInterrupt}


def start():
    return train.init(jax.random.key(0), toy.params(), TX)


def fit(batches=toy.batch, step=STEP, **settings):
    return train.fit(step, start(), batches, **{"progress": False, **settings})


def kill(number):
    os.kill(os.getpid(), number)


def at_call(count, number, function=STEP):
    """Let a function send a signal to this process when it is called."""
    calls = []

    def call(*arguments):
        calls.append(1)
        if len(calls) == count:
            kill(number)
        return function(*arguments)

    return call


@pytest.fixture(autouse=True)
def handlers():
    """Let SIGINT raise, also where the tests run in a background that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    known = [signal.getsignal(number) for number in STOPS]
    yield
    assert [signal.getsignal(number) for number in STOPS] == known
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole():
    return fit(steps=12)


@pytest.mark.parametrize("number", STOPS)
def test_within_a_step_it_finishes_and_saves(tmp_path, whole, number):
    """A signal while the donated state is in the step's hands must not lose it."""
    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(STOPS[number]):
            fit(Stream(), at_call(4, number), steps=12, checkpointer=checkpointer)
        assert checkpointer.latest == 4
        assert checkpointer.restore(start()).position == {"at": 4}


@pytest.mark.parametrize("number", STOPS)
def test_while_data_is_drawn_it_stops_at_once(tmp_path, whole, number):
    batches = at_call(8, number, toy.batch)
    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(STOPS[number]):
            fit(batches, steps=12, checkpointer=checkpointer)
        assert checkpointer.latest == 7
        assert_identical(fit(steps=12, checkpointer=checkpointer), whole)


def test_no_line_is_lost_or_doubled(tmp_path):
    """Also that of the step, every fourth being logged, in which the signal came."""
    settings = dict(steps=12, log_every=4, save_every=6)
    one, two = tmp_path / "one", tmp_path / "two"
    fit(writer=train.Metrics(one), **settings)
    for count in (4, 2, 5, None):  # after the steps 4, 6, 11: logged, saved, neither
        step = STEP if count is None else at_call(count, signal.SIGTERM)
        with train.Checkpointer(two / "checkpoints") as checkpointer:
            given = dict(writer=train.Metrics(two), checkpointer=checkpointer)
            if count is None:
                fit(step=step, **given, **settings)
            else:
                with pytest.raises(train.Preempted):
                    fit(step=step, **given, **settings)

    def lines(folder):
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]

    assert lines(one) == lines(two)


def test_during_an_evaluation_it_does_not_wait_for_its_end(tmp_path):
    ended = []

    def eval_fn(state):
        kill(signal.SIGTERM)
        ended.append(1)
        return {}

    with train.Checkpointer(tmp_path) as checkpointer:
        settings = dict(checkpointer=checkpointer, eval_fn=eval_fn, eval_every=3)
        with pytest.raises(train.Preempted):
            fit(steps=12, **settings)
        assert checkpointer.latest == 3
    assert not ended


def test_during_a_save_the_save_is_finished(tmp_path, monkeypatch):
    save = train.Checkpointer.save
    during = at_call(1, signal.SIGTERM, lambda *a, **k: save(*a, **k))
    monkeypatch.setattr(train.Checkpointer, "save", lambda *a, metrics: during(*a))
    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(train.Preempted):
            fit(steps=12, checkpointer=checkpointer, save_every=5)
        assert checkpointer.latest == 5


def test_a_second_interrupt_within_a_step_acts_at_once(tmp_path):
    """The state is gone then: nothing is saved."""

    def step(state, batch):
        kill(signal.SIGINT)
        kill(signal.SIGINT)
        raise AssertionError

    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(KeyboardInterrupt):
            fit(step=step, steps=2, checkpointer=checkpointer)
        assert checkpointer.latest is None


def test_handlers_of_the_caller(tmp_path):
    """What is ignored stays so; SIGTERM is taken only where there is a checkpointer."""
    seen, heard = [], []

    def step(state, batch):
        seen.append([signal.getsignal(number) for number in STOPS])
        return STEP(state, batch)

    fit(step=step, steps=1)
    assert seen[0][0] == signal.SIG_DFL
    own = lambda number, frame: heard.append(number)
    signal.signal(signal.SIGINT, own)
    fit(step=at_call(2, signal.SIGINT, step), steps=3)
    assert heard == [signal.SIGINT]
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    try:
        with train.Checkpointer(tmp_path) as checkpointer:
            fit(step=at_call(1, signal.SIGTERM), steps=3, checkpointer=checkpointer)
            assert checkpointer.latest == 3
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def service(monkeypatch):
    """Two processes, as far as signals are concerned, that stop after step 7."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    point = lambda step: asked.append(step) or step == 7
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", point)
    return asked


def test_several_processes_stop_after_the_same_step(service):
    terminated = []
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.append(1))
    for first in (None, signal.SIGINT):
        with Interrupts(4, sigterm=True) as interrupts:
            assert not interrupts.orderly
            with interrupts.held():
                if first is not None:
                    kill(first)
            interrupts.check(5)
            interrupts.check(6)
            stop = train.Preempted if first is None else KeyboardInterrupt
            with pytest.raises(stop):
                interrupts.check(7)
            assert interrupts.orderly
    signal.signal(signal.SIGTERM, before)
    assert service == [4, 5, 6, 7] * 2
    assert terminated == [1]  # Ctrl-C was passed on to the service


def test_several_processes_a_second_interrupt_acts_at_once(service):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    with Interrupts(0, sigterm=True) as interrupts:
        kill(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGINT)
        assert not interrupts.orderly
    signal.signal(signal.SIGTERM, before)


def test_several_processes_without_the_service(service, monkeypatch):
    def off(step):
        raise RuntimeError

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", off)
    with Interrupts(0, sigterm=True) as interrupts:
        interrupts.check(7)
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGINT)
        assert not interrupts.orderly


def test_a_checkpoint_is_good_only_if_all_processes_can_read_it(service, monkeypatch):
    """Process 1 finds step 9 damaged, and a file of process 0 is missing in step 6."""
    verdicts = {9: [False, True], 6: [True, False], 3: [False, False]}
    current, told = [], []

    def gather(own):
        failed = np.array(verdicts[current[-1]])
        assert own[0] == failed[0]
        return np.stack([failed, np.zeros(2, bool)], 1)

    def read(path):
        current.append(int(path.name))
        if current[-1] == 6:
            return together(lambda: (path / "nothing").read_text())
        return together(lambda: f"step {path.name}")

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    tell = lambda step: told.append(int(step)) or step
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", tell)
    directory = location("/nowhere")
    with pytest.warns(UserWarning, match="step 3 is used") as caught:
        assert newest(directory, [9, 6, 3], read) == ("step 3", [9, 6])
    assert "processes [1] cannot read it" in str(caught[0].message)
    assert "FileNotFoundError" in str(caught[1].message)
    assert told == [9, 6, 3]
    wrong = np.array([[False, False], [True, True]])
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda own: wrong)
    with pytest.raises(WrongModelError, match=r"processes \[1\] cannot read it"):
        newest(directory, [9], lambda path: together(lambda: 0))
