"""Shifts of a path in log-SNR: resolution, SD3, dynamic mu, interpolated cosine."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import LINEAR_BETAS, MORE_PATHS, PATHS, each

from genlib import noise, samplers

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/noise.json").read_text())
SIGMAS = np.linspace(1, 0.2, 5, dtype=np.float32)
every_path = pytest.mark.parametrize("path", **each(PATHS | MORE_PATHS))


def shifted_flow(shift, t):
    return noise.Shifted(noise.Rectified(), shift)(t).sigma


def test_shift_of_stable_diffusion_3():
    np.testing.assert_allclose(shifted_flow(3.0, SIGMAS), GOLDEN["shift_3"], rtol=1e-5)


def test_shift_is_applied_once():
    """A peer shifts the ends of its grid first: 0.0089286 for 0.002994012."""
    want = [1, 0.9001200, 0.7503748, 0.5009990, 0.002994012]
    got = shifted_flow(3.0, np.linspace(1, 0.001, 5))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_dynamic_mu_of_flux():
    mu = noise.dynamic_mu(np.array([256, 2176, 4096]))
    np.testing.assert_allclose(mu, [0.5, 0.825, 1.15], rtol=1e-6)
    np.testing.assert_allclose(
        shifted_flow(jnp.exp(mu[2]), SIGMAS), GOLDEN["exponential_mu"], rtol=1e-5
    )
    np.testing.assert_allclose(
        shifted_flow(mu[2], SIGMAS), GOLDEN["linear_mu"], rtol=1e-5
    )


def test_cosine_for_images_of_256():
    path = noise.Shifted(noise.Cosine(), 256 / 64)
    np.testing.assert_allclose(path.log_snr(0.5), -2.7725887, rtol=1e-5)
    # A peer's schedule runs over log-SNR 15..-15 before its shift.
    for before, after in ((15.0, 12.227411), (-15.0, -17.77258)):
        with jax.enable_x64(True):
            t = noise.time_at(noise.Cosine(), before)
            np.testing.assert_allclose(path.log_snr(t), after, rtol=1e-6)


def test_interpolated_cosine_of_simple_diffusion(x64):
    """log_snr = t shifted(low) + (1 - t) shifted(high)."""
    width, low, high = 512, 32, 256
    t = np.linspace(0.05, 0.95, 9)
    cosine = noise.Cosine().log_snr(t)
    want = t * (cosine + 2 * np.log(low / width)) + (1 - t) * (
        cosine + 2 * np.log(high / width)
    )
    path = noise.InterpolatedShift(noise.Cosine(), width / high, width / low)
    np.testing.assert_allclose(path.log_snr(t), want, rtol=1e-12)
    np.testing.assert_allclose(path.time_at(want), t, rtol=1e-9)
    alpha, sigma = path(t)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), want, rtol=1e-9)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


@every_path
def test_log_snr_is_less_by_twice_the_log_of_the_shift(path, x64):
    t = np.linspace(path.t_min, path.t_max, 9)[1:-1]
    alpha, sigma = noise.Shifted(path, 3.0)(t)
    np.testing.assert_allclose(
        2 * jnp.log(alpha / sigma), path.log_snr(t) - 2 * np.log(3.0), atol=1e-9
    )


@every_path
def test_the_shifted_path_is_the_base_at_another_time(path, x64):
    t = np.linspace(path.t_min, path.t_max, 9)[1:-1]
    t = t[path.log_snr(t) - 2 * np.log(3.0) > path.log_snr(path.t_max)]
    if isinstance(path, noise.DiscreteBetas):
        t = np.round(t)
    shifted = noise.Shifted(path, 3.0)
    again = path.time_at(path.log_snr(t) - 2 * np.log(3.0))
    rtol = 1e-2 if isinstance(path, noise.DiscreteBetas) else 1e-9
    for got, want in zip(shifted(t), path(again), strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol)


@every_path
def test_ends_stay_where_they_are(path):
    shifted = noise.Shifted(path, 3.0)
    assert (shifted.t_min, shifted.t_max) == (path.t_min, path.t_max)
    start, end = path(path.t_min), path(path.t_max)
    if start.sigma == 0:
        assert tuple(shifted(path.t_min)) == (1, 0)
    if end.alpha == 0:
        np.testing.assert_allclose(shifted(path.t_max), (0, 1), rtol=1e-6)


def test_shifts_compose_and_undo():
    path = noise.Shifted(noise.Shifted(noise.VPLinear(), 4.0), 0.25)
    for got, want in zip(path(SIGMAS), noise.VPLinear()(SIGMAS), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(path.time_at(path.log_snr(SIGMAS)), SIGMAS, rtol=1e-5)


def test_shifted_betas_reach_past_the_end_of_the_chain(x64):
    """The last log-SNR of the chain is shifted too, not clipped to the chain's."""
    chain = noise.DiscreteBetas(LINEAR_BETAS)
    path = noise.Shifted(chain, 4.0)
    want = chain.log_snr(1000) - 2 * np.log(4.0)
    alpha, sigma = path(1000)
    np.testing.assert_allclose(2 * jnp.log(alpha / sigma), want, rtol=1e-12)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


