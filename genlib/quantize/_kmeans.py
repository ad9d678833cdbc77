"""Codebooks fitted to a batch before training starts."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._codebook import codebook_statistics, draw_rows, unit
from genlib.quantize._nearest import METRICS, nearest
from genlib.quantize._quantizer import check_mask, check_vectors, without_masked
from genlib.types import Array, ArrayLike, Key, check_typed_key, concrete


def kmeans(
    key: Key,
    z: ArrayLike,
    size: int,
    *,
    steps: int = 10,
    metric: str = "euclidean",
    mask: ArrayLike | None = None,
    axis_name: Any = None,
) -> Array:
    """Fit a codebook to a batch, by Lloyd's algorithm from different vectors of it.

        c_k <- mean of the z_i whose nearest code is c_k,

    and with `metric` "cosine" these means and the vectors are scaled to length 1. A
    code that is nearest to none keeps its place. Vectors that are masked are no start:
    finding the others takes a cumulative sum of the mask and a binary search in it.
    The result is the same, up to rounding, however the batch is split over devices.

    Args:
      key: draws the start, the same on all devices.
      z: vectors [..., D].
      size: how many codes, K.
      steps: of the algorithm; 0 returns the start.
      metric: "euclidean" or "cosine".
      mask: bool [...], False for padding.
      axis_name: of `shard_map` or `pmap`.

    Returns:
      [K, D], in at least float32.

    Raises:
      ValueError: if `key` is no typed key, or there are known to be fewer than K
        vectors that are not masked. (If only a traced mask says so, some codes start
        from the same vector.)

    >>> z = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> jnp.sort(kmeans(jax.random.key(0), z, 2), 0).tolist()
    [[0.5], [10.5]]
    """
    check_typed_key(key)
    z = check_vectors(z)
    mask = check_mask(mask, z.shape[:-1])
    _check_enough(z, size, mask, axis_name)
    if steps < 0:
        raise ValueError(f"steps must not be negative; it is {steps}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}; it is {metric!r}")
    z = without_masked(z, mask)
    z = jax.lax.stop_gradient(unit(z) if metric == "cosine" else z)
    start = draw_rows(key, z.reshape(-1, z.shape[-1]), size, mask, axis_name)
    if axis_name is not None:
        start = jax.lax.psum(start, axis_name)

    def step(_: Any, codes: Array) -> Array:
        indices = nearest(codes, z, metric=metric)
        batch = codebook_statistics(z, indices, size, mask=mask, axis_name=axis_name)
        n = batch.n[:, None]
        mean = batch.sum / jnp.maximum(n, 1)
        return jnp.where(n > 0, unit(mean) if metric == "cosine" else mean, codes)

    return jax.lax.fori_loop(0, steps, step, start)


def _check_enough(z: Array, size: int, mask: Array | None, axis_name: Any) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1; it is {size}")
    found = z[..., 0].size
    known = None if mask is None else concrete(mask)
    if known is not None:
        found = known.sum()
    elif axis_name is not None:
        found *= jax.lax.axis_size(axis_name)
    if found < size:
        raise ValueError(
            f"z must have at least size = {size} vectors that are not masked, to be "
            f"where codes start; it has {found}"
        )
