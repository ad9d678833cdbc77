"""The random walk becomes a Gaussian, which solves the heat equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genlib import noise


def distance_to_gaussian(steps):
    """Total variation between a walk and the Gaussian of each lattice cell."""
    positions, probabilities = noise.walk_distribution(steps)
    half = 0.5 * np.diff(positions)[0]
    cells = stats.norm.cdf(positions + half) - stats.norm.cdf(positions - half)
    outside = 2 * stats.norm.cdf(positions[0] - half)
    return 0.5 * (np.abs(probabilities - cells).sum() + outside)


def test_distribution_is_binomial(x64):
    for steps in (1, 2, 50):
        positions, probabilities = noise.walk_distribution(steps, 3.0)
        want = stats.binom.pmf(np.arange(steps + 1), steps, 0.5)
        np.testing.assert_allclose(probabilities, want, rtol=1e-10)
        np.testing.assert_allclose(probabilities @ positions**2, 3.0, rtol=1e-10)


def test_a_walk_converges_to_the_gaussian_as_one_over_its_steps(x64):
    distances = np.array([distance_to_gaussian(n) for n in (25, 100, 400)])
    np.testing.assert_allclose(distances[:-1] / distances[1:], 4, rtol=0.05)
    assert distances[-1] < 4e-4


def test_walks_follow_their_distribution(key):
    x_0 = jnp.full((20_000, 1), 0.5)
    walk = noise.random_walk(key, x_0, 4, variance=2.0)
    np.testing.assert_array_equal(walk[0], x_0)
    np.testing.assert_allclose(np.abs(np.diff(walk, axis=0)), 2**-0.5, rtol=1e-5)
    positions, probabilities = noise.walk_distribution(4, 2.0)
    at = np.abs(walk[-1] - 0.5 - positions[None]) < 1e-3
    error = np.sqrt(probabilities * (1 - probabilities) / len(x_0))
    assert (np.abs(at.mean(0) - probabilities) < 4 * error).all()
    assert noise.random_walk(key, x_0.astype(jnp.bfloat16), 2).dtype == jnp.bfloat16


def test_the_heat_kernel_solves_the_heat_equation(x64):
    x, t, diffusivity = np.linspace(-2, 2, 9), 0.3, 0.7
    kernel = lambda x, t: noise.heat_kernel(x, t, diffusivity)
    in_time = jax.vmap(jax.grad(kernel, 1), (0, None))(x, t)
    in_space = jax.vmap(jax.grad(jax.grad(kernel)), (0, None))(x, t)
    np.testing.assert_allclose(in_time, diffusivity * in_space, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", [noise.VE(0.1, 3.0), noise.EDM(3.0)])
def test_the_heat_kernel_is_the_transition_of_exploding_paths(path, x64):
    s, t = 0.4 * path.t_max, 0.9 * path.t_max
    alpha, sigma = noise.transition(path, s, t)
    assert alpha == 1
    x = np.linspace(-4, 4, 9)
    heat_time = path(t).sigma ** 2 - path(s).sigma ** 2
    np.testing.assert_allclose(
        noise.heat_kernel(x, heat_time), stats.norm.pdf(x, scale=sigma), rtol=1e-9
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: noise.walk_distribution(0),
        lambda: noise.random_walk(jax.random.key(0), jnp.zeros(1), 0),
    ],
)
def test_a_walk_needs_steps(call):
    with pytest.raises(ValueError, match="steps must be positive"):
        call()
