"""From nats per example to bits per dimension of integer data."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.types import Array, ArrayLike, Key, Scalar, concrete


def bits_per_dim(
    log_prob: ArrayLike, shape: Sequence[int], *, bin_width: Scalar = 1.0
) -> Array:
    """Turn the log-density of continuous data into bits per dimension.

        -log_prob / (D ln 2) - log2(bin_width),  D = prod(shape).

    On dequantized data the mean is a bound on the bits of the integers, from above
    (arXiv:1511.01844, sec. 3.1). `bin_width` is how far apart two levels are in the
    data that `log_prob` saw: 2 / 256 for 8-bit data in [-1, 1], which adds exactly 7;
    1 / 256 in [0, 1], which adds 8; 1 for data that was not scaled.

    Args:
      log_prob: nats of each example, of any shape.
      shape: shape of one example, without the batch.
      bin_width: distance of two levels in units of the data, positive.

    Returns:
      Bits per dimension, of the shape of `log_prob`.

    Raises:
      ValueError: if `shape` is empty of numbers or `bin_width` is not positive.

    >>> bits_per_dim(jnp.zeros(1), (32, 32, 3), bin_width=2 / 256).item()
    7.0
    """
    dimension = math.prod(shape)
    if dimension < 1:
        raise ValueError(f"shape must hold at least one number; it is {tuple(shape)}")
    width = concrete(bin_width)
    if width is not None and not (width.ndim == 0 and width > 0):
        raise ValueError(f"bin_width must be positive; it is {bin_width}")
    # On the host: the logarithm of a power of two is then exact.
    offset = jnp.log2(bin_width) if width is None else np.log2(width).item()
    return -jnp.asarray(log_prob) / (dimension * math.log(2.0)) - offset


def dequantize(
    key: Key,
    x: Array,
    *,
    levels: int = 256,
    low: Scalar = -1.0,
    high: Scalar = 1.0,
    dtype: Any = jnp.float32,
) -> Array:
    """Spread integer levels uniformly over their bins, and scale to [low, high).

        low + (high - low) (x + u) / levels,  u ~ U[0, 1),

    so that a density can be compared with the probability of the integers
    (arXiv:1511.01844, sec. 3.1). The `bin_width` of the result is
    (high - low) / levels.

    Args:
      key: typed PRNG key.
      x: integers in [0, levels), of any shape.
      levels: their number.
      low: lower end of the result.
      high: upper end of the result.
      dtype: dtype of the result, float32 or float64: others do not resolve the bins.

    Returns:
      Continuous data with the shape of `x`.

    Raises:
      ValueError: if `x` is not of integers, or holds others, or `dtype` is neither.

    >>> x = dequantize(jax.random.key(0), jnp.array([0, 128, 255]))
    >>> jnp.floor((x + 1) * 128).tolist()
    [0.0, 128.0, 255.0]
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"x must hold integers; its dtype is {x.dtype}")
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype must be float32 or float64; it is {jnp.dtype(dtype)}")
    values = concrete(x)
    if values is not None:
        values = values.astype(np.int64)  # small integers would wrap around
        outside = (values < 0) | (values >= levels)
        if outside.any():
            raise ValueError(
                f"x must be within [0, {levels}); it holds {values[outside][0]}"
            )
    u = jax.random.uniform(key, x.shape, dtype)
    at = lambda level: (low + (high - low) / levels * level).astype(dtype)
    level = x.astype(u.dtype)
    # Rounding may not carry it into the next bin.
    return jnp.minimum(at(level + u), jnp.nextafter(at(level + 1), at(level)))
