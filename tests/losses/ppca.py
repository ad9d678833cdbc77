"""Probabilistic PCA, whose evidence, posterior and bounds are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

W = np.array([[1.0, 0.0], [0.5, -1.0], [0.2, 0.7]])
# The same model with orthogonal columns: its posterior has independent components.
ROTATED = W @ np.linalg.eigh(W.T @ W)[1]
VARIANCE = 0.25
X = np.array([[0.8, -0.3, 0.4]])
LOG_PROB = -2.939048

normal = jax.scipy.stats.norm.logpdf


def log_prob(w, x):
    """log N(x; 0, w w^T + variance I), [B]."""
    covariance = w @ w.T + VARIANCE * jnp.eye(len(w))
    squares = (x * jnp.linalg.solve(covariance, x.T).T).sum(1)
    log_det = jnp.linalg.slogdet(2 * np.pi * covariance)[1]
    return -0.5 * (squares + log_det)


def log_prior(z):
    return normal(z).sum(1)


def log_likelihood(w):
    return lambda z, x: normal(x, z @ w.T, VARIANCE**0.5).sum(1)


def log_joint(w):
    return lambda z, x: log_likelihood(w)(z, x) + log_prior(z)


def prior(x):
    return x[:, :2] * 0, x[:, :2] * 0


def exact(x):
    """The posterior of ROTATED."""
    precision = (ROTATED**2).sum(0) + VARIANCE
    log_std = 0.5 * np.log(VARIANCE / precision)
    return x @ (ROTATED / precision), np.broadcast_to(log_std, (len(x), 2))


def diagonal(x):
    """The posterior of W, without the covariance of its components."""
    precision = W.T @ W + VARIANCE * np.eye(2)
    mean = x @ np.linalg.solve(precision, W.T).T
    variance = VARIANCE * np.diag(np.linalg.inv(precision))
    return mean, np.broadcast_to(0.5 * np.log(variance), mean.shape)
