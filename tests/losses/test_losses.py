"""The denoising loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import KINDS, PATHS, each, inner_times

from genlib import losses, noise, prediction

every_path = pytest.mark.parametrize("path", **each(PATHS))
every_kind = pytest.mark.parametrize("kind", **each(KINDS))


@every_path
@every_kind
def test_denoising_loss_is_the_weighted_error_by_hand(path, kind, key):
    x_0 = jnp.linspace(-1, 1, 24).reshape(4, 3, 2)
    scaled = lambda x, t: 0.5 * x + t[:, None, None] * 0.01
    fixed = lambda key, path, n, dtype: jnp.asarray(inner_times(path, 5)[:4], dtype)
    got = losses.denoising(
        key, scaled, path, x_0, kind=kind, weight=losses.min_snr(), times=fixed
    )
    t = fixed(None, path, 4, jnp.float32)
    eps = jax.random.normal(jax.random.split(key)[1], x_0.shape)
    x_t = noise.perturb(path, x_0, eps, t)
    error = scaled(*kind.inputs(path(t), x_t, t)) - prediction.target(
        path, x_0, eps, t, kind
    )
    want = losses.min_snr()(path, kind, t) * (error**2).mean((1, 2))
    assert got.shape == (4,)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@every_kind
def test_perfect_network_has_no_loss(kind, key):
    path = noise.Cosine()
    x_0 = jnp.zeros((8, 2))  # then x_t = sigma eps, and every target is c(t) x_t

    def predict(x_in, t_in):
        t = losses.uniform(jax.random.split(key)[0], path, 8)
        eps = jax.random.normal(jax.random.split(key)[1], x_0.shape)
        return prediction.target(path, x_0, eps, t, kind)

    loss = losses.denoising(key, predict, path, x_0, kind=kind)
    assert loss.shape == (8,)
    assert (loss < 1e-10).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes(dtype, key, x64):
    seen = []

    def predict(x, t):
        seen.append((x.dtype, t.dtype))
        return x

    x_0 = jnp.ones((2, 3), dtype)
    wide = jnp.promote_types(dtype, "float32")
    loss = losses.denoising(key, predict, noise.Cosine(), x_0, kind=prediction.V)
    assert loss.dtype == wide
    assert seen == [(x_0.dtype, wide)]


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 4, 4, 1)])
def test_any_data_shape(shape, key):
    loss = losses.denoising(
        key, lambda x, t: x, noise.Rectified(), jnp.ones(shape), kind=prediction.EPS
    )
    assert loss.shape == shape[:1]


def test_sweeping_settings_traces_once(key):
    traces = []

    @jax.jit
    def loss(gamma, beta_max, sigma_data):
        traces.append(gamma)
        return losses.denoising(
            key,
            lambda x, t: x,
            noise.VPLinear(beta_max=beta_max),
            jnp.ones((2, 2)),
            kind=prediction.EDM(sigma_data),
            weight=losses.min_snr(gamma),
        )

    assert (loss(5.0, 20.0, 0.5) != loss(1.0, 10.0, 0.9)).all()
    assert len(traces) == 1


@pytest.mark.parametrize("x_0", [jnp.ones(()), jnp.ones((2, 2), int)])
def test_bad_data(x_0, key):
    with pytest.raises(ValueError, match="x_0 must be floating data"):
        losses.denoising(key, lambda x, t: x, noise.Cosine(), x_0, kind=prediction.V)


def test_bad_network_and_kind(key):
    x_0, path = jnp.ones((2, 2)), noise.Cosine()
    with pytest.raises(ValueError, match="predict must return the shape"):
        losses.denoising(key, lambda x, t: x[:, 0], path, x_0, kind=prediction.V)
    with pytest.raises(ValueError, match="kind must be"):
        losses.denoising(key, lambda x, t: x, path, x_0, kind="v")