def test_a_sweep_of_shifts_traces_once_and_has_a_gradient():
    traces = []

    @jax.jit
    @jax.value_and_grad
    def sigma(shift, t):
        traces.append(t)
        return noise.Shifted(noise.Rectified(), shift)(t).sigma

    for shift in (1.0, 2.0, 3.0):
        value, slope = sigma(shift, 0.5)
        np.testing.assert_allclose(value, shift / (1 + shift), rtol=1e-6)
        np.testing.assert_allclose(slope, 1 / (1 + shift) ** 2, rtol=1e-5)
    assert len(traces) == 1
    assert jnp.isfinite(jnp.stack([sigma(2.0, t)[1] for t in (0.0, 1.0)])).all()


def test_a_solver_runs_on_a_shifted_path_as_on_a_shifted_grid():
    """Euler on the base with a shifted grid is Euler on the shifted path for flows."""
    x = jnp.array([[0.3, -1.2]])
    denoise = lambda x, t: 0.5 * x
    grid = np.linspace(1, 0, 5)
    on_grid = samplers.sample(
        samplers.ddim(), denoise, noise.Rectified(), shifted_flow(3.0, grid), x
    )
    path = noise.Shifted(noise.Rectified(), 3.0)
    on_path = samplers.sample(samplers.ddim(), denoise, path, grid, x)
    np.testing.assert_allclose(on_path, on_grid, rtol=1e-5)


def test_a_path_without_a_norm_is_refused_and_with_one_is_not():
    @dataclasses.dataclass(frozen=True)
    class Power(noise.Path):
        def __call__(self, t):
            return noise.Marginal(1 - t, t**2)

    class Normed(Power):
        norm = staticmethod(
            # (1 - t, t^2) / c for the c at which the square of one and the other add up
            lambda a, b: 0.5 * (2 * a + b + jnp.sqrt(b * (4 * a + b)))
        )

    with pytest.raises(ValueError, match="base must be a path with a norm"):
        noise.Shifted(Power(), 2.0)
    path = noise.Shifted(Normed(), 2.0)
    alpha, sigma = path(0.3)
    np.testing.assert_allclose(sigma / alpha, 2 * 0.09 / 0.7, rtol=1e-6)
    np.testing.assert_allclose(sigma, (1 - alpha) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda base: noise.Shifted(base, 0.0), "shift"),
        (lambda base: noise.Shifted(base, -1), "shift"),
        (lambda base: noise.InterpolatedShift(base, 0.0, 1.0), "at_data"),
        (lambda base: noise.InterpolatedShift(base, 1.0, -1.0), "at_noise"),
        (lambda base: noise.InterpolatedShift(base, 4.0, 1.0), "at_noise"),
        (lambda base: noise.dynamic_mu(0), "tokens"),
        (lambda base: noise.dynamic_mu(5, max_tokens=256), "max_tokens"),
    ],
)
def test_bad_arguments(call, name):
    with pytest.raises(ValueError, match=f"{name} must"):
        call(noise.Cosine())
