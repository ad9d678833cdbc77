import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genlib import train
from tests.train import toy
from tests.train.toy import assert_close, assert_identical

POISON = {"nan": np.nan, "inf": np.inf, "overflow": 1e30}


def run(step, state, count=5):
    step = jax.jit(step)
    for index in range(count):
        state, metrics = step(state, toy.batch(index))
    return state, metrics


def quadratic(params, batch, key):
    """(params - x)^2: with sgd(0.5) one step lands on x."""
    return jnp.square(params - batch).sum(), batch.size, {}


def test_step_equals_a_hand_written_loop(key):
    tx = optax.adamw(1e-2)
    start = train.init(key, toy.params(), tx)
    state, metrics = run(train.make_step(toy.noisy_loss_fn, tx, ema=0.9), start)

    @jax.jit
    def by_hand(params, ema, opt_state, step, batch):
        def mean_loss(params):
            step_key = jax.random.fold_in(jax.random.fold_in(key, step), 0)
            loss, weight, _ = toy.noisy_loss_fn(params, batch, step_key)
            return loss / weight

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(0.9, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
        return params, ema, opt_state, loss, optax.tree.norm(gradient)

    params, ema, opt_state = toy.params(), toy.params(), tx.init(toy.params())
    loss = norm = 0.0
    for index in range(5):
        args = params, ema, opt_state, index, toy.batch(index)
        params, ema, opt_state, loss, norm = by_hand(*args)
    assert_close((state.params, state.ema, state.opt_state), (params, ema, opt_state))
    assert_close((metrics["loss"], metrics["grad_norm"]), (loss, norm))
    assert int(state.step) == 5


@pytest.mark.parametrize("accumulate", [2, 4, 32])
def test_accumulation_is_exact_with_ragged_weights(key, accumulate):
    tx = optax.adam(1e-2)
    start = train.init(key, toy.params(), tx)
    whole, a = run(train.make_step(toy.loss_fn, tx), start)
    cut, b = run(train.make_step(toy.loss_fn, tx, accumulate=accumulate), start)
    assert_close(cut.params, whole.params)
    assert_close(cut.ema, whole.ema)
    np.testing.assert_allclose(b["grad_norm"] / a["grad_norm"], 1, atol=1e-5)
    means = ("loss", "weight", "abs")
    assert_close([b[name] for name in means], [a[name] for name in means])


def test_a_mean_of_means_would_fail_here():
    """The data is ragged enough that the usual mistake is far outside the tolerance."""
    batch, params = toy.batch(0), toy.params()

    def mean(rows):
        loss, weight, _ = toy.loss_fn(params, rows, None)
        return loss / weight

    parts = [mean({k: v[i::4] for k, v in batch.items()}) for i in range(4)]
    assert abs(sum(parts) / 4 / mean(batch) - 1) > 0.05


def test_accumulation_sums_in_float32(key):
    """256 bfloat16 gradients: a bfloat16 sum of them is off by percents."""
    x = np.linspace(0.005, 0.015, 256, dtype=np.float32)
    loss_fn = lambda p, x, key: ((p.astype(jnp.bfloat16) * x).sum(), 1 / 256, {})
    tx = optax.sgd(1.0)
    state = train.init(key, jnp.zeros(()), tx)
    batch = jnp.asarray(x, jnp.bfloat16)
    new, _ = jax.jit(train.make_step(loss_fn, tx, accumulate=256))(state, batch)
    exact = np.asarray(batch, np.float64).sum()
    np.testing.assert_allclose(-new.params, exact, rtol=1e-6)


def test_accumulation_sums_in_float32_for_a_bfloat16_state_too(key):
    x = np.linspace(0.005, 0.015, 256, dtype=np.float32)
    tx = optax.sgd(1.0)
    state = train.init(key, jnp.zeros(()), tx)
    state = state._replace(params=jnp.zeros((), jnp.bfloat16))
    loss_fn = lambda p, x, key: ((p * x).sum(), 1 / 256, {})
    batch = jnp.asarray(x, jnp.bfloat16)
    _, metrics = jax.jit(train.make_step(loss_fn, tx, accumulate=256))(state, batch)
    exact = np.asarray(batch, np.float64).sum()
    np.testing.assert_allclose(metrics["grad_norm"], exact, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_in_which_nothing_counts_has_zero_gradient(key, accumulate):
    tx = optax.adam(1e-2)
    start = train.init(key, toy.params(), tx)
    step = jax.jit(train.make_step(toy.loss_fn, tx, accumulate=accumulate))
    empty = {**toy.batch(0), "mask": np.zeros(32, np.float32)}
    state, metrics = step(start, empty)
    values = {name: float(value) for name, value in metrics.items()}
    assert values == dict(loss=0, weight=0, grad_norm=0, skipped=0, abs=0)
    assert_identical(state.params, start.params)


def test_masked_microbatch_contributes_nothing(key):
    tx = optax.sgd(0.1)
    start = train.init(key, toy.params(), tx)
    batch = toy.batch(0)
    batch["mask"][1::2] = 0  # every row of the second microbatch
    halved = {name: value[::2] for name, value in batch.items()}
    cut, _ = jax.jit(train.make_step(toy.loss_fn, tx, accumulate=2))(start, batch)
    half, _ = jax.jit(train.make_step(toy.loss_fn, tx))(start, halved)
    assert_close(cut.params, half.params)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_keys_are_folded_from_run_step_and_microbatch(key, accumulate):
    def loss_fn(params, batch, key):
        draw = jax.random.uniform(key)
        return draw * params, 1, {"draw": (draw, 1)}

    tx = optax.sgd(1.0)
    start = train.init(key, jnp.zeros(()), tx)
    step = jax.jit(train.make_step(loss_fn, tx, accumulate=accumulate))
    batch = np.zeros(4, np.float32)
    state, first = step(start, batch)
    state, second = step(state, batch)
    for index, metrics in enumerate((first, second)):
        keys = [
            jax.random.fold_in(jax.random.fold_in(key, index), i)
            for i in range(accumulate)
        ]
        mean = np.mean([jax.random.uniform(k) for k in keys])
        np.testing.assert_allclose(metrics["draw"], mean, rtol=1e-6)
    assert_identical(state.key, key)


def test_noise_in_the_batch_does_not_depend_on_accumulation(key):
    def loss_fn(params, batch, key):
        draw = jax.vmap(lambda k: jax.random.normal(k, (3,)))(batch["key"])
        return toy.loss_fn(params, {**batch, "x": batch["x"] + draw}, key)

    tx = optax.sgd(0.1)
    start = train.init(key, toy.params(), tx)
    batch = {**toy.batch(0), "key": jax.random.split(key, 32)}
    whole, _ = jax.jit(train.make_step(loss_fn, tx))(start, batch)
    cut, _ = jax.jit(train.make_step(loss_fn, tx, accumulate=4))(start, batch)
    assert_close(cut.params, whole.params)


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_closed_form(key, warmup):
    """From 0 to a target reached at once: ema = 1 - product of the decays."""
    tx, steps = optax.sgd(0.5), 40
    step = jax.jit(train.make_step(quadratic, tx, ema=0.9, ema_warmup=warmup))
    state = train.init(key, jnp.zeros(()), tx)
    for _ in range(steps):
        state, _ = step(state, jnp.ones(4))
    assert float(state.params) == 1
    decays = [min(0.9, (1 + t) / (10 + t)) if warmup else 0.9 for t in range(steps)]
    np.testing.assert_allclose(state.ema, 1 - np.prod(decays), rtol=1e-6)


def test_slow_ema_keeps_its_rate(key):
    """1 - 0.99999 is off by 1e-3 where it is formed in float32."""
    tx = optax.sgd(0.5)
    state = train.init(key, jnp.zeros(()), tx)
    step = train.make_step(quadratic, tx, ema=0.99999, ema_warmup=False)
    state, _ = jax.jit(step)(state, jnp.ones(1))
    np.testing.assert_allclose(state.ema, 1e-5, rtol=1e-6)


def test_bfloat16_parameters_train_and_their_average_follows(key):
    """In bfloat16, steps of 1e-3 from 1 would be lost for ever."""
    loss_fn = lambda p, batch, key: (-p.astype(jnp.bfloat16).sum(), 1, {})
    tx = optax.sgd(1e-3)
    state = train.init(key, jnp.ones((), jnp.bfloat16), tx)
    step = jax.jit(train.make_step(loss_fn, tx, ema=0.99, ema_warmup=False))
    expected = ema = 1.0
    for index in range(100):
        state, _ = step(state, np.zeros(1))
        expected = 1 + 1e-3 * (index + 1)
        ema = 0.99 * ema + 0.01 * expected
    assert state.ema.dtype == jnp.float32
    np.testing.assert_allclose((state.params, state.ema), (expected, ema), rtol=1e-5)


@functools.cache
def noisy_step(accumulate):
    """A step whose optimizer holds keys and counts, and a state after it."""
    tx = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adam(1e-2))
    step = train.make_step(toy.loss_fn, tx, accumulate=accumulate, clip_norm=1.0)
    step = jax.jit(step)
    state, _ = step(train.init(jax.random.key(0), toy.params(), tx), toy.batch(0))
    return step, state


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_batch_changes_nothing_but_the_step(poison, accumulate):
    step, before = noisy_step(accumulate)
    bad = toy.batch(1)
    bad["x"][0] *= np.float32(POISON[poison])
    bad["y"][0] = np.float32(POISON[poison])
    after, metrics = step(before, bad)
    assert int(metrics["skipped"]) == 1
    assert int(after.step) == 2
    assert_identical(after._replace(step=before.step), before)
    healthy, metrics = step(after, toy.batch(2))
    assert int(metrics["skipped"]) == 0
    assert int(healthy.opt_state[1][0].count) == 2
    assert np.all(np.isfinite(healthy.params["out"]))


def test_a_gradient_that_is_not_finite_is_enough(key):
    """sqrt(|p|) is 0 at 0, and its slope is not a number."""
    tx = optax.sgd(1.0)
    start = train.init(key, jnp.zeros(()), tx)
    loss_fn = lambda p, *_: (jnp.sqrt(p**2), 1, {})
    state, metrics = train.make_step(loss_fn, tx)(start, np.zeros(1))
    assert float(metrics["loss"]) == 0
    assert int(metrics["skipped"]) == 1
    assert_identical(state.params, start.params)


def test_apply_does_not_look(key):
    tx = optax.sgd(0.1)
    step = train.make_step(toy.loss_fn, tx, nonfinite="apply")
    bad = {**toy.batch(1), "y": np.full((32, 2), np.nan, np.float32)}
    state, metrics = jax.jit(step)(train.init(key, toy.params(), tx), bad)
    assert np.all(np.isnan(state.params["out"]))
    assert int(metrics["skipped"]) == 0


@pytest.mark.parametrize("accumulate", [1, 4])
def test_clipping_is_global_and_after_accumulation(key, accumulate):
    tx = optax.sgd(1.0)
    start = train.init(key, toy.params(), tx)
    free, metrics = jax.jit(train.make_step(toy.loss_fn, tx))(start, toy.batch(0))
    step = train.make_step(toy.loss_fn, tx, clip_norm=0.5, accumulate=accumulate)
    clipped, clipped_metrics = jax.jit(step)(start, toy.batch(0))
    norm = float(metrics["grad_norm"])
    assert norm > 1
    np.testing.assert_allclose(clipped_metrics["grad_norm"], norm, rtol=1e-6)
    shrink = lambda p, q: p + (q - p) * 0.5 / norm
    assert_close(clipped.params, jax.tree.map(shrink, start.params, free.params))


_SCALED = jax.jit(train.make_step(toy.loss_fn, optax.sgd(0.1)))


@given(scale=st.floats(0.1, 100), seed=st.integers(0, 1000))
def test_gradient_does_not_depend_on_the_scale_of_the_weights(scale, seed):
    batch = toy.batch(seed)
    heavy = {**batch, "mask": batch["mask"] * np.float32(scale)}
    tx = optax.sgd(0.1)
    start = train.init(jax.random.key(0), toy.params(), tx)
    a, _ = _SCALED(start, batch)
    b, _ = _SCALED(start, heavy)
    assert_close(a.params, b.params)


def test_step_runs_without_jit(key):
    tx = optax.sgd(0.1)
    step = train.make_step(toy.loss_fn, tx)
    start = train.init(key, toy.params(), tx)
    assert_close(step(start, toy.batch(0)), jax.jit(step)(start, toy.batch(0)))


def test_float64_end_to_end(key, x64):
    params = jax.tree.map(lambda x: x.astype(jnp.float64), toy.params())
    batch = {k: v.astype(np.float64) for k, v in toy.batch(0).items()}
    tx = optax.adam(1e-2)
    start = train.init(key, params, tx)
    whole, a = jax.jit(train.make_step(toy.loss_fn, tx, clip_norm=1.0))(start, batch)
    step = train.make_step(toy.loss_fn, tx, clip_norm=1.0, accumulate=4)
    cut, b = jax.jit(step)(start, batch)
    for x in jax.tree.leaves((cut.params, cut.ema, b["loss"], b["grad_norm"])):
        assert x.dtype == jnp.float64
    assert_close(cut.params, whole.params, 1e-12)
    assert_close((a["loss"], a["grad_norm"]), (b["loss"], b["grad_norm"]), 1e-13)


def test_float32_parameters_stay_float32_under_x64(key, x64):
    tx = optax.adam(1e-2)
    start = train.init(key, toy.params(), tx)
    state, _ = jax.jit(train.make_step(toy.loss_fn, tx, accumulate=2))(
        start, toy.batch(0)
    )
    for x in jax.tree.leaves((state.params, state.ema)):
        assert x.dtype == jnp.float32


def test_nothing_is_traced_twice(key):
    """Not even for parameters that came in as Python floats."""
    tx = optax.adam(1e-2)
    state = train.init(key, {"w": 1.0}, tx)
    loss_fn = lambda p, x, key: ((p["w"] - x).sum() ** 2, x.size, {})
    step = jax.jit(train.make_step(loss_fn, tx, accumulate=2, clip_norm=1.0))
    for expected in (True, False, False):
        with toy.compilations() as events:
            state, _ = step(state, jnp.ones(4))
        assert (len(events) > 0) == expected


def test_settings_may_be_traced(key):
    tx = optax.sgd(0.1)
    start = train.init(key, toy.params(), tx)

    traces = []

    @jax.jit
    def step(ema, clip_norm):
        traces.append(1)
        step = train.make_step(toy.loss_fn, tx, ema=ema, clip_norm=clip_norm)
        return step(start, toy.batch(0))[0]

    for ema, clip_norm in ((0.0, 0.5), (0.05, 2.0)):
        exact = jax.jit(train.make_step(toy.loss_fn, tx, ema=ema, clip_norm=clip_norm))
        assert_close(step(ema, clip_norm).ema, exact(start, toy.batch(0))[0].ema)
    assert traces == [1]


SETTINGS = {
    "ema must be in [0, 1); it is 1.0": dict(ema=1.0),
    "ema must be in [0, 1); it is -0.1": dict(ema=-0.1),
    "accumulate must be an integer >= 1; it is 0": dict(accumulate=0),
    "accumulate must be an integer >= 1; it is 2.0": dict(accumulate=2.0),
    "clip_norm must be positive; it is 0": dict(clip_norm=0),
    'nonfinite must be "skip" or "apply"; it is \'raise\'': dict(nonfinite="raise"),
}


@pytest.mark.parametrize("message", SETTINGS)
def test_settings_out_of_range(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 the message is compared
        train.make_step(toy.loss_fn, optax.sgd(0.1), **SETTINGS[message])
    assert str(error.value) == message


RESULTS = {
    "(loss_sum, weight, aux)": lambda p: p.sum(),
    "loss_sum as a scalar sum over the batch; its shape is (2,)": lambda p: (p, 1, {}),
    "weight as a scalar sum over the batch; its shape is (2,)": lambda p: (p[0], p, {}),
    "aux as a dict of (sum, weight)": lambda p: (p.sum(), 2, ()),
    "aux['a'] must be a pair (sum, weight)": lambda p: (p.sum(), 2, {"a": p.sum()}),
    "aux['a'] as a scalar": lambda p: (p.sum(), 2, {"a": (p, 2)}),
    "aux must not use the names": lambda p: (p.sum(), 2, {"loss": (p.sum(), 2)}),
}


@pytest.mark.parametrize("message", RESULTS)
def test_a_loss_that_returns_something_else(key, message):
    tx = optax.sgd(0.1)
    step = train.make_step(lambda p, *_: RESULTS[message](p), tx)
    with pytest.raises(ValueError) as error:  # noqa: PT011 the message is compared
        step(train.init(key, jnp.ones(2), tx), None)
    assert message in str(error.value)


@pytest.mark.parametrize(("held", "ema"), [(True, None), (False, 0.9)])
def test_state_and_step_agree_about_the_average(key, held, ema):
    tx = optax.sgd(0.1)
    state = train.init(key, toy.params(), tx, ema=held)
    with pytest.raises(ValueError, match="ema must be a decay where the state holds"):
        train.make_step(toy.loss_fn, tx, ema=ema)(state, toy.batch(0))


@pytest.mark.parametrize("bad", [np.zeros((30, 2)), np.zeros(())])
def test_a_batch_that_does_not_divide(key, bad):
    tx = optax.sgd(0.1)
    step = train.make_step(toy.loss_fn, tx, accumulate=4)
    with pytest.raises(ValueError, match="batch/y must have a leading axis"):
        step(train.init(key, toy.params(), tx), {**toy.batch(0), "y": bad})


def test_complex_parameters_go_downhill(key):
    def loss_fn(params, batch, key):
        return jnp.square(abs(params["z"] - (1 + 2j))).sum(), 1, {}

    tx = optax.sgd(0.1)
    state = train.init(key, {"z": jnp.zeros((), jnp.complex64)}, tx)
    step = jax.jit(train.make_step(loss_fn, tx, accumulate=1))
    for _ in range(50):
        state, _ = step(state, np.zeros(1))
    np.testing.assert_allclose(state.params["z"], 1 + 2j, rtol=1e-4)


def test_an_infinite_weight_is_skipped(key):
    loss_fn = lambda params, x, key: (jnp.sum(params * x), jnp.inf, {})
    tx = optax.adam(0.1)
    state = train.init(key, jnp.ones(()), tx)
    new, metrics = train.make_step(loss_fn, tx)(state, np.ones(2))
    assert metrics["skipped"] == 1
    assert new.opt_state[0].count == 0


def test_the_state_must_be_of_the_optimizer(key):
    state = train.init(key, toy.params(), optax.adam(0.1), ema=False)
    step = train.make_step(toy.loss_fn, optax.sgd(0.1), ema=None)
    with pytest.raises(ValueError, match="tx and trainable must be as given to init"):
        step(state, toy.batch(0))
