"""What the convolutional encoder and decoder share."""

from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

from genlib.nn._layers import (
    ZEROS,
    check_positive,
    check_rate,
    drop,
    keep_rows,
    recompute,
    split_key,
)
from genlib.nn._unet_block import ImageAttention, group_norm, resample
from genlib.types import Array, Key


class ResNetBlock(nnx.Module):
    """Residual block `[B, H, W, in] -> [B, H, W, out]`, perhaps with attention.

    Sums are plain, as in the weights of public autoencoders; the last convolution of
    every branch starts at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dropout: float,
        head_dim: int | None,
        attention: bool = False,
        **kwargs: Any,
    ):
        self.dropout = dropout
        self.norm_1 = group_norm(in_channels, **kwargs)
        self.conv_1 = nnx.Conv(in_channels, out_channels, (3, 3), **kwargs)
        self.norm_2 = group_norm(out_channels, **kwargs)
        self.conv_2 = nnx.Conv(
            out_channels, out_channels, (3, 3), kernel_init=ZEROS, **kwargs
        )
        self.skip = (
            nnx.Conv(in_channels, out_channels, (1, 1), **kwargs)
            if in_channels != out_channels
            else None
        )
        self.attention = (
            ImageAttention(out_channels, head_dim or out_channels, **kwargs)
            if attention
            else None
        )

    def __call__(self, x: Array, key: Key | None) -> Array:
        h = jax.nn.silu(self.norm_2(self.conv_1(jax.nn.silu(self.norm_1(x)))))
        h = self.conv_2(drop(key, h, self.dropout))
        h = h + (x if self.skip is None else self.skip(x))
        return h if self.attention is None else h + self.attention(h)


class Downsample(nnx.Conv):
    """Halve an image by a convolution with stride 2."""

    def __init__(self, channels: int, **kwargs: Any):
        # Public weights were trained with this padding, at the far edges only.
        edges = ((0, 1), (0, 1))
        super().__init__(channels, channels, (3, 3), strides=2, padding=edges, **kwargs)

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        return super().__call__(x)


class Upsample(nnx.Conv):
    """Double an image by copies of its pixels, and a convolution."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__(channels, channels, (3, 3), **kwargs)

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        return super().__call__(resample(x, "up"))


def check_convolutional(
    multipliers: tuple[int, ...],
    blocks: int,
    head_dim: int | None,
    dropout: float,
    **channels: int,
) -> None:
    """Refuse settings that neither network can have."""
    if not multipliers:
        raise ValueError("multipliers must name at least one level, got ()")
    heads = {} if head_dim is None else {"head_dim": head_dim}
    check_positive(blocks=blocks, **heads, **channels)
    check_rate(dropout)


def run_blocks(
    blocks: Iterable[Any], h: Array, key: Key | None, remat: bool | str
) -> Array:
    """Return what a row of blocks makes of h, each with a key of its own."""
    blocks = list(blocks)
    for block, block_key in zip(blocks, split_key(key, len(blocks)), strict=True):
        h = recompute(block, remat)(keep_rows(h), block_key)
    return h
