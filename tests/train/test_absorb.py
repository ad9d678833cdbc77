"""What is learned from sums over a batch is the same however the batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import train
from tests.train.toy import assert_close, assert_identical

TX = optax.adamw(1e-2, weight_decay=0.5)
TRAINABLE = "^w$"  # a weight decay would shrink the statistics


def params():
    return {"w": jnp.ones((1, 3)), "seen": {"n": jnp.ones(()), "sum": jnp.zeros(3)}}


def loss_fn(params, batch, key):
    loss = jnp.square(params["w"] - batch).sum()
    return loss, len(batch), {}, {"n": jnp.float32(len(batch)), "sum": batch.sum(0)}


def absorb(params, statistics):
    mean = lambda old, new: 0.5 * old + 0.5 * new
    return {**params, "seen": jax.tree.map(mean, params["seen"], statistics)}


def step(accumulate=1, **changes):
    settings = {"ema": None, "trainable": TRAINABLE, "absorb": absorb, **changes}
    return train.make_step(loss_fn, TX, accumulate=accumulate, **settings)


def init(key):
    return train.init(key, params(), TX, ema=False, trainable=TRAINABLE)


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(batch):
    state, _ = jax.jit(step())(init(jax.random.key(0)), batch)
    np.testing.assert_allclose(state.params["seen"]["sum"], batch.sum(0) / 2, atol=1e-6)
    np.testing.assert_allclose(state.params["seen"]["n"], 8.5)
    return state.params


def test_microbatches_add_up(key, batch, expected):
    state, _ = jax.jit(step(accumulate=4))(init(key), batch)
    assert_close(state.params, expected)


@pytest.mark.parametrize("way", ["jit", "shard_map", "pmap"])
def test_eight_devices_add_up(key, batch, expected, way):
    if way == "pmap":
        state, _ = train.pmap_step(step(accumulate=2))(init(key), batch)
    else:
        mesh = train.make_mesh()
        make = {"jit": train.jit_step, "shard_map": train.shard_map_step}[way]
        rows = train.shard_batch(batch, mesh)
        state, _ = make(step(), mesh)(train.replicate(init(key), mesh), rows)
    assert_close(jax.device_get(state.params), jax.device_get(expected))


def test_a_skipped_step_absorbs_nothing(key, batch):
    broken = batch.copy()
    broken[0, 0] = np.nan
    old = init(key)
    new, metrics = jax.jit(step())(old, broken)
    assert metrics["skipped"] == 1
    assert_identical(new.params, old.params)


def test_parts_absorb_after_their_own_update(key, batch):
    first = lambda params, batch, key: (jnp.sum(params["a"]), 1, {}, batch.sum())
    second = lambda params, batch, key: (jnp.sum(params["b"]), 1, {})
    tx = {"a": optax.sgd(0.5), "b": optax.sgd(0.5)}
    state = train.init(key, {"a": jnp.zeros(()), "b": jnp.zeros(())}, tx, ema=False)
    make = train.make_step(
        {"a": first, "b": second},
        tx,
        ema=None,
        absorb={"a": lambda params, total: {**params, "a": params["a"] + total}},
    )
    state, _ = jax.jit(make)(state, jnp.ones(4))
    assert float(state.params["a"]) == 3.5
    assert float(state.params["b"]) == -0.5


def test_settings_that_do_not_fit_are_refused(key, batch):
    with pytest.raises(
        ValueError, match=r"loss_fn must return \(loss_sum, weight, aux"
    ):
        step(absorb=None)(init(key), batch)
    with pytest.raises(ValueError, match="absorb must return params like those"):
        step(absorb=lambda params, statistics: params["w"])(init(key), batch)
    with pytest.raises(ValueError, match="absorb must be one function for one loss"):
        step(absorb={"a": absorb})
    with pytest.raises(
        ValueError, match=r"absorb must be a dict with names of \['a'\]"
    ):
        train.make_step({"a": loss_fn}, {"a": TX}, absorb=absorb)
