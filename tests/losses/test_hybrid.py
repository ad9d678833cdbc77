"""The hybrid loss of learned variances, against a plain one for a chain of betas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import losses, noise, prediction

STEPS = 20
BETAS = np.linspace(1e-3, 0.3, STEPS)
CHAIN = noise.DiscreteBetas(BETAS)


def every_step(key, path, n, dtype):
    return (jnp.arange(n, dtype=dtype) + 0.5) / n


def network(x_t, t):
    v = jnp.tanh(2.0 * x_t - 0.1 * t[:, None])
    return jnp.concatenate([0.7 * x_t - 0.2, v], axis=-1)


def loss(key, predict, x_0, kind=prediction.EPS, **settings):
    return losses.hybrid(
        key, predict, CHAIN, x_0, kind=kind, steps=STEPS, draw=every_step, **settings
    )


def plain(x_0, eps, vlb):
    """The published recipe in NumPy: simple loss, and bits per dimension of a step."""
    alpha_bar = np.cumprod(1 - BETAS)
    before = np.append(1.0, alpha_bar[:-1])
    variance = BETAS * (1 - before) / (1 - alpha_bar)
    clipped = np.append(variance[1], variance[1:])
    root, noise_std = np.sqrt(alpha_bar)[:, None], np.sqrt(1 - alpha_bar)[:, None]
    x_t = root * x_0 + noise_std * eps
    eps_hat, v = np.split(np.asarray(network(x_t, np.arange(1.0, STEPS + 1))), 2, 1)
    simple = np.mean((eps_hat - eps) ** 2, axis=1)

    def mean(x_0):
        first = BETAS * np.sqrt(before) / (1 - alpha_bar)
        second = (1 - before) * np.sqrt(1 - BETAS) / (1 - alpha_bar)
        return first[:, None] * x_0 + second[:, None] * x_t

    fraction = 0.5 * (v + 1)
    log_variance = fraction * np.log(BETAS)[:, None]
    log_variance += (1 - fraction) * np.log(clipped)[:, None]
    x_0_hat = (x_t - noise_std * eps_hat) / root
    with np.errstate(divide="ignore", invalid="ignore"):
        log_true = np.log(variance)[:, None]
        kl = 0.5 * (log_variance - log_true - 1 + np.exp(log_true - log_variance))
        kl += 0.5 * (mean(x_0) - mean(x_0_hat)) ** 2 * np.exp(-log_variance)
    decoder = 0.5 * (np.log(2 * np.pi) + log_variance)
    decoder += 0.5 * (x_0 - mean(x_0_hat)) ** 2 * np.exp(-log_variance)
    kl[0] = decoder[0]
    return simple + vlb * STEPS * kl.mean(1) / np.log(2)


def test_it_is_the_published_recipe(key, x64):
    x_0 = jax.random.normal(jax.random.key(1), (STEPS, 3), float)
    eps = jax.random.normal(jax.random.split(key)[1], x_0.shape, float)
    run = jit_once(lambda vlb: loss(key, network, x_0, vlb=vlb))
    for vlb in (1e-3, 1.0):
        got = run(vlb)
        want = plain(np.asarray(x_0), np.asarray(eps), vlb)
        np.testing.assert_allclose(got, want, rtol=1e-8)


def test_the_bound_moves_the_variance_alone(key):
    x_0 = jax.random.normal(jax.random.key(1), (STEPS, 3))

    def total(scales, vlb):
        def predict(x_t, t):
            value, v = jnp.split(network(x_t, t), 2, axis=-1)
            return jnp.concatenate([scales[0] * value, scales[1] * v], axis=-1)

        return loss(key, predict, x_0, vlb=vlb).sum()

    slope = jit_once(jax.grad(total))
    without, much = slope(jnp.ones(2), 0.0), slope(jnp.ones(2), 1.0)
    np.testing.assert_allclose(much[0], without[0], rtol=1e-5)
    assert without[1] == 0
    assert abs(much[1]) > 0.1


@pytest.mark.parametrize("kind", [prediction.V, prediction.EDM()])
def test_any_kind_and_dtype(kind, key):
    x_0 = jax.random.normal(key, (STEPS, 3)).astype(jnp.bfloat16)
    seen = []

    def predict(x_t, t):
        seen.append((x_t.dtype, t.dtype))
        return network(x_t, t).astype(x_t.dtype)

    got = jit_once(lambda key: loss(key, predict, x_0, kind=kind))(key)
    assert got.shape == (STEPS,)
    assert got.dtype == jnp.float32
    assert jnp.isfinite(got).all()
    assert seen == [(jnp.bfloat16, jnp.float32)]


def test_bad_input(key):
    x_0 = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="twice the last axis; it returned"):
        loss(key, lambda x, t: x, x_0)
    with pytest.raises(ValueError, match="steps must be at least 2; it is 1"):
        losses.hybrid(key, network, CHAIN, x_0, kind=prediction.EPS, steps=1)
    with pytest.raises(ValueError, match="kind must be"):
        loss(key, network, x_0, kind="eps")


def test_bad_data_and_chains_without_signal(key):
    predict = lambda x_t, t: jnp.concatenate([x_t, x_t], axis=-1)
    betas = noise.rescale_zero_terminal_snr(noise.linear_betas(20))
    path, settings = noise.DiscreteBetas(betas), {"kind": prediction.EPS, "steps": 20}
    with pytest.raises(ValueError, match=r"x_0 must be \[B, ..., C\]"):
        losses.hybrid(key, predict, path, jnp.ones(4), **settings)
    with pytest.raises(ValueError, match="not determined by EPS"):
        jax.jit(
            lambda k: losses.hybrid(k, predict, path, jnp.ones((4, 2)), **settings)
        )(key)
