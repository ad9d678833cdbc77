"""Distances between two sets of samples."""

import jax
import jax.numpy as jnp
import numpy as np

from genlib.types import Array, Key, float_array


def frechet_distance(x: Array, y: Array) -> Array:
    """Return the squared Frechet distance between Gaussian fits of two feature sets.

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2), with unbiased
    covariances. On Inception features this is the FID (arXiv:1706.08500, eq. 6).

    Args:
      x: features [N, D], N >= 2.
      y: features [M, D], M >= 2.

    Returns:
      A scalar >= 0, in squared units of the features.

    Raises:
      ValueError: if the features are not two matrices with equal columns.

    >>> x = jax.random.normal(jax.random.key(0), (100, 2))
    >>> round(frechet_distance(x, x + jnp.array([3.0, 4.0])).item(), 3)
    25.0
    """
    if (
        x.ndim != 2
        or y.ndim != 2
        or x.shape[1] != y.shape[1]
        or min(len(x), len(y)) < 2
    ):
        raise ValueError(
            "x and y must be features [N, D] and [M, D] with at least two rows; "
            f"their shapes are {x.shape} and {y.shape}"
        )
    x, y = float_array(x), float_array(y)
    mean_x, mean_y = x.mean(0, keepdims=True), y.mean(0, keepdims=True)
    # Factors F with C = F^T F; tr (C_x^1/2 C_y C_x^1/2)^1/2 is the nuclear norm of
    # F_x F_y^T, which never squares small singular values away in float32.
    factor_x = jnp.linalg.qr((x - mean_x) / np.sqrt(len(x) - 1), mode="r")
    factor_y = jnp.linalg.qr((y - mean_y) / np.sqrt(len(y) - 1), mode="r")
    overlap = jnp.linalg.svd(factor_x @ factor_y.T, compute_uv=False).sum()
    spread = jnp.square(factor_x).sum() + jnp.square(factor_y).sum()
    gap = jnp.square(mean_x - mean_y).sum()
    return jnp.maximum(gap + spread - 2.0 * overlap, 0.0)


def sliced_wasserstein(
    key: Key, x: Array, y: Array, *, projections: int = 128, order: int = 2
) -> Array:
    """Return the sliced Wasserstein distance between two sets of samples.

    (E_u W_p(u.x, u.y)^p)^(1/p) over random unit vectors u, where W_p in one dimension
    compares sorted samples, exactly also for sets of different sizes
    (arXiv:1902.00434, eq. 9).

    Args:
      key: typed PRNG key, for the directions.
      x: samples [N, ...], flattened to [N, D].
      y: samples [M, ...] of the same size.
      projections: number of directions.
      order: the p of W_p.

    Returns:
      A scalar >= 0, in units of the samples.

    Raises:
      ValueError: if the samples have different sizes, or a count is not positive.

    >>> x = jax.random.normal(jax.random.key(0), (100, 1))
    >>> round(sliced_wasserstein(jax.random.key(1), x, x + 2.0).item(), 4)
    2.0
    """
    if x.ndim < 1 or x.shape[1:] != y.shape[1:] or min(x.size, y.size) == 0:
        raise ValueError(
            "x and y must be non-empty samples of one size, [N, ...] and [M, ...]; "
            f"their shapes are {x.shape} and {y.shape}"
        )
    if projections < 1 or order < 1:
        raise ValueError(
            f"projections and order must be positive; they are {projections}, {order}"
        )
    x = float_array(x).reshape(len(x), -1)
    y = float_array(y).reshape(len(y), -1)
    u = jax.random.normal(key, (x.shape[1], projections), x.dtype)
    u = u / jnp.linalg.norm(u, axis=0, keepdims=True)
    x, y = jnp.sort(x @ u, axis=0), jnp.sort(y @ u, axis=0)
    # Both quantile functions are constant between these levels.
    levels = np.union1d(np.arange(len(x) + 1) / len(x), np.arange(len(y) + 1) / len(y))
    middle, width = (levels[1:] + levels[:-1]) / 2, np.diff(levels)
    rows_x = (middle * len(x)).astype(int)
    rows_y = (middle * len(y)).astype(int)
    cost = jnp.abs(x[rows_x] - y[rows_y]) ** order
    return jnp.mean(jnp.asarray(width, cost.dtype) @ cost) ** (1.0 / order)
