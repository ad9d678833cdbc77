"""Angles of positions, as exact at a million as at one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.attention._frequencies import rope_frequencies
from genlib.types import Array, ArrayLike


def angles(positions: ArrayLike, inverse: Any, dtype: Any) -> Array:
    """Return `positions * inverse`, less whole turns, `[..., pairs]`.

    In float32 the product of a position and a frequency is wrong by whole turns where
    positions are large. So frequencies are turns in 64 bits after the point, and the
    product is one of integers, which forgets whole turns by itself: what is left is
    exact to 2e-7, at all positions of 32 bits.

    Args:
      positions: integers of any shape.
      inverse: radians `[pairs]`.
      dtype: float32, or float64, where the plain product is exact enough.
    """
    places = jnp.asarray(positions)[..., None]
    shape = (1,) * (places.ndim - 1) + (-1,)
    if dtype == jnp.float64:
        return places.astype(dtype) * jnp.asarray(inverse, dtype).reshape(shape)
    numpy = jnp if isinstance(inverse, jax.Array) else np
    turns = inverse / (2 * np.pi)
    turns = (turns - numpy.floor(turns)) * 2.0**32
    whole = numpy.floor(turns)
    words = (whole, numpy.floor((turns - whole) * 2.0**32))
    high, low = (jnp.asarray(x.astype(np.uint32)).reshape(shape) for x in words)
    count = places.astype(jnp.int32)
    carry = _product_high(count.astype(jnp.uint32), low)
    carry = jnp.where(count < 0, carry - low, carry)  # unsigned, they are 2**32 more
    phase = count.astype(jnp.uint32) * high + carry
    signed = jax.lax.bitcast_convert_type(phase, jnp.int32)
    return signed.astype(dtype) * np.asarray(2 * np.pi / 2.0**32, dtype)


def _product_high(x: Array, y: Array) -> Array:
    """Return the upper 32 of the 64 bits of a product."""
    half, mask = np.uint32(16), np.uint32(0xFFFF)
    middle = (x >> half) * (y & mask) + ((x & mask) * (y & mask) >> half)
    other = (x & mask) * (y >> half) + (middle & mask)
    return (x >> half) * (y >> half) + (middle >> half) + (other >> half)


def sinusoidal_positions(
    positions: ArrayLike, features: int, base: float = 10_000.0
) -> Array:
    """Return the sines and cosines that are added to embeddings.

        e_(p, 2i) = sin(p base**(-2i / d)),   e_(p, 2i + 1) = cos(p base**(-2i / d))

    Args:
      positions: integers of any shape `[...]`.
      features: d, even.
      base: the longest period is nearly `2 pi base` positions.

    Returns:
      `[..., features]` in float32 (float64 under x64), exact to 3e-7 at all positions.

    Raises:
      ValueError: if `features` is not even and positive, `base` not positive, or
        `positions` are no integers.

    Source: arXiv:1706.03762, section 3.5.

    >>> sinusoidal_positions(0, 4).tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    check_integers(positions)
    dtype = jax.dtypes.canonicalize_dtype(float)
    turned = angles(positions, rope_frequencies(features, base).inverse, dtype)
    pairs = jnp.stack([jnp.sin(turned), jnp.cos(turned)], -1)
    return pairs.reshape(*turned.shape[:-1], features)


def check_integers(positions: ArrayLike) -> None:
    """Raise a ValueError unless positions are integers."""
    kind = jnp.result_type(positions)
    if not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(
            f"positions must be integers, got {kind}; for fractions of them scale the "
            "frequencies"
        )
