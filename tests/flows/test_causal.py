"""Autoregressive flows over tokens: what they see, and their cached inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows

B, T, C, P, K = 2, 5, 3, 2, 4
RNG = np.random.default_rng(0)
PARAMS = {
    "x": 0.5 * RNG.standard_normal((C, C * P)),
    "cond": 0.5 * RNG.standard_normal((K, C * P)),
}


def bias(params, cond):
    return 0.0 if cond is None else (cond @ params["cond"])[:, None]


def apply(params, x, features, cond=None):
    """Sines of sums over the tokens so far."""
    return jnp.sin(jnp.cumsum(x, 1) @ params["x"] + bias(params, cond))


def start(params, x, features, cond=None):
    return jnp.zeros_like(x[:, :1])


def step(params, cache, x_t, t, features, cond=None):
    cache = cache + x_t[:, None]
    return apply(params, cache, features, cond)[:, 0], cache


SINES = flows.CausalConditioner(lambda *_: PARAMS, apply, start, step)
CACHED = flows.causal(flows.affine(), SINES)
UNCACHED = flows.causal(flows.affine(), SINES._replace(start=None, step=None))


def tokens(dtype, *shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)


@pytest.mark.parametrize("conditional", [False, True])
def test_sum_of_log_derivatives_and_inverses(x64, conditional):
    x = tokens(jnp.float64, B, T, C)
    cond = tokens(jnp.float64, B, K) if conditional else None

    @jit_once
    def everything(x, cond):
        y, log_det = CACHED.forward(PARAMS, x, cond)
        back = [layer.inverse(PARAMS, y, cond) for layer in (CACHED, UNCACHED)]
        flat = lambda function, z: jax.jacfwd(
            lambda z: function(PARAMS, z, cond)[0].reshape(-1)
        )(z).reshape(z.size, z.size)
        return y, log_det, back, flat(CACHED.forward, x), flat(CACHED.inverse, y)

    y, log_det, back, forward, inverse = everything(x, cond)
    # The first token stays, whatever the condition is.
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    assert abs(y[:, 1:] - x[:, 1:]).min() > 1e-4
    for x_back, contribution in back:
        np.testing.assert_allclose(x_back, x, atol=1e-12)
        np.testing.assert_allclose(contribution, -log_det, atol=1e-12)
    # TarFlow's code has the mean over T C of this; here it is the sum.
    by_example = forward.reshape(B, T * C, B, T * C)
    for example in range(B):
        block = np.asarray(by_example[example, :, example])
        np.testing.assert_allclose(
            np.linalg.slogdet(block)[1], log_det[example], atol=1e-12
        )
        # Lower triangular in tokens and diagonal inside each, exactly.
        same = np.kron(np.eye(T), np.ones((C, C))) - np.eye(T * C)
        assert not np.triu(block, 1).any()
        assert not (block * same).any()
    assert not by_example[0, :, 1].any()
    # The derivative through the loop is that of the inverse function.
    np.testing.assert_allclose(inverse @ forward, np.eye(B * T * C), atol=1e-11)


def test_float32_inverses_agree():
    x = tokens(jnp.float32, B, T, C)
    params = jax.tree.map(jnp.float32, PARAMS)

    @jit_once
    def everything(x):
        y, _ = CACHED.forward(params, x)
        return CACHED.inverse(params, y)[0], UNCACHED.inverse(params, y)[0]

    for back in everything(x):
        np.testing.assert_allclose(back, x, atol=1e-5)


def test_one_token_stays():
    x = tokens(jnp.float32, B, 1, C)
    y, log_det = CACHED.forward(PARAMS, x)
    np.testing.assert_array_equal(y, x)
    assert not log_det.any()


def test_program_of_the_inverse_does_not_grow_with_tokens():
    def count(layer, length):
        y = jnp.zeros((B, length, C))
        return str(jax.make_jaxpr(layer.inverse)(PARAMS, y)).count("\n")

    assert count(CACHED, 3) == count(CACHED, 30)
    assert count(UNCACHED, 3) == count(UNCACHED, 30)


def test_refusals():
    with pytest.raises(ValueError, match="both start and step, or neither"):
        flows.causal(flows.affine(), SINES._replace(step=None))
    for function in (CACHED.forward, CACHED.inverse):
        with pytest.raises(ValueError, match=r"\[B, T, C\]; its shape is \(2, 2, 2, 3"):
            function(PARAMS, jnp.zeros((2, 2, 2, 3)))
        with pytest.raises(ValueError, match="at least 3 axes; it is float32"):
            function(PARAMS, jnp.zeros((2, 3)))
    narrow = SINES._replace(apply=lambda params, x, features, cond=None: x)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 6\); it returned \(2, 5, 3"):
        flows.causal(flows.affine(), narrow).forward({}, jnp.zeros((B, T, C)))
