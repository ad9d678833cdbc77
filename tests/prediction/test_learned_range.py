"""Steps back whose variance is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import LINEAR_BETAS, each, jit_once

from genlib import noise, prediction

CHAIN = noise.DiscreteBetas(LINEAR_BETAS)
PATHS = {"betas": CHAIN, "cosine": noise.Cosine(), "edm": noise.EDM()}
X_T = np.array([[[0.3, -1.2]], [[2.0, 0.4]]], np.float32)


def learned(path, v, s, t, kind=prediction.EPS, x_t=X_T, **settings):
    value = jnp.concatenate([0.5 * x_t - 0.1, v * jnp.ones_like(x_t)], axis=-1)
    return prediction.learned_range(path, value, x_t, s, t, kind, **settings)


def test_variances_of_the_chain(x64):
    """Between the posterior's variance and beta, geometrically."""
    alpha_bar = np.cumprod(1 - LINEAR_BETAS)
    k = np.array([500, 999])
    beta = LINEAR_BETAS[k]
    lower = beta * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])
    x_t = X_T.astype(np.float64)
    run = jit_once(lambda v: learned(CHAIN, v, k.astype(float), k + 1.0, x_t=x_t).std)
    for v in (-1.0, 0.3, 1.0, 1.5):
        fraction = 0.5 * (v + 1)
        want = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(lower))
        got = run(v) ** 2
        assert got.shape == X_T.shape
        np.testing.assert_allclose(got[:, 0, 0], want, rtol=1e-9)
    np.testing.assert_allclose(lower, [0.01005127, 0.01999996], rtol=1e-5)


@pytest.mark.parametrize("path", **each(PATHS))
@pytest.mark.parametrize("kind", [prediction.V, prediction.EDM()])
def test_mean_and_bounds_on_any_path(path, kind):
    s, t = (np.float32(u * path.t_max) for u in (0.3, 0.5))
    x_0 = prediction.convert(path, 0.5 * X_T - 0.1, X_T, t, kind, prediction.X0)
    want = noise.posterior(path, x_0, X_T, s, t)
    low, high = (learned(path, v, s, t, kind) for v in (-1.0, 1.0))
    for got in (low, high):
        np.testing.assert_allclose(got.mean, want.mean, rtol=1e-6)
    np.testing.assert_allclose(low.std, np.broadcast_to(want.std, X_T.shape), 1e-5)
    upper = noise.transition(path, s, t).sigma
    np.testing.assert_allclose(high.std, np.broadcast_to(upper, X_T.shape), 1e-5)


def test_the_step_to_the_data_has_a_bound_of_its_own():
    second = noise.posterior(CHAIN, X_T, X_T, 1, 2).std
    np.testing.assert_allclose(second**2, 5.45e-5, rtol=2e-3)
    got = learned(CHAIN, -1.0, 0, 1, final_std=second)
    np.testing.assert_allclose(got.std, second * np.ones_like(X_T), rtol=1e-4)
    with pytest.raises(ValueError, match=r"final_std must be positive.*s = 0; it is"):
        learned(CHAIN, 0.0, 0, 1)
    traced = jax.jit(lambda s, v: learned(CHAIN, v, s, 1.0).std)
    assert (traced(0.0, 0.0) == 0).all()
    assert (traced(0.0, 1.0) == 0).all()
    slope = jax.grad(lambda v: learned(CHAIN, v, s=jnp.float32(3), t=4.0).std.sum())
    assert jnp.isfinite(slope(0.2))


def test_dtypes_and_shapes():
    x_t = X_T.astype(jnp.bfloat16)
    mean, std = learned(CHAIN, 0.0, 5, 6, x_t=x_t)
    assert (mean.dtype, std.dtype) == (jnp.bfloat16, jnp.float32)
    assert mean.shape == std.shape == X_T.shape
    with pytest.raises(ValueError, match=r"\(2, 1, 2\) of x_t with twice the last"):
        prediction.learned_range(CHAIN, X_T, X_T, 1, 2, prediction.EPS)
    with pytest.raises(ValueError, match="must be a genlib"):
        learned(CHAIN, 0.0, 1, 2, kind="eps")
