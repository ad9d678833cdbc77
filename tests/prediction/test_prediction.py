"""Numbers and corners of predictions."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import (
    GOLDEN,
    KINDS,
    MIXTURE,
    MORE_PATHS,
    PATHS,
    ZERO_SNR_BETAS,
    each,
    inner_times,
)

from genlib import guidance, noise, prediction, samplers

ZERO_SNR = noise.DiscreteBetas(ZERO_SNR_BETAS)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 1.0, 80.0])
def test_edm_preconditioning(sigma):
    """c_skip, c_out, c_in and c_noise of the published code, sigma_data = 0.5."""
    want = GOLDEN["edm"][f"precond_{sigma}"]
    kind, path = prediction.EDM(0.5), noise.EDM()
    x_t, value = jnp.full((1, 1), 0.3), jnp.full((1, 1), -0.8)
    x_in, t_in = kind.inputs(path(sigma), x_t, jnp.float32(sigma))
    np.testing.assert_allclose(x_in, want["inn"] * x_t, rtol=1e-5)
    np.testing.assert_allclose(t_in, want["noise"], rtol=1e-5, atol=1e-7)
    x_0 = prediction.convert(path, value, x_t, sigma, kind, prediction.X0)
    np.testing.assert_allclose(x_0, want["skip"] * x_t + want["out"] * value, rtol=1e-5)


def test_edm_target_has_unit_variance_on_any_path():
    """Exactly: the coefficients of x_0 and eps, and at the ends too."""
    for name, path in (PATHS | MORE_PATHS).items():
        ends = jnp.array([path.t_min, path.t_max], jnp.float32)
        t = jnp.concatenate([ends, inner_times(path)])
        x_0, eps, scale = prediction.EDM(0.7)(*noise.marginal_and_rate(path, t))
        variance = (0.7 * x_0) ** 2 + eps**2
        np.testing.assert_allclose(variance, scale**2, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("path", [noise.EDM(), noise.Cosine(), noise.Rectified()])
def test_edm_target_has_unit_variance_on_gaussian_data(path, key):
    key_x, key_eps = jax.random.split(key)
    x_0 = 0.7 * jax.random.normal(key_x, (50_000, 1))
    eps = jax.random.normal(key_eps, x_0.shape)
    for t in (0.05, 0.5, 0.95):
        target = prediction.target(path, x_0, eps, t, prediction.EDM(0.7))
        np.testing.assert_allclose(target.std(), 1.0, rtol=0.02)


def test_x_0_from_v_is_minus_v_at_alpha_zero():
    v = jnp.array([[3.0, -1.5]])
    for path in (noise.Cosine(), ZERO_SNR):
        t = jnp.float32(path.t_max)
        got = prediction.convert(path, v, 0 * v, t, prediction.V, prediction.X0)
        np.testing.assert_allclose(got, -v, rtol=1e-6)


@pytest.mark.parametrize("kind", [prediction.EPS, prediction.SCORE], ids=repr)
@pytest.mark.parametrize("path", [ZERO_SNR, noise.Cosine(), noise.Rectified()])
def test_eps_cannot_start_at_zero_terminal_snr(kind, path):
    denoise = prediction.denoiser(lambda x, t: x, path, kind)
    times, x = samplers.uniform(path, 4), jnp.ones((2, 2))
    guided = guidance.classifier_free(denoise, denoise, 2.0)
    retimed = prediction.retime(denoise, path, noise.Cosine())
    for start, on in ((denoise, path), (guided, path), (retimed, noise.Cosine())):
        grid = times if on is path else samplers.uniform(on, 4)
        with pytest.raises(ValueError, match="X0 is not determined by"):
            samplers.sample(samplers.ddim(), start, on, grid, x)
        with pytest.raises(ValueError, match="X0 is not determined by"):
            jax.jit(
                lambda x, s=start, o=on, g=grid: samplers.sample(
                    samplers.ddim(), s, o, g, x
                )
            )(x)
    later = samplers.uniform_log_snr(path, 4)
    assert jnp.isfinite(samplers.sample(samplers.ddim(), denoise, path, later, x)).all()


def test_v_starts_at_zero_terminal_snr():
    denoise = prediction.denoiser(lambda x, t: 0.1 * x, ZERO_SNR, prediction.V)
    x = samplers.sample(
        samplers.ddim(),
        denoise,
        ZERO_SNR,
        samplers.trailing(ZERO_SNR, 5),
        jnp.ones((1, 2)),
    )
    assert jnp.isfinite(x).all()


def test_retime_round_trip():
    """A denoiser carried to another path and back is the same function."""
    vp, flow = noise.VPLinear(), noise.Rectified()
    denoise = lambda x, t: jnp.tanh(x) * vp(t).alpha
    back = prediction.retime(prediction.retime(denoise, vp, flow), flow, vp)
    x = jnp.array([[0.3, -2.0]])
    for t in (0.05, 0.4, 0.9):
        np.testing.assert_allclose(back(x, t), denoise(x, t), rtol=1e-4)


def test_retime_from_pure_noise_is_finite():
    moved = prediction.retime(lambda x, t: x, noise.Rectified(), noise.Cosine())
    for t in (0.0, 1.0):
        np.testing.assert_allclose(moved(jnp.ones((1, 1)), t), 1.0)


@pytest.mark.parametrize("bad", ["v", None, 3, prediction.Prediction])
def test_unknown_kind(bad):
    x = jnp.ones((1, 1))
    path = noise.Cosine()
    for call in (
        lambda: prediction.target(path, x, x, 0.5, bad),
        lambda: prediction.convert(path, x, x, 0.5, bad, prediction.V),
        lambda: prediction.convert(path, x, x, 0.5, prediction.V, bad),
        lambda: prediction.denoiser(lambda x, t: x, path, bad),
    ):
        with pytest.raises(
            ValueError, match=r"must be a genlib\.prediction\.Prediction"
        ):
            call()


@pytest.mark.parametrize("kind", **each(KINDS))
def test_bad_shapes(kind):
    path, x = noise.Cosine(), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="value must have the shape"):
        prediction.convert(path, x[:1], x, 0.5, kind, prediction.X0)
    with pytest.raises(ValueError, match="predict must return the shape"):
        prediction.denoiser(lambda x, t: x[..., :1], path, kind)(x, 0.5)
    with pytest.raises(ValueError, match="t must be a scalar"):
        prediction.denoiser(lambda x, t: x, path, kind)(x, jnp.ones(3) / 2)


@pytest.mark.parametrize("source", [noise.EDM(), noise.VE(), noise.VPLinear()])
@pytest.mark.parametrize("target", [noise.Cosine(), noise.Rectified()])
def test_retimed_denoiser_samples_like_a_native_one(source, target):
    """Also from alpha = 0, where the source has no such noise level."""
    moved = prediction.retime(MIXTURE.denoiser(source), source, target)
    x, times = jnp.array([[0.3, -1.2]]), samplers.uniform(target, 10)
    got, want = (
        samplers.sample(samplers.ddim(), denoise, target, times, x)
        for denoise in (moved, MIXTURE.denoiser(target))
    )
    np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-3)
    assert jnp.isfinite(moved(x, 0.0)).all()


def test_guidance_checks_both_of_its_models():
    path, x = noise.Rectified(), jnp.ones((2, 2))
    blind = prediction.denoiser(lambda x, t: x, path, prediction.EPS)
    for pair in ((blind, lambda x, t: x), (lambda x, t: x, blind)):
        guided = guidance.classifier_free(*pair, 2.0)
        with pytest.raises(ValueError, match="X0 is not determined by"):
            samplers.sample(samplers.ddim(), guided, path, [1.0, 0.5], x)


def test_kinds_are_equal_after_copying():
    kind = copy.deepcopy(prediction.SCORE)
    assert kind == prediction.SCORE
    assert kind != prediction.EPS
    assert hash(kind) == hash(prediction.SCORE)
    x, path = jnp.ones((1, 1)), noise.Rectified()
    got = prediction.convert(path, 2 * x, x, 0.0, kind, prediction.SCORE)
    assert got == 2
