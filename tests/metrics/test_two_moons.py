"""The two moons: their density against sums, their samples against their density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genlib import metrics


@pytest.mark.parametrize(("sigma", "entropy"), [(0.1, 1.0084), (0.05, 0.2895)])
def test_entropy_is_the_known_one(x64, sigma, entropy) -> None:
    moons = metrics.TwoMoons(sigma)
    x = moons.sample(jax.random.key(0), 20_000, jnp.float64)
    mean = -jax.jit(moons.log_density)(x).mean()
    assert abs(mean - entropy) < 3 * 0.0052


def test_density_is_the_sum_over_the_arcs_and_integrates_to_one(x64) -> None:
    moons = metrics.TwoMoons(0.2)
    axis = np.linspace(-2.5, 3.5, 121)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = np.exp(np.asarray(jax.jit(moons.log_density)(jnp.asarray(x))))
    np.testing.assert_allclose(density.sum() * (axis[1] - axis[0]) ** 2, 1, rtol=1e-7)
    # The midpoint rule converges with the square of its step.
    angle = np.pi * (np.arange(20_000) + 0.5) / 20_000
    upper = np.stack([np.cos(angle), np.sin(angle)], -1)
    for row in (7000, 8423):
        centres = np.concatenate([upper, [1, 0.5] - upper])
        squares = ((x[row] - centres) ** 2).sum(1)
        exact = np.exp(-squares / 0.08).mean() / (0.08 * np.pi)
        np.testing.assert_allclose(density[row], exact, rtol=1e-7)


def test_a_sweep_over_sigma_traces_once_and_float32_is_enough() -> None:
    traced = []

    @jax.jit
    def log_density(moons, x):
        traced.append(moons.sigma)
        return moons.log_density(x)

    x = jnp.array([[0.3, 0.2], [40.0, -7.0]], jnp.float32)
    values = [log_density(metrics.TwoMoons(sigma), x) for sigma in (0.1, 0.2)]
    assert len(traced) == 1
    assert all(value.dtype == jnp.float32 for value in values)
    assert np.isfinite(values).all()
