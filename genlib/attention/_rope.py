"""Rotary positions: pairs of features that turn with the position."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from genlib.attention._angles import angles, check_integers
from genlib.attention._frequencies import Frequencies
from genlib.types import Array, ArrayLike, compute_dtype

Layout = Literal["half", "interleaved"]


def rotate(
    x: Array,
    positions: ArrayLike,
    frequencies: Frequencies,
    *,
    layout: Layout = "half",
) -> Array:
    """Turn pairs of features of queries or keys by angles that are their position's.

        (a, b) -> f (a cos(p w) - b sin(p w), a sin(p w) + b cos(p w))

    A product of a query and a key, both turned, depends on the difference of their
    positions alone: to 2e-7 for unit vectors at any positions of 32 bits, as angles
    lose their whole turns exactly. Frequencies are constants: they get no gradient.

    Args:
      x: `[B, T, N, H]`.
      positions: integers `[T]` or `[B, T]`.
      frequencies: of r pairs, the first 2 r features; the others stay bit for bit.
      layout: what is a pair: features i and i + r ("half": Llama, GPT-NeoX), or
        2 i and 2 i + 1 ("interleaved": the paper, GPT-J, DeepSeek).

    Returns:
      Like `x`, computed in float32 (float64 for float64).

    Raises:
      ValueError: if x has not four axes or too few features, positions are not
        integers of its length, or the layout is neither.

    Source: arXiv:2104.09864, eq. 34.

    >>> from genlib.attention import rope_frequencies
    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotate(x, jnp.array([1]), rope_frequencies(2))[0, 0, 0].round(4).tolist()
    [0.5403000116348267, 0.8414999842643738]
    """
    places = check_positions(x, positions, 0)
    turned = angles(places, frequencies.inverse, compute_dtype(x.dtype))
    return turn(x, *cos_sin(turned, frequencies), layout)


def rotate_axial(
    x: Array,
    positions: ArrayLike,
    frequencies: Frequencies | Sequence[Frequencies],
    *,
    layout: Layout = "half",
) -> Array:
    """Turn pairs of features by positions of several axes, each pair by one of them.

    The pairs of the first axis come first, then those of the second, and so on; which
    features are pair i is said by `layout`, of all pairs together.

    Args:
      x: `[B, T, N, H]`.
      positions: integers `[T, axes]` or `[B, T, axes]`, as from `grid_positions`.
      frequencies: of every axis alike, or one for each.
      layout: as in `rotate`.

    Returns:
      Like `x`.

    Raises:
      ValueError: as `rotate`, or if there is not one of the frequencies for each axis.

    Source: arXiv:2403.13298 (axial frequencies).

    >>> from genlib.attention import rope_frequencies
    >>> x = jnp.ones((1, 6, 1, 8))
    >>> rotate_axial(x, grid_positions(2, 3), rope_frequencies(4)).shape
    (1, 6, 1, 8)
    """
    places = check_positions(x, positions, 1)
    axes = places.shape[-1]
    each = [frequencies] * axes if isinstance(frequencies, Frequencies) else frequencies
    if len(each) != axes:
        raise ValueError(
            f"frequencies must be one for each of {axes} axes, got {len(each)}"
        )
    dtype = compute_dtype(x.dtype)
    parts = [
        cos_sin(angles(places[..., axis], f.inverse, dtype), f)
        for axis, f in enumerate(each)
    ]
    cos, sin = (jnp.concatenate(x, -1) for x in zip(*parts, strict=True))
    return turn(x, cos, sin, layout)


def grid_positions(*lengths: int) -> np.ndarray:
    """Return the positions of the places of a grid, row by row.

    Args:
      *lengths: of each axis, as `height, width`.

    Returns:
      int32 `[product of lengths, axes]`.

    >>> grid_positions(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return np.indices(lengths, np.int32).reshape(len(lengths), -1).T


def cos_sin(turned: Array, frequencies: Frequencies) -> tuple[Array, Array]:
    """Return cosines and sines of angles, with the factor that both have."""
    return jnp.cos(turned) * frequencies.factor, jnp.sin(turned) * frequencies.factor


def turn(x: Array, cos: Array, sin: Array, layout: Layout) -> Array:
    """Turn pairs of features of `[B, T, N, H]`, given cosines `[B or 1, T, pairs]`."""
    count = cos.shape[-1]
    if 2 * count > x.shape[-1]:
        raise ValueError(
            f"frequencies must be of at most {x.shape[-1] // 2} pairs of features, got "
            f"{count}"
        )
    cos, sin = cos[:, :, None], sin[:, :, None]
    moved = x[..., : 2 * count].astype(cos.dtype)
    if layout == "half":
        a, b = jnp.split(moved, 2, -1)
    elif layout == "interleaved":
        a, b = moved[..., ::2], moved[..., 1::2]
    else:
        raise ValueError(f'layout must be "half" or "interleaved", got {layout!r}')
    pair = a * cos - b * sin, a * sin + b * cos
    if layout == "half":
        moved = jnp.concatenate(pair, -1)
    else:
        moved = jnp.stack(pair, -1).reshape(moved.shape)
    return jnp.concatenate([moved.astype(x.dtype), x[..., 2 * count :]], -1)


def check_positions(x: Array, positions: ArrayLike, axes: int) -> Array:
    """Return positions `[B or 1, T]` of x `[B, T, N, H]`, with more axes after them."""
    if jnp.ndim(x) != 4:
        raise ValueError(f"x must be [B, T, heads, features], got {jnp.shape(x)}")
    check_integers(positions)
    shape = jnp.shape(positions)
    if len(shape) == 1 + axes:
        shape = (1, *shape)
    if (
        len(shape) != 2 + axes
        or shape[0] not in (1, x.shape[0])
        or (shape[1] != x.shape[1])
    ):
        more = ", axes" if axes else ""
        raise ValueError(
            f"positions must be [{x.shape[1]}{more}] or [{x.shape[0]}, {x.shape[1]}"
            f"{more}], got {list(jnp.shape(positions))}"
        )
    return jnp.asarray(positions, jnp.int32).reshape(shape)
