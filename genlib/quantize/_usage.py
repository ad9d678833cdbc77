"""How much of a codebook is used."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._quantizer import check_indices, check_mask
from genlib.types import Array, ArrayLike


def histogram(
    indices: ArrayLike,
    size: int,
    *,
    mask: ArrayLike | None = None,
    axis_name: Any = None,
) -> Array:
    """Count how often each index occurs.

    Args:
      indices: integers [...]; -1, for no code, is not counted.
      size: how many values an index can have, K.
      mask: bool [...], False for what is not counted.
      axis_name: of `shard_map` or `pmap`, to count over all devices.

    Returns:
      Counts, float32 [K] (exact up to 2^24). Histograms of batches add up.

    Raises:
      ValueError: if `indices` are no integers, or known not to be below `size` (traced
        ones that are not are not counted), or `size` is less than 1.

    >>> histogram(jnp.array([2, 0, 2, -1]), 4)
    Array([1., 0., 2., 0.], dtype=float32)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1; it is {size}")
    indices = check_indices(indices, size)
    mask = check_mask(mask, indices.shape)
    counted = indices >= 0 if mask is None else (indices >= 0) & mask
    # Sums of what is not counted go to the row after the last, which does not exist.
    index = jnp.where(counted, indices, size).ravel()
    # As integers: a float32 count would stay at 2^24.
    counts = jnp.zeros(size, jnp.int32).at[index].add(1, mode="drop").astype("float32")
    return counts if axis_name is None else jax.lax.psum(counts, axis_name)


def perplexity(counts: ArrayLike) -> Array:
    """Return exp of the entropy of a histogram: how many codes are used evenly.

    perplexity = exp(-sum_k p_k ln p_k) with p = counts / sum(counts).

    Args:
      counts: not negative, [..., K].

    Returns:
      From 1 to K, float32 [...]; 0 if nothing was counted.

    >>> perplexity(jnp.array([5.0, 5.0, 0.0]))
    Array(2., dtype=float32)
    """
    counts = jnp.asarray(counts, jnp.float32)
    total = counts.sum(-1, keepdims=True)
    p = counts / jnp.where(total == 0, 1, total)
    entropy = -jax.scipy.special.xlogy(p, p).sum(-1)
    return jnp.where(total[..., 0] == 0, 0, jnp.exp(entropy))


def usage(counts: ArrayLike) -> Array:
    """Return the share of codes that occur in a histogram [..., K]: float32 [...].

    >>> usage(jnp.array([5.0, 5.0, 0.0, 0.0]))
    Array(0.5, dtype=float32)
    """
    return jnp.mean(jnp.asarray(counts) > 0, axis=-1, dtype=jnp.float32)
