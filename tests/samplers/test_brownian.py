"""Noise from one Brownian path: its law, and what does not depend on the grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE, jit_once

from genlib import noise, samplers

PATH = noise.EDM(sigma_max=200.0)


def times_of(log_snr):
    return np.exp(-0.5 * np.asarray(log_snr, np.float64))


def increments(key, log_snr, n, path=PATH, dtype=jnp.float32, source=None):
    """The noise of every step between log-SNRs, for n examples of one number."""
    seen = samplers.ddpm()._replace(
        step=lambda denoise, x, state, row: (row["noise"], state)
    )
    times, x = times_of(log_snr), jnp.zeros((n, 1), dtype)
    source = source or samplers.brownian
    run = lambda key: samplers.sample(
        seen, lambda x, t: x, path, times, x, noise=source(key), save=lambda x: x
    )
    return np.asarray(jit_once(run)(key)[1])[..., 0]


@pytest.mark.parametrize(
    "log_snr",
    [
        [-9.0, -2.0, -1.9, 0.0, 0.1, 0.11, 5.0, 5.5, 9.0, np.inf],
        [-60.0, -25.0, -20.0, 20.0, 25.0, 60.0],  # beyond the ends of the path
    ],
)
def test_increments_are_independent_and_standard_normal(log_snr, key):
    n = 20_000
    z = increments(key, log_snr, n, path=noise.EDM(1e14))
    assert np.abs(z.mean(1)).max() < 4 / n**0.5
    assert np.abs(np.cov(z) - np.eye(len(z))).max() < 5 * (2 / n) ** 0.5
    # The fourth moment of a normal is 3, with standard error sqrt(96 / n).
    assert np.abs((z**4).mean(1) - 3).max() < 5 * (96 / n) ** 0.5


def test_nested_grids_share_the_path(key, x64):
    """With 4 steps or more B is known at -10, 0 and 10; with 8 at every fifth, too."""
    spans = {}
    for grid in (np.linspace(-10, 10, 5), np.linspace(-10, 10, 9), [-10, 0, 1, 6, 10]):
        z = increments(key, grid, 3, dtype=jnp.float64)
        snr = np.exp(np.asarray(grid))
        path = np.cumsum(np.sqrt(np.diff(snr))[:, None] * z, axis=0)
        at = {round(g): value for g, value in zip(grid[1:], path, strict=True)}
        for g in (0, 10):
            scale = np.exp(g / 2)
            np.testing.assert_allclose(
                at[g] / scale, spans.setdefault(g, at[g]) / scale, rtol=1e-9
            )
        assert np.abs(at[10]).min() > 0
    assert len(np.unique(np.round(at[10], 6))) == 3  # examples differ


def test_a_sample_settles_as_the_steps_grow(key):
    """Two solvers of one SDE come to the same sample, at first order in the step."""
    denoise = MIXTURE.denoiser(PATH)
    x_T = 20 * jax.random.normal(key, (256, 2))

    def run(solver, steps, **source):
        times = samplers.uniform_log_snr(
            PATH, steps, sigma_min=0.05, sigma_max=20.0, to_zero=False
        )
        sample = lambda x: samplers.sample(solver, denoise, PATH, times, x, **source)
        return jit_once(sample)(x_T)

    one_path = {"noise": samplers.brownian(key)}
    reference = run(samplers.ddpm(), 512, **one_path)
    # Few examples change the mode that they end in: medians.
    miss = lambda *args, **source: np.median(np.abs(run(*args, **source) - reference))
    coarse, fine = (miss(samplers.ddpm(), steps, **one_path) for steps in (16, 64))
    assert fine < 0.06
    assert 3 < coarse / fine < 5.5
    assert miss(samplers.dpmpp_sde(), 64, **one_path) < 0.03
    assert miss(samplers.ddpm(), 64, key=key) > 0.5


def test_an_example_has_its_own_path_whatever_the_batch(key):
    log_snr = [-8.0, -1.0, 3.0, 4.0]
    whole = increments(key, log_snr, 4)
    np.testing.assert_allclose(increments(key, log_snr, 2), whole[:, :2], rtol=1e-6)
    # One key stands for the keys of its examples.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2, 4))
    np.testing.assert_allclose(increments(keys, log_snr, 2), whole[:, 2:], rtol=1e-6)


def test_overlapping_increments_of_dpmpp_sde_share_a_path(x64):
    """The variance of samples converges with second order; apart, with first.

    For Gaussian data a sample is linear in its noise, so that this is exact. Noises for
    t -> middle and t -> s that are apart are k-diffusion's without its tree.
    """
    denoise = lambda x, t: x / (1 + t**2)  # of standard normal data
    errors = []
    for steps in (25, 50):
        times = samplers.uniform_log_snr(PATH, steps, sigma_min=0.02, to_zero=False)

        def sample(draws, times=times):
            args = denoise, PATH, times, jnp.zeros((1, 1))
            return samplers.sample(samplers.dpmpp_sde(), *args, noise=draws)[0, 0]

        gain = jit_once(jax.grad(sample))(jnp.zeros((steps, 2, 1, 1)))[..., 0, 0]
        first, rest = np.asarray(gain).T
        h = np.diff(samplers.tabulate(PATH, times).log_snr)
        part = np.expm1(h / 2) / np.expm1(h)
        # Independent noises a and b are the disjoint (a, (b - sqrt(part) a) / rest).
        apart = first - np.sqrt(part / (1 - part)) * rest, rest / np.sqrt(1 - part)
        want = 1.0 + times[-1] ** 2
        each = [
            sum((g**2).sum() for g in gains) - want for gains in ((first, rest), apart)
        ]
        errors.append(np.abs(each))
    shared, apart = np.log2(errors[0] / errors[1])
    assert shared > 1.7
    assert apart < 1.0
    assert errors[1][0] < 0.02


def test_traced_paths_from_end_to_end(key):
    """A traced clock, with a finite gradient, equal to the eager tables."""
    x = jax.random.normal(key, (4, 2))

    def run(path):
        times, source = samplers.uniform(path, 6), samplers.brownian(key)
        denoise, solver = MIXTURE.denoiser(path), samplers.dpmpp_sde()
        return samplers.sample(solver, denoise, path, times, x, noise=source).sum()

    traced = jax.value_and_grad(lambda sigma_max: run(noise.VE(0.01, sigma_max)))
    value, gradient = jit_once(traced)(50.0)
    want = jit_once(lambda: run(noise.VE(0.01, 50.0)))()
    np.testing.assert_allclose(value, want, rtol=1e-2)
    assert jnp.isfinite(gradient)


def test_brownian_noise_of_half_precision(key):
    path = noise.Rectified()  # from alpha = 0 to sigma = 0
    x = jnp.ones((2, 3), jnp.bfloat16)
    times, source = samplers.uniform(path, 3), samplers.brownian(key)
    run = lambda x: samplers.sample(
        samplers.ddpm(), lambda x, t: 0.5 * x, path, times, x, noise=source
    )
    out = jit_once(run)(x)
    assert out.dtype == jnp.bfloat16
    assert jnp.isfinite(out).all()


@pytest.mark.parametrize(
    ("solver", "source", "message"),
    [
        (samplers.consistency(), jax.random.key(0), "no increment over log-SNR"),
        (
            samplers.heun(samplers.Churn(1.0)),
            jax.random.key(0),
            "no increment over log-SNR",
        ),
        (
            samplers.predictor_corrector(samplers.ddpm()),
            jax.random.key(0),
            "no increment over log-SNR",
        ),
        (samplers.ddpm(), jax.random.split(jax.random.key(0), 3), "one key or one"),
        (samplers.ddpm(), 0, "typed key"),
    ],
)
def test_what_brownian_noise_is_not_for(solver, source, message):
    with pytest.raises(ValueError, match=message):
        samplers.sample(
            solver,
            lambda x, t: x,
            PATH,
            [3.0, 2.0, 1.0],
            jnp.ones((2, 2)),
            noise=samplers.brownian(source),
        )
