"""Distances against other ways to compute them, and the mixture against calculus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from laws.registry import MIXTURE, PATHS, each, inner_times

from genlib import metrics, noise


def test_frechet_distance_against_the_matrix_square_root(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
    y = rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6))
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    got = metrics.frechet_distance(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_frechet_distance_in_float32_with_dead_features(key):
    """Constant features, as the corners of digits, make both covariances singular."""
    x = jax.random.normal(key, (300, 20)).at[:, :5].set(-1.0)
    y = jax.random.normal(jax.random.key(1), (250, 20)).at[:, :5].set(-1.0)
    got = metrics.frechet_distance(x, y)
    with jax.enable_x64(True):
        wide = metrics.frechet_distance(
            jnp.asarray(x, jnp.float64), jnp.asarray(y, jnp.float64)
        )
    np.testing.assert_allclose(got, wide, rtol=1e-4)
    assert metrics.frechet_distance(x, x) < 1e-4


def test_frechet_distance_with_fewer_samples_than_features(key):
    x = jax.random.normal(key, (5, 20))
    np.testing.assert_allclose(metrics.frechet_distance(x, x + 1), 20.0, rtol=1e-4)


def test_frechet_distance_of_digits_has_the_known_floor():
    """Train against test digits in [-1, 1]: 0.351."""
    datasets = pytest.importorskip("sklearn.datasets")
    x = datasets.load_digits().data / 8.0 - 1.0
    x = x[np.random.RandomState(0).permutation(len(x))].astype(np.float32)
    floor = metrics.frechet_distance(x[:1400], x[1400:])
    np.testing.assert_allclose(floor, 0.351, atol=1e-3)


@pytest.mark.parametrize("sizes", [(50, 50), (30, 50), (50, 7), (1, 3)])
@pytest.mark.parametrize("order", [1, 2])
def test_sliced_wasserstein_in_one_dimension_is_exact(sizes, order, key):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(sizes[0], 1)), 2 * rng.normal(size=(sizes[1], 1)) + 1
    got = metrics.sliced_wasserstein(
        key, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), order=order
    )
    if order == 1:
        want = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0])
    else:  # every sample repeated until both sets are equally large
        size = np.lcm(*sizes)
        xs, ys = (np.sort(np.repeat(z[:, 0], size // len(z))) for z in (x, y))
        want = np.sqrt(np.mean((xs - ys) ** 2))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_sliced_wasserstein_of_a_shift(key):
    """E (u . s)^2 = |s|^2 / D over unit vectors."""
    x = jax.random.normal(key, (64, 3))
    shift = jnp.array([[3.0, 0.0, 4.0]])
    got = metrics.sliced_wasserstein(key, x, x + shift, projections=20_000)
    np.testing.assert_allclose(got, 5 / np.sqrt(3), rtol=0.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, key: metrics.frechet_distance(x, x[:, :1]),
        lambda x, key: metrics.frechet_distance(x[:1], x),
        lambda x, key: metrics.frechet_distance(x[0], x[0]),
        lambda x, key: metrics.sliced_wasserstein(key, x, x[:, :1]),
        lambda x, key: metrics.sliced_wasserstein(key, x[:0], x),
        lambda x, key: metrics.sliced_wasserstein(key, x, x, projections=0),
        lambda x, key: metrics.sliced_wasserstein(key, x, x, order=0),
    ],
)
def test_bad_arguments(call, key):
    with pytest.raises(ValueError, match=r"must be|size"):
        call(jnp.ones((4, 2)), key)


def test_mixture_density_is_that_of_scipy(x64):
    x = np.random.default_rng(0).normal(size=(20, 2))
    for alpha, sigma in ((1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (1.0, 80.0)):
        want = sum(
            w
            * scipy.stats.multivariate_normal(
                alpha * m, (alpha**2 * s**2 + sigma**2) * np.eye(2)
            ).pdf(x)
            for w, m, s in zip(
                MIXTURE.weights, MIXTURE.means, MIXTURE.stds, strict=True
            )
        )
        got = MIXTURE.log_density(jnp.asarray(x), alpha, sigma)
        np.testing.assert_allclose(got, np.log(want), rtol=1e-10)


@pytest.mark.parametrize("path", **each(PATHS))
def test_mixture_score_and_tweedie(path, x64):
    """The score is the gradient; alpha E[x_0 | x_t] = x_t + sigma^2 score."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
    t = inner_times(path).astype(np.float64)
    alpha, sigma = path(t)
    score = MIXTURE.score(x, alpha, sigma)
    gradient = jax.grad(lambda x: MIXTURE.log_density(x, alpha, sigma).sum())(x)
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-12)
    x_0 = MIXTURE.denoiser(path)(x, t)
    tweedie = x + (sigma**2)[:, None] * score
    np.testing.assert_allclose(alpha[:, None] * x_0, tweedie, rtol=1e-7, atol=1e-9)


def test_mixture_denoiser_at_the_ends():
    x = jnp.array([[0.3, -0.4]])
    denoise = MIXTURE.denoiser(noise.Cosine())
    np.testing.assert_allclose(denoise(x, 0.0), x, rtol=1e-6)
    np.testing.assert_allclose(
        denoise(x, 1.0)[0], MIXTURE.weights @ MIXTURE.means, rtol=1e-5
    )
    assert denoise(x.astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16


def test_mixture_samples_have_its_moments(key):
    x = MIXTURE.sample(key, 100_000)
    mean = MIXTURE.weights @ MIXTURE.means
    np.testing.assert_allclose(x.mean(0), mean, atol=0.01)
    share = MIXTURE.responsibilities(x).mean(0)
    np.testing.assert_allclose(share, MIXTURE.weights, atol=0.005)
