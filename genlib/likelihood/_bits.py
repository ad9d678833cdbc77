"""From nats per example to bits per dimension of integer data."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from genlib.types import Array, ArrayLike, Scalar, check_positive, concrete


def bits_per_dim(
    log_prob: ArrayLike,
    shape: Sequence[int],
    *,
    bin_width: Scalar | None = None,
    levels: int | None = None,
    low: Scalar | None = None,
    high: Scalar | None = None,
) -> Array:
    """Turn the log-density of continuous data into bits per dimension.

        -log_prob / (D ln 2) - log2(bin_width),  D = prod(shape).

    On dequantized data the mean is a bound on the bits of the integers, from above
    (arXiv:1511.01844, sec. 3.1). `bin_width` is how far apart two levels are in the
    data that `log_prob` saw: 2 / 256 for 8-bit data in [-1, 1], which adds exactly 7;
    1 / 256 in [0, 1], which adds 8; 1 for data that was not scaled, and for flows that
    dequantize by a layer of their own. Instead of it, the three numbers of `dequantize`
    may be given: bin_width = (high - low) / levels.

    Args:
      log_prob: nats of each example, of any shape.
      shape: shape of one example, without the batch.
      bin_width: distance of two levels in units of the data, positive; 1 by default.
      levels: their number, instead of `bin_width`.
      low: lower end of the data, with `levels`; -1 by default.
      high: upper end of the data, with `levels`; 1 by default.

    Returns:
      Bits per dimension, of the shape of `log_prob`.

    Raises:
      ValueError: if `shape` is empty of numbers, a bin is not positive, or `bin_width`
        and `levels` are both given, or ends without `levels`.

    >>> bits_per_dim(jnp.zeros(1), (32, 32, 3), bin_width=2 / 256).item()
    7.0
    >>> bits_per_dim(jnp.zeros(1), (784,), levels=256, low=0.0, high=1.0).item()
    8.0
    """
    dimension = math.prod(shape)
    if dimension < 1:
        raise ValueError(f"shape must hold at least one number; it is {tuple(shape)}")
    if levels is not None:
        if bin_width is not None:
            raise ValueError(
                f"bin_width must not be given beside levels {levels}; it is {bin_width}"
            )
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
        check_positive("levels", levels)
        check_positive("high - low", high - low)
        bin_width = (high - low) / levels
    elif low is not None or high is not None:
        raise ValueError(f"levels must be given with low {low} and high {high}")
    bin_width = 1.0 if bin_width is None else bin_width
    width = concrete(bin_width)
    if width is not None and not (width.ndim == 0 and width > 0):
        raise ValueError(f"bin_width must be positive; it is {bin_width}")
    # On the host: the logarithm of a power of two is then exact.
    offset = jnp.log2(bin_width) if width is None else np.log2(width).item()
    return -jnp.asarray(log_prob) / (dimension * math.log(2.0)) - offset
