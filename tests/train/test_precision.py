"""Narrow compute types with wide master copies, and the scale of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import train
from tests.train import toy

X = {"x": np.ones((4, 1), np.float32)}
SGD = optax.sgd(1e-3)


def mean_loss(params, batch, key):
    """The derivative with respect to w is 1."""
    x = batch["x"].astype(params["w"].dtype)
    return (params["w"] * x).sum(), len(x), {}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_loss_sees_the_narrow_type_and_the_master_copy_moves(key, dtype):
    seen = []

    def loss_fn(params, batch, key):
        seen.append(params["w"].dtype)
        return mean_loss(params, batch, key)

    state = train.init(key, {"w": jnp.ones((), dtype)}, SGD)
    step = jax.jit(train.make_step(loss_fn, SGD, precision=dtype))
    for _ in range(10):
        state, metrics = step(state, X)
    assert seen == [jnp.dtype(dtype)]
    assert state.params["w"].dtype == metrics["grad_norm"].dtype == jnp.float32
    # In bfloat16 every one of these updates would have been lost.
    np.testing.assert_allclose(state.params["w"], 0.99, rtol=1e-6)


def test_ordered_rules_leave_leaves_as_they_are(key):
    def loss_fn(params, batch, key):
        kept, narrow = params["dense"]["b"], params["dense"]["w"]
        assert (kept.dtype, narrow.dtype) == (jnp.float32, jnp.bfloat16)
        assert params["out"].dtype == jnp.bfloat16
        return toy.loss_fn(jax.tree.map(jnp.float32, params), batch, key)

    rules = [("b$", "float32"), (".*", "bfloat16")]
    step = train.make_step(loss_fn, SGD, precision=rules)
    jax.eval_shape(step, train.init(key, toy.params(), SGD), toy.batch(0))


@pytest.mark.parametrize("precision", ["int8", [("w", int)], "wide", [("w",)], 3])
def test_precision_must_be_of_floats(precision):
    with pytest.raises(ValueError, match="precision must be a float dtype"):
        train.make_step(toy.loss_fn, SGD, precision=precision)


def test_precision_of_no_leaf(key):
    step = train.make_step(toy.loss_fn, SGD, precision=[("wrong", "bfloat16")])
    with pytest.raises(ValueError, match="precision must each be the first match"):
        step(train.init(key, toy.params(), SGD), toy.batch(0))


def half_loss(params, batch, key):
    """A float16 product whose cotangent is as small, or large, as the batch says."""
    out = params["w"] * batch["x"].astype(jnp.float16)
    return (out.astype(jnp.float32) * batch["size"]).sum(), len(out), {}


def sized(size):
    return {**X, "size": np.full((4, 1), size, np.float32)}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_scaling_saves_gradients_that_float16_loses(key, accumulate):
    """1e-8 is below the smallest float16, 6e-8."""
    scaling = train.LossScale(initial=2.0**15)
    results = {}
    for loss_scale in (None, scaling):
        state = train.init(key, {"w": jnp.ones(())}, SGD, loss_scale=loss_scale)
        settings = {"loss_scale": loss_scale, "accumulate": accumulate}
        step = train.make_step(half_loss, SGD, precision="float16", **settings)
        results[loss_scale] = jax.jit(step)(state, sized(1e-8))
    assert results[None][1]["grad_norm"] == 0
    state, metrics = results[scaling]
    np.testing.assert_allclose(metrics["grad_norm"], 1e-8, rtol=1e-3)
    np.testing.assert_allclose(metrics["loss"], 1e-8, rtol=1e-6)
    assert metrics["loss_scale"] == 2.0**15
    assert state.loss_scale.finite_steps == 1


def test_an_overflow_skips_the_step_and_halves_the_scale(key):
    tx, scaling = optax.adam(1e-3), train.LossScale(initial=2.0**15, interval=3)
    state = train.init(key, {"w": jnp.ones(())}, tx, loss_scale=scaling)
    step = train.make_step(
        half_loss, tx, precision="float16", loss_scale=scaling, clip_norm=0.1
    )
    step = jax.jit(step)
    state, _ = step(state, sized(0.5))
    after, metrics = step(state, sized(100.0))
    assert metrics["skipped"] == 1
    assert np.isfinite(metrics["loss"])
    toy.assert_identical(
        (after.params, after.opt_state, after.ema),
        (state.params, state.opt_state, state.ema),
    )
    assert after.loss_scale == (2.0**14, 0)
    assert after.step == 2
    scales = []
    for _ in range(7):
        after, metrics = step(after, sized(0.5))
        scales.append(float(metrics["loss_scale"]))
        np.testing.assert_allclose(
            metrics["grad_norm"], 0.5, rtol=1e-3
        )  # before clipping
    assert scales == [2.0**14] * 3 + [2.0**15] * 3 + [2.0**16]


def test_the_scale_stays_within_its_bounds():
    scaling = train.LossScale(
        initial=4.0, factor=4.0, interval=1, minimum=2.0, maximum=8.0
    )
    state = scaling.init()
    assert scaling.update(state, jnp.array(True)).scale == 8
    assert scaling.update(state, jnp.array(False)).scale == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"factor": 1.0},
        {"factor": 3.0},
        {"factor": 0.5},
        {"interval": 0},
        {"minimum": 0.0},
        {"initial": 2.0**30},
        {"initial": 1000.0},
        {"maximum": 2.0**200},
        {"maximum": float("inf")},
        {"initial": float("nan")},
    ],
)
def test_scales_that_cannot_work(settings):
    with pytest.raises(ValueError, match=r"must be"):
        train.LossScale(**settings)


def test_scale_and_state_belong_together(key):
    scaling = train.LossScale()
    with pytest.raises(ValueError, match=r'nonfinite must be "skip" with loss_scale'):
        train.make_step(toy.loss_fn, SGD, loss_scale=scaling, nonfinite="apply")
    state = train.init(key, toy.params(), SGD)
    with pytest.raises(ValueError, match="made without it"):
        train.make_step(toy.loss_fn, SGD, loss_scale=scaling)(state, toy.batch(0))
    state = train.init(key, toy.params(), SGD, loss_scale=scaling)
    with pytest.raises(ValueError, match="made with it"):
        train.make_step(toy.loss_fn, SGD)(state, toy.batch(0))
