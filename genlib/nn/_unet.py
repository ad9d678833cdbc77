"""The convolutional UNet of the ADM and EDM papers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._conditioning import Conditioning
from genlib.nn._layers import (
    ZEROS,
    check_halves,
    check_image,
    check_positive,
    check_rate,
    check_remat,
    keep_rows,
    recompute,
    split_key,
)
from genlib.nn._unet_block import UNetBlock, group_norm
from genlib.types import Array, Key, Scalar


class UNet(nnx.Module):
    """Map images, time and label to images with a convolutional UNet.

    Residual blocks (group norm, SiLU, 3x3 convolutions, scale and shift from the
    embedding of time and label) at `len(multipliers)` resolutions, each half the one
    before; every block of the way down is concatenated to one of the way up. Residual
    sums are scaled by `sqrt(1/2)`, and the last convolution of every branch and of the
    network starts at zero, so a new network returns 0.

    Args:
        in_channels: number of channels of the images.
        features: number of channels at multiplier 1.
        multipliers: channels of each level over `features`.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention_at: resolutions with self-attention after each block, as sides of the
            feature maps of an image of `image_size`: (16,) with 32-pixel images is the
            second level. The bottom of the UNet always has one attention.
        image_size: the image side to which `attention_at` refers; needed only with it.
            The network runs on any size that `2**(levels - 1)` divides.
        head_dim: channels per attention head.
        out_channels: number of channels of the result; None means `in_channels`.
        num_classes: number of classes, or None for a network without labels.
        dropout: dropout rate inside the blocks, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, for less memory: False
            nothing, True all, or the name of one of `jax.checkpoint_policies`.
        time_scale: factor on `t`, see `timestep_embedding`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, H, W, in_channels]`, `t` (scalar or `[B]`), `labels`
    (`[B]` or None, the null class) and `key` (for dropout, or None), and returns
    `[B, H, W, out_channels]` of the dtype of `x`.

    Raises:
        ValueError: if `multipliers` is empty, `blocks` or `head_dim` is not positive,
            `attention_at` names a resolution that the UNet does not have, the number
            of heads does not divide the channels, `dropout` is outside [0, 1) or
            `remat` names no policy, or when called with an `x` of another rank, channel
            count or indivisible size, or a `t` or `labels` that `Conditioning` refuses.

    Source: arXiv:2105.05233 (ADM), arXiv:2206.00364 (EDM).

    >>> def call(x, t):
    ...     model = UNet(3, 4, multipliers=(1, 1), blocks=1, rngs=nnx.Rngs(0))
    ...     return model(x, t)
    >>> jax.eval_shape(call, jnp.ones((1, 4, 6, 3)), 0.5).shape
    (1, 4, 6, 3)
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        *,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention_at: tuple[int, ...] = (),
        image_size: int | None = None,
        head_dim: int = 64,
        out_channels: int | None = None,
        num_classes: int | None = None,
        dropout: float = 0.0,
        remat: bool | str = False,
        time_scale: float = 1000.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rate(dropout)
        if not multipliers:
            raise ValueError("multipliers must name at least one level, got ()")
        check_positive(blocks=blocks, head_dim=head_dim)
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.in_channels = in_channels
        self.levels = len(multipliers)
        self.remat = check_remat(remat)
        attends = attending_levels(attention_at, image_size, self.levels)
        embedding = 4 * features
        self.condition = Conditioning(
            embedding, num_classes, time_scale=time_scale, **kwargs
        )
        block = functools.partial(
            UNetBlock, embedding=embedding, dropout=dropout, head_dim=head_dim, **kwargs
        )

        self.input = nnx.Conv(in_channels, features, (3, 3), **kwargs)
        width = features
        skips = [width]
        down, up = [], []
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                down.append(block(width, width, resample="down"))
                skips.append(width)
            for _ in range(blocks):
                channels = features * multiplier
                down.append(block(width, channels, attention=attends[level]))
                width = channels
                skips.append(width)
        self.down = nnx.List(down)
        self.middle = nnx.List(
            [block(width, width, attention=True), block(width, width)]
        )
        for level in reversed(range(self.levels)):
            if level < self.levels - 1:
                up.append(block(width, width, resample="up"))
            for _ in range(blocks + 1):
                channels = features * multipliers[level]
                up.append(
                    block(width + skips.pop(), channels, attention=attends[level])
                )
                width = channels
        self.up = nnx.List(up)
        self.norm = group_norm(width, **kwargs)
        self.output = nnx.Conv(
            width, out_channels or in_channels, (3, 3), kernel_init=ZEROS, **kwargs
        )

    def __call__(
        self,
        x: Array,
        t: Array | Scalar,
        labels: Array | None = None,
        key: Key | None = None,
    ) -> Array:
        check_image(x, self.in_channels)
        check_halves(x, self.levels)
        embedding = self.condition(t, labels, x.shape[0])
        count = len(self.down) + len(self.middle) + len(self.up)
        keys = iter(split_key(key, count))

        embedding = keep_rows(embedding)
        run = lambda block, h: recompute(block, self.remat)(
            keep_rows(h), embedding, next(keys)
        )

        h = self.input(x)
        skips = [h]
        for block in self.down:
            h = run(block, h)
            skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for block in self.up:
            if block.resample is None:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = run(block, h)
        return self.output(jax.nn.silu(self.norm(h))).astype(x.dtype)


def attending_levels(
    attention_at: tuple[int, ...], image_size: int | None, levels: int
) -> list[bool]:
    """Tell for each level whether it attends; refuse resolutions that no level has."""
    if not attention_at:
        return [False] * levels
    if image_size is None:
        raise ValueError("image_size must be given with attention_at, got None")
    resolutions = [image_size // 2**level for level in range(levels)]
    unknown = set(attention_at) - set(resolutions)
    if unknown:
        raise ValueError(
            f"attention_at must be among the resolutions {resolutions}, "
            f"got {sorted(unknown)}"
        )
    return [resolution in attention_at for resolution in resolutions]
