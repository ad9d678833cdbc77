"""Layers that learn where to look: deformable convolution and attention."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from genlib.attention import deformable_attention, deformable_convolution
from genlib.nn._attention import check_tokens
from genlib.nn._layers import LECUN, ZEROS, check_image, check_positive
from genlib.types import Array, ArrayLike, Key

Pair = int | tuple[int, int]
XAVIER = nnx.initializers.xavier_uniform()


class DeformableConv(nnx.Module):
    """Convolve images with taps that move from place to place, as another says.

        offsets, m = conv_offset(x),    y = deformable_convolution(x, w, offsets, 2
        sigmoid(m)) + b

    `conv_offset` has the kernel size, strides, padding and dilation of the layer itself
    and starts at zero, where offsets are 0 and modulations 2 sigmoid(0) = 1: a new
    layer is a plain convolution.

    Args:
        in_channels: number of channels of the images.
        out_channels: number of channels of the result.
        kernel_size: a side, or height and width.
        strides: pixels between outputs.
        padding: "SAME", "VALID" or pairs, as of `attention.deformable_convolution`.
        dilation: pixels between taps.
        groups: groups of channels with a kernel of their own.
        offset_groups: groups of channels with offsets of their own.
        modulated: whether taps have a learned factor in 0 .. 2.
        use_bias: whether there is a bias b.
        init: initialiser of the kernel.
        dtype: dtype of the computation; offsets are computed in at least float32.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, H, W, in_channels]` and returns `[B, H', W',
    out_channels]` of the dtype of `x`.

    Raises:
        ValueError: if a size is not positive or groups do not divide the channels, or
            when called with an `x` of another rank or channel count.

    Source: arXiv:1703.06211, arXiv:1811.11168 (modulated; twice its sigmoid).

    >>> def call(x):
    ...     return DeformableConv(3, 4, 3, strides=2, rngs=nnx.Rngs(0))(x)
    >>> jax.eval_shape(call, jnp.ones((1, 4, 6, 3))).shape
    (1, 2, 3, 4)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        strides: Pair = 1,
        padding: str | Sequence[tuple[int, int]] = "SAME",
        dilation: Pair = 1,
        groups: int = 1,
        offset_groups: int = 1,
        modulated: bool = True,
        use_bias: bool = True,
        init: nnx.Initializer = LECUN,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sides = _pair(kernel_size)
        check_positive(in_channels=in_channels, out_channels=out_channels)
        check_positive(kernel_size=min(sides), groups=groups)
        check_positive(strides=min(_pair(strides)), dilation=min(_pair(dilation)))
        check_positive(offset_groups=offset_groups)
        for name, count, channels in (
            ("groups", groups, in_channels),
            ("groups", groups, out_channels),
            ("offset_groups", offset_groups, in_channels),
        ):
            if channels % count:
                raise ValueError(f"{name} must divide {channels} channels, got {count}")
        if not isinstance(padding, str):
            padding = tuple((low, high) for low, high in padding)
        self.in_channels = in_channels
        self.modulated = modulated
        self.dtype = dtype
        settings: dict[str, Any] = dict(
            strides=strides,
            padding=padding,
            dilation=dilation,
            groups=groups,
            offset_groups=offset_groups,
        )
        self.settings = tuple(settings.items())  # hashable, as modules are compared
        self.taps = offset_groups * sides[0] * sides[1]
        shape = (*sides, in_channels // groups, out_channels)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
        bias = jnp.zeros(out_channels, param_dtype)
        self.bias = nnx.Param(bias) if use_bias else None
        self.offset = nnx.Conv(
            in_channels,
            (3 if modulated else 2) * self.taps,
            sides,
            _pair(strides),
            padding=padding,
            kernel_dilation=_pair(dilation),
            kernel_init=ZEROS,
            dtype=jnp.promote_types(dtype, jnp.float32),
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: Array) -> Array:
        check_image(x, self.in_channels)
        offsets, logits = jnp.split(self.offset(x), [2 * self.taps], axis=-1)
        y = deformable_convolution(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            offsets,
            2 * jax.nn.sigmoid(logits) if self.modulated else None,
            **dict(self.settings),
        )
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)[None, None, None]
        return y.astype(x.dtype)


class DeformableAttention(nnx.Module):
    """Let queries look at a few learned places in every image of a pyramid.

        y_i = W_o sum over levels l, points p of a_ilp (W_v x_l)(r_il + offset_ilp)

    for each head, a the softmax over all levels and points of a linear function of the
    query and offset, in pixels of the level, another. That one starts with a zero
    matrix and biases that send each head in a direction of its own, point p by p pixels
    (p = 1, 2, ...); all weights start equal.

    Args:
        features: those of queries, values and the result.
        num_heads: number of heads, a divisor of `features`.
        levels: number of images L.
        points: places P for each head and level.
        init: initialiser of the matrices W_v and W_o.
        dtype: dtype of the computation; offsets are computed in at least float32.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `queries` `[B, T, features]`, `reference_points` `[B, T, L, 2]`
    (row, then column, as fractions of height and width) and `values`, for each level
    `[B, H_l, W_l, features]`, and returns `[B, T, features]` of the dtype of the
    queries.

    Raises:
        ValueError: if `num_heads` does not divide `features` or a size is not positive,
            or when called with arrays of other shapes.

    Source: arXiv:2010.04159, eq. 3.

    >>> def call(queries, reference_points, values):
    ...     layer = DeformableAttention(8, 2, levels=1, points=4, rngs=nnx.Rngs(0))
    ...     return layer(queries, reference_points, values)
    >>> shapes = jnp.ones((1, 5, 8)), jnp.ones((1, 5, 1, 2)), [jnp.ones((1, 4, 6, 8))]
    >>> jax.eval_shape(call, *shapes).shape
    (1, 5, 8)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        levels: int,
        points: int,
        init: nnx.Initializer = XAVIER,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive(features=features, levels=levels, points=points)
        if num_heads < 1 or features % num_heads:
            raise ValueError(
                f"num_heads must divide the {features} features, got {num_heads}"
            )
        self.features = features
        self.shape = (num_heads, levels, points)
        count = num_heads * levels * points
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        wide = jnp.promote_types(dtype, jnp.float32)
        linear = {"kernel_init": init, "dtype": dtype, **kwargs}
        zeros = {"kernel_init": ZEROS, "dtype": wide, **kwargs}
        self.value = nnx.Linear(features, features, **linear)
        self.offset = nnx.Linear(
            features, 2 * count, bias_init=_directions(*self.shape), **zeros
        )
        self.weight = nnx.Linear(features, count, **zeros)
        self.out = nnx.Linear(features, features, **linear)

    def __call__(
        self, queries: Array, reference_points: ArrayLike, values: Sequence[Array]
    ) -> Array:
        heads, levels, points = self.shape
        reference_points = jnp.asarray(reference_points)
        self._check(queries, reference_points, values)
        split = {"n": heads, "l": levels, "p": points}
        logits = rearrange(self.weight(queries), "b t (n x) -> b t n x", n=heads)
        weights = jax.nn.softmax(logits).reshape(*logits.shape[:3], levels, points)
        offsets = rearrange(
            self.offset(queries), "b t (n l p i) -> b t n l p i", i=2, **split
        )
        sides = jnp.array([value.shape[1:3] for value in values], offsets.dtype)
        centres = reference_points[:, :, None, :, None].astype(offsets.dtype)
        locations = centres + offsets / sides[None, None, None, :, None]
        images = [
            rearrange(self.value(value), "b h w (n d) -> b h w n d", n=heads)
            for value in values
        ]
        y = deformable_attention(images, locations, weights)
        return self.out(rearrange(y, "b t n d -> b t (n d)")).astype(queries.dtype)

    def _check(
        self, queries: Array, reference_points: Array, values: Sequence[Array]
    ) -> None:
        levels = self.shape[1]
        check_tokens("queries", queries, self.features)
        if reference_points.shape != (*queries.shape[:2], levels, 2):
            raise ValueError(
                f"reference_points must be {[*queries.shape[:2], levels, 2]}, got "
                f"shape {reference_points.shape}"
            )
        if len(values) != levels:
            raise ValueError(f"values must be {levels} images, got {len(values)}")
        for value in values:
            check_image(value, self.features, "values")


def _directions(heads: int, levels: int, points: int) -> nnx.Initializer:
    """Return the initialiser of offsets: on a square around the place, one per head."""
    angles = 2 * np.pi * np.arange(heads) / heads
    around = np.stack([np.sin(angles), np.cos(angles)], -1)
    around = around / np.abs(around).max(-1, keepdims=True)
    steps = np.arange(1, points + 1)[None, None, :, None] * around[:, None, None]
    bias = np.broadcast_to(steps, (heads, levels, points, 2)).reshape(-1)

    def init(key: Key, shape: Any, dtype: Any, out_sharding: Any = None) -> Array:
        return jnp.asarray(bias, dtype)

    return init


def _pair(size: Pair) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
