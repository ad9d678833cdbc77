"""Inverse problems with Gaussian data and linear measurements, solved exactly."""

import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import guidance, noise, samplers

MEAN = np.array([0.3, -0.5, 1.0])
FACTOR = np.array([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.2, 0.3, 0.4]])
WIDE, ROUND = FACTOR @ FACTOR.T, 0.49 * np.eye(3)  # covariances of the data
A = np.array([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]])
Y = np.array([[0.7, -1.1], [0.0, 2.0], [-0.4, 0.3], [1.5, 0.1]])
S = 0.3
X = np.array([[0.4, 0.1, -0.9], [1.1, -1.3, 0.2], [0.0, 0.5, 2.0], [-0.7, 0.9, 0.6]])
PATHS = [noise.Cosine(), noise.EDM(), noise.Rectified()]


def measure(x):
    return x @ A.T


def gaussian(path, covariance):
    """E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m)."""

    def denoise(x_t, t):
        alpha, sigma = path(t)
        total = alpha**2 * covariance + sigma**2 * jnp.eye(3)
        gain = alpha * jnp.linalg.solve(total, jnp.asarray(covariance))
        return MEAN[None] + (x_t - alpha * MEAN[None]) @ gain

    return denoise


def posterior(covariance, x_t=None, alpha=0.0, sigma=1.0, s=S):
    """Return E[x_0 | x_t, y] and its covariance, from the precisions."""
    x_t = np.zeros_like(X) if x_t is None else x_t
    prior = np.linalg.inv(covariance)
    precision = prior + (alpha / sigma) ** 2 * np.eye(3) + A.T @ A / s**2
    pull = MEAN @ prior + alpha / sigma**2 * x_t + Y @ A / s**2
    return pull @ np.linalg.inv(precision), np.linalg.inv(precision)


def build(method, covariance, path, y=Y, **settings):
    if method is guidance.pigdm:
        settings["data_std"] = covariance[0, 0] ** 0.5
    D = gaussian(path, covariance)
    return method(D, measure, y, 1.0, path, noise_std=S, **settings)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize(
    ("method", "covariance"),
    [(guidance.pigdm, ROUND), (guidance.mmps, ROUND), (guidance.mmps, WIDE)],
    ids=["pigdm", "mmps", "mmps_wide"],
)
def test_the_posterior_mean_is_exact(path, method, covariance, x64):
    guided = jit_once(build(method, covariance, path, iterations=2))
    for t in (0.05, 0.3, 0.6, 0.95):
        want, _ = posterior(covariance, X, *map(float, path(t)))
        np.testing.assert_allclose(guided(X, t), want, rtol=1e-8, atol=1e-8)


def test_enough_iterations_solve_a_measurement_of_everything(x64):
    """Of three eigenvalues: two iterations are not enough, more than three no harm."""
    path = noise.EDM()
    B = np.array([[2.0, 0.3, 0.0], [0.0, 1.0, 0.1], [0.5, 0.0, 0.2]])
    y = X + 1.0
    C = np.linalg.inv(np.linalg.inv(WIDE) + 4.0 * np.eye(3))
    run = lambda k: guidance.mmps(
        gaussian(path, WIDE), lambda x: x @ B.T, y, 1.0, path, iterations=k
    )(X, 0.5)
    x_0 = gaussian(path, WIDE)(X, 0.5)
    want = x_0 + (y - x_0 @ B.T) @ np.linalg.inv(B @ C @ B.T).T @ B @ C
    np.testing.assert_allclose(want @ B.T, y, rtol=1e-10)  # there is no noise in y
    assert np.abs(run(2) - want).max() > 1e-3
    np.testing.assert_allclose(run(3), want, rtol=1e-6)
    np.testing.assert_allclose(run(9), want, rtol=1e-8)


def test_a_mask_without_noise_is_met_exactly():
    """The pseudoinverse: nothing is asked of what the mask hides."""
    path, mask = noise.EDM(), np.array([1.0, 0.0, 1.0], np.float32)
    y = mask * np.float32(X)
    guided = guidance.pigdm(
        lambda x, t: x / (1 + t**2), lambda x: mask[None] * x, y, 1.0, path
    )
    x = jnp.ones((4, 3))
    got = guided(x, jnp.float32(2.0))
    np.testing.assert_allclose(got[:, [0, 2]], X[:, [0, 2]], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got[:, 1], 0.2, rtol=1e-6)


