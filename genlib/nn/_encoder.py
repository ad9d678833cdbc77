"""The convolutional encoder of latent diffusion."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._autoencoder_parts import (
    Downsample,
    ResNetBlock,
    check_convolutional,
    run_blocks,
)
from genlib.nn._layers import check_halves, check_image, check_remat
from genlib.nn._unet import attending_levels
from genlib.nn._unet_block import group_norm
from genlib.types import Array, Key


class ConvEncoder(nnx.Module):
    """Map images to maps of features that are smaller, with a convolutional network.

    Residual blocks (group norm, SiLU, 3x3 convolutions, twice) at `len(multipliers)`
    resolutions, each half the one before by a convolution with stride 2; then a block,
    self-attention and a block, group norm, SiLU and a 3x3 convolution. The last
    convolution of every branch starts at zero.

    With `(3, 128, 8, multipliers=(1, 2, 4, 4))` it is the encoder of latent diffusion
    at f = 8 (KL-f8): `out_channels` are mean and log-variance of four channels, before
    the 1x1 convolution that follows there.

    Args:
        in_channels: number of channels of the images.
        features: number of channels at multiplier 1.
        out_channels: number of channels of the result.
        multipliers: channels of each level over `features`.
        blocks: residual blocks per level.
        attention_at: resolutions with self-attention after each block, as sides of the
            feature maps of an image of `image_size`.
        image_size: the image side to which `attention_at` refers; needed only with it.
            The network runs on any size that `2**(levels - 1)` divides.
        middle_attention: whether there is attention between the last two blocks. It is
            over all pixels at once, the only part that is not local.
        head_dim: channels per attention head; None means one head.
        dropout: dropout rate inside the blocks, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, as of `UNet`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, H, W, in_channels]` and `key` (for dropout, or None), and
    returns `[B, H / f, W / f, out_channels]` of the dtype of `x`, with
    `f = 2**(levels - 1)`.

    Raises:
        ValueError: if `multipliers` is empty, a number of channels, `blocks` or
            `head_dim` is not positive, `attention_at` names a resolution that there is
            not, the number of heads does not divide the channels, `dropout` is outside
            [0, 1) or `remat` names no policy, or when called with an `x` of another
            rank, channel count or indivisible size.

    Source: arXiv:2112.10752 (latent diffusion), arXiv:2012.09841 (VQGAN).

    >>> def call(x):
    ...     return ConvEncoder(3, 4, 2, multipliers=(1, 2), rngs=nnx.Rngs(0))(x)
    >>> jax.eval_shape(call, jnp.ones((1, 4, 6, 3))).shape
    (1, 2, 3, 2)
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        out_channels: int,
        *,
        multipliers: tuple[int, ...] = (1, 2, 4),
        blocks: int = 2,
        attention_at: tuple[int, ...] = (),
        image_size: int | None = None,
        middle_attention: bool = True,
        head_dim: int | None = None,
        dropout: float = 0.0,
        remat: bool | str = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {"features": features, "out_channels": out_channels}
        check_convolutional(multipliers, blocks, head_dim, dropout, **sizes)
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.in_channels = in_channels
        self.levels = len(multipliers)
        self.remat = check_remat(remat)
        attends = attending_levels(attention_at, image_size, self.levels)
        block = functools.partial(
            ResNetBlock, dropout=dropout, head_dim=head_dim, **kwargs
        )

        self.input = nnx.Conv(in_channels, features, (3, 3), **kwargs)
        width = features
        down = []
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                down.append(Downsample(width, **kwargs))
            for _ in range(blocks):
                channels = features * multiplier
                down.append(block(width, channels, attention=attends[level]))
                width = channels
        self.down = nnx.List(down)
        self.middle = nnx.List(
            [block(width, width, attention=middle_attention), block(width, width)]
        )
        self.norm = group_norm(width, **kwargs)
        self.output = nnx.Conv(width, out_channels, (3, 3), **kwargs)

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        check_image(x, self.in_channels)
        check_halves(x, self.levels)
        h = run_blocks([*self.down, *self.middle], self.input(x), key, self.remat)
        return self.output(jax.nn.silu(self.norm(h))).astype(x.dtype)
