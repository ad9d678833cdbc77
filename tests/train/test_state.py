import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import train, tree
from tests.train import toy
from tests.train.toy import assert_identical

# Some optimizers keep the parameters that they were given.
KEEPER = optax.GradientTransformation(
    lambda params: params, lambda updates, state, params=None: (updates, state)
)


def test_init_gives_float32_masters_and_average(key):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.params())
    state = train.init(key, params, optax.adam(1e-3))
    for part in (state.params, state.ema, state.opt_state[0].nu):
        assert {x.dtype for x in jax.tree.leaves(part)} == {jnp.dtype("float32")}
    assert state.step.dtype == jnp.int32
    assert_identical(state.params, jax.tree.map(lambda x: x.astype("float32"), params))


def test_no_two_leaves_share_a_buffer(key):
    params = toy.params()
    state = train.init(key, params, KEEPER)
    leaves = [x for x in jax.tree.leaves((state, params)) if x.dtype == jnp.float32]
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves) > 9


@pytest.mark.parametrize("tx", [optax.adam(0.1), KEEPER])
def test_donation_consumes_the_state_and_nothing_else(key, tx):
    params = toy.params()
    state = train.init(key, params, tx)
    step = jax.jit(train.make_step(toy.loss_fn, tx), donate_argnums=0)
    new, _ = step(state, toy.batch(0))
    assert state.params["out"].is_deleted()
    assert state.ema["out"].is_deleted()
    assert_identical(params, toy.params())
    assert_identical(key, jax.random.key(0))
    step(new, toy.batch(1))


def test_ema_can_be_left_out(key):
    state = train.init(key, toy.params(), optax.sgd(0.1), ema=False)
    assert state.ema is None
    step = jax.jit(train.make_step(toy.loss_fn, optax.sgd(0.1), ema=None))
    state, _ = step(state, toy.batch(0))
    assert state.ema is None


def test_leaves_that_are_not_floats_are_carried_along(key):
    given = {"frozen": jnp.arange(3), "key": jax.random.key(9), "net": toy.params()}
    tx = optax.adamw(0.1)
    state = train.init(key, given, tx)
    loss_fn = lambda params, *rest: toy.loss_fn(params["net"], *rest)
    new, _ = jax.jit(train.make_step(loss_fn, tx, accumulate=2))(state, toy.batch(0))
    for part in (new.params, new.ema):
        fixed = tree.split_floats(part)[1]
        assert_identical(fixed, tree.split_floats(given)[1])
    assert np.any(new.params["net"]["out"] != given["net"]["out"])


@pytest.mark.parametrize(
    "bad", [np.zeros(2, np.uint32), jnp.zeros(2, jnp.uint32), 0, "key", None]
)
def test_init_wants_one_typed_key(key, bad):
    bad = jax.random.split(key, 2) if bad is None else bad
    with pytest.raises(ValueError, match="key must be one typed key"):
        train.init(bad, toy.params(), optax.sgd(0.1))