def test_other_operators_are_linearised(x64):
    """An affine measurement is that of y less the constant."""
    path = noise.EDM()
    D = gaussian(path, WIDE)
    shifted = guidance.mmps(
        D, lambda x: measure(x) + 3.0, Y + 3.0, 1.0, path, noise_std=S
    )
    got = shifted(X, 0.5)
    np.testing.assert_allclose(got, build(guidance.mmps, WIDE, path)(X, 0.5))
    cube = lambda x: measure(x) ** 3 / 3
    curved = guidance.mmps(D, cube, Y, 1.0, path, noise_std=S)(X, 0.5)
    x_0 = D(X, 0.5)
    C = np.linalg.inv(np.linalg.inv(WIDE) + 4.0 * np.eye(3))
    for i in range(4):
        B = np.diag((x_0[i] @ A.T) ** 2) @ A
        gain = C @ B.T @ np.linalg.inv(B @ C @ B.T + S**2 * np.eye(2))
        want = x_0[i] + gain @ (Y[i] - (x_0[i] @ A.T) ** 3 / 3)
        np.testing.assert_allclose(curved[i], want, rtol=1e-6)


@pytest.mark.parametrize("noise_std", [None, S])
def test_dps_is_its_formula(noise_std, x64):
    """(sigma^2 / alpha) J^T is Cov[x_0 | x_t], known here."""
    path, t = noise.Cosine(), 0.4
    alpha, sigma = map(float, path(t))
    D = gaussian(path, WIDE)
    guided = guidance.dps(D, measure, Y, 0.7, path, noise_std=noise_std)
    x_0 = np.asarray(D(X, t))
    C = np.linalg.inv(np.linalg.inv(WIDE) + (alpha / sigma) ** 2 * np.eye(3))
    residual = Y - x_0 @ A.T
    weight = np.linalg.norm(residual, axis=1, keepdims=True)
    weight = weight if noise_std is None else noise_std**2
    want = x_0 + 0.7 * (residual / weight) @ A @ C
    np.testing.assert_allclose(guided(X, t), want, rtol=1e-10)


def test_dps_without_misfit_changes_nothing():
    path = noise.EDM()
    D = lambda x, t: 0.5 * x
    x = jnp.asarray(X, jnp.float32)
    guided = guidance.dps(D, lambda x: x, 0.5 * x, 1.0, path)
    np.testing.assert_array_equal(guided(x, jnp.float32(1.0)), 0.5 * x)


@pytest.mark.parametrize(
    ("method", "covariance"),
    [(guidance.pigdm, ROUND), (guidance.mmps, WIDE)],
    ids=["pigdm", "mmps"],
)
def test_sampling_gives_the_posterior(method, covariance, x64):
    """The flow is affine, so that four starts tell mean and covariance of all."""
    path = noise.EDM()
    times = samplers.karras(path, 200)
    y = np.broadcast_to(Y[:1], Y.shape)  # the same measurement for all four starts
    guided = build(method, covariance, path, y, iterations=2)
    mean, spread = posterior(covariance)
    starts = mean[0] + np.concatenate([np.zeros((1, 3)), 80.0 * np.eye(3)])
    run = jit_once(lambda x: samplers.sample(samplers.heun(), guided, path, times, x))
    ends = np.asarray(run(starts))
    factor = ends[1:] - ends[:1]
    np.testing.assert_allclose(ends[0], mean[0], atol=1e-6)
    np.testing.assert_allclose(factor.T @ factor, spread, atol=3e-4)


def test_operators_must_be_real():
    """A complex one would need A^H, where A^T is taken."""
    path = noise.Cosine()
    x = jnp.ones((2, 4))
    guided = guidance.mmps(lambda x, t: x, jnp.fft.fft, jnp.fft.fft(x), 1.0, path)
    with pytest.raises(ValueError, match="must be real"):
        guided(x, jnp.float32(0.5))
