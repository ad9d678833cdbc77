"""Sampling an image at learned places: deformable convolution and attention."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from genlib.attention._scores import dot
from genlib.types import Array, compute_dtype

Pair = int | tuple[int, int]
Padding = str | Sequence[tuple[int, int]]


def bilinear_sample(x: Array, locations: Array) -> Array:
    """Interpolate images between their pixels, with zeros around them.

        sum over pixels p of max(0, 1 - |y - p_y|) max(0, 1 - |x - p_x|) image[p]

    Pixel (0, 0) is at location (0, 0). A location that is NaN gives NaN and changes
    nothing else, in gradients neither.

    Args:
      x: images `[B, H, W, C]`.
      locations: `[B, ..., 2]`: row and column in pixels, used in at least float32.

    Returns:
      `[B, ..., C]` in the dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes are others.

    Source: arXiv:1703.06211, eqs. 3 and 4.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> bilinear_sample(x, jnp.array([[[0.5, 0.5], [1.0, 1.5]]]))[0, :, 0].tolist()
    [1.5, 1.5]
    """
    _check_floating("x", x, (None,) * 4)
    inner = (None,) * (jnp.ndim(locations) - 2)
    _check_floating("locations", locations, (x.shape[0], *inner, 2))
    return _nan_where(locations, _sample(x, locations), x.dtype)


def _sample(x: Array, locations: Array) -> Array:
    """Return samples in at least float32, 0 where a location is NaN."""
    batch, height, width, channels = x.shape
    wide = compute_dtype(jnp.promote_types(x.dtype, locations.dtype))
    if not height * width:
        return jnp.zeros((*locations.shape[:-1], channels), wide)
    points = locations.reshape(batch, -1, 2).astype(wide)
    # Wide, as gradients of pixels add up over locations.
    rows = x.reshape(batch, -1, channels).astype(wide)
    row, column = points[..., 0], points[..., 1]
    inside = (row > -1) & (row < height) & (column > -1) & (column < width)
    row, column = (jnp.where(inside, axis, 0.0) for axis in (row, column))
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = row - top, column - left
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    total = jnp.zeros((), wide)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        p, q = top + i, left + j
        valid = inside & (p >= 0) & (p < height) & (q >= 0) & (q < width)
        pixels = jax.vmap(lambda image, at: image[at])(
            rows, jnp.where(valid, p * width + q, 0)
        )
        weight = (down if i else 1 - down) * (right if j else 1 - right)
        total = total + jnp.where(valid[..., None], pixels, 0.0) * weight[..., None]
    return total.reshape(*locations.shape[:-1], channels)


def deformable_convolution(
    x: Array,
    kernel: Array,
    offsets: Array,
    modulation: Array | None = None,
    *,
    strides: Pair = 1,
    padding: Padding = "SAME",
    dilation: Pair = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> Array:
    """Convolve images with a kernel whose taps are moved at every place.

        y[p] = sum_k w_k m_k(p) x(p + p_k + offset_k(p))

    p_k are the taps of a usual convolution, which this is where offsets are 0 and
    modulations 1; x between pixels is that of `bilinear_sample`.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[kh, kw, C / groups, O]`, of the dtype of `x`.
      offsets: `[B, H', W', offset_groups * kh * kw * 2]` in pixels: for each group of
        channels and each tap (row by row) that of rows, then that of columns. They are
        used in at least float32.
      modulation: factors m `[B, H', W', offset_groups * kh * kw]`; None is 1.
      strides: pixels between outputs.
      padding: "SAME", "VALID" or how many zeros are around, `((low, high), (low,
        high))`.
      dilation: pixels between taps.
      groups: groups of channels with a kernel of their own.
      offset_groups: groups of channels with offsets of their own.

    Returns:
      `[B, H', W', O]` in the dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes do not fit, or strides or dilation are not
        positive.

    Source: arXiv:1703.06211, eq. 2; arXiv:1811.11168, eq. 1 (modulation).

    >>> x = jnp.arange(4.0).reshape(1, 1, 4, 1)
    >>> offsets = jnp.zeros((1, 1, 4, 2)).at[..., 1].set(0.5)
    >>> deformable_convolution(x, jnp.ones((1, 1, 1, 1)), offsets)[0, 0, :, 0].tolist()
    [0.5, 1.5, 2.5, 1.5]
    """
    _check_floating("x", x, (None,) * 4)
    channels = x.shape[-1]
    _check_divides("groups", groups, channels)
    _check_divides("offset_groups", offset_groups, channels)
    _check_floating("kernel", kernel, (None, None, channels // groups, None))
    _check_divides("groups", groups, kernel.shape[-1])
    if kernel.dtype != x.dtype:
        raise ValueError(f"kernel must be {x.dtype} as x is, got {kernel.dtype}")
    for name, steps in (("strides", strides), ("dilation", dilation)):
        if min(_pair(steps)) < 1:
            raise ValueError(f"{name} must be positive, got {steps}")
    taps = _taps(x, kernel, _pair(strides), padding, _pair(dilation))
    shape = (x.shape[0], *taps.shape[:2])
    count = offset_groups * taps.shape[2]
    _check_floating("offsets", offsets, (*shape, 2 * count))
    wide = compute_dtype(jnp.promote_types(x.dtype, offsets.dtype))
    moves = rearrange(offsets, "b h w (g k i) -> (b g) h w k i", g=offset_groups, i=2)
    images = rearrange(x, "b h w (g c) -> (b g) h w c", g=offset_groups)
    columns = _sample(images, taps[None].astype(wide) + moves.astype(wide))
    if modulation is not None:
        _check_floating("modulation", modulation, (*shape, count))
        factors = rearrange(modulation, "b h w (g k) -> (b g) h w k", g=offset_groups)
        columns = columns * factors[..., None].astype(columns.dtype)
    columns = rearrange(
        columns.astype(x.dtype), "(b g) h w k c -> b h w k (g c)", g=offset_groups
    )
    columns = rearrange(columns, "b h w k (g c) -> b h w k g c", g=groups)
    matrix = rearrange(kernel, "i j c (g o) -> (i j) c g o", g=groups)
    y = dot("bhwkgc,kcgo->bhwgo", columns, matrix)
    return _nan_where(offsets, rearrange(y, "b h w g o -> b h w (g o)"), x.dtype)


def _taps(
    x: Array,
    kernel: Array,
    strides: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
) -> Array:
    """Return where the taps of a convolution are, `[H', W', kh * kw, 2]`."""
    sides, sizes = x.shape[1:3], kernel.shape[:2]
    spans = tuple((k - 1) * d + 1 for k, d in zip(sizes, dilation, strict=True))
    if isinstance(padding, str) and padding in ("SAME", "VALID"):
        padding = jax.lax.padtype_to_pads(sides, spans, strides, padding)
    if isinstance(padding, str) or np.shape(padding) != (2, 2):
        raise ValueError(
            'padding must be "SAME", "VALID" or a pair for rows and one for columns, '
            f"got {padding!r}"
        )
    axes = []
    for side, size, span, stride, step, (low, high) in zip(
        sides, sizes, spans, strides, dilation, padding, strict=True
    ):
        count = max(0, (side + low + high - span) // stride + 1)
        outputs = jnp.arange(count) * stride - low
        axes.append(outputs[:, None] + jnp.arange(size)[None] * step)
    rows, columns = axes
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    places = jnp.stack(jnp.broadcast_arrays(rows, columns), -1)
    return places.reshape(*places.shape[:2], -1, 2)


def deformable_attention(
    values: Sequence[Array], locations: Array, weights: Array
) -> Array:
    """Sum values at a few places of every image of a pyramid, for each query and head.

        o = sum over levels l and points p of weight_lp value_l(location_lp)

    Values between pixels are those of `bilinear_sample`, with zeros around the images.

    Args:
      values: for each level `[B, H_l, W_l, N, D]`, whatever its height and width.
      locations: `[B, T, N, L, P, 2]`: row, then column (published code has them the
        other way round), as fractions of height and width: (0, 0) is the outer corner
        of the first pixel, (1, 1) that of the last. Used in at least float32.
      weights: `[B, T, N, L, P]`, usually of sum 1 over L and P.

    Returns:
      `[B, T, N, D]` in the dtype of the values.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Source: arXiv:2010.04159, eq. 3.

    >>> values = [jnp.ones((1, 4, 6, 2, 3)), jnp.ones((1, 2, 3, 2, 3))]
    >>> middle, weights = jnp.full((1, 5, 2, 2, 4, 2), 0.5), jnp.ones((1, 5, 2, 2, 4))
    >>> deformable_attention(values, middle, weights / 8)[0, 0, 0].tolist()
    [1.0, 1.0, 1.0]
    """
    if not values:
        raise ValueError("values must have at least one level")
    for value in values:
        _check_floating("values", value, (None,) * 5)
        batch, _, _, heads, features = values[0].shape
        _check_floating("values", value, (batch, None, None, heads, features))
    _check_floating("locations", locations, (batch, None, heads, len(values), None, 2))
    _check_floating("weights", weights, locations.shape[:-1])
    wide = compute_dtype(jnp.promote_types(values[0].dtype, locations.dtype))
    places = rearrange(locations, "b t n l p i -> l (b n) t p i").astype(wide)
    parts = []
    for value, place in zip(values, places, strict=True):
        images = rearrange(value, "b h w n d -> (b n) h w d")
        sides = jnp.array(value.shape[1:3], wide)[None, None, None]
        parts.append(_sample(images, place * sides - 0.5))
    found = rearrange(jnp.stack(parts), "l (b n) t p d -> b t n l p d", b=batch)
    out = dot("btnlpd,btnlp->btnd", found, weights.astype(found.dtype))
    places = locations.reshape(*locations.shape[:3], -1)
    return _nan_where(places, out, values[0].dtype)


def _nan_where(places: Array, y: Array, dtype: DTypeLike) -> Array:
    """Return results with NaN where one of the last axis of `places` is.

    Not before: products with NaN would spoil the gradients of everything else.
    """
    return jnp.where(jnp.isnan(places).any(-1)[..., None], jnp.nan, y).astype(dtype)


def _pair(size: Pair) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_divides(name: str, count: int, channels: int) -> None:
    if count < 1 or channels % count:
        raise ValueError(f"{name} must divide the {channels} channels, got {count}")


def _check_floating(name: str, x: Array, shape: tuple[int | None, ...]) -> None:
    """Refuse what is not floating, or of another shape where that is not None."""
    fits = jnp.ndim(x) == len(shape) and all(
        size in (None, is_) for size, is_ in zip(shape, jnp.shape(x), strict=True)
    )
    if not fits or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        want = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} must be floating of shape [{want}], got {jnp.result_type(x)} of "
            f"shape {list(jnp.shape(x))}"
        )
