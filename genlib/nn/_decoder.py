"""The convolutional decoder of latent diffusion."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._autoencoder_parts import (
    ResNetBlock,
    Upsample,
    check_convolutional,
    run_blocks,
)
from genlib.nn._layers import check_image, check_remat
from genlib.nn._unet import attending_levels
from genlib.nn._unet_block import group_norm
from genlib.types import Array, Key


class ConvDecoder(nnx.Module):
    """Map maps of features to larger images with a convolutional network.

    `ConvEncoder` the other way round: a 3x3 convolution, a block, self-attention and a
    block; then `blocks + 1` residual blocks at each resolution, each twice the one
    before by copies of the pixels and a convolution; group norm, SiLU and a 3x3
    convolution. The last convolution of every branch starts at zero.

    With `(4, 128, 3, multipliers=(1, 2, 4, 4))` it is the decoder of latent diffusion
    at f = 8 (KL-f8), after the 1x1 convolution that comes first there.

    Args:
        in_channels: number of channels of the latents.
        features: number of channels at multiplier 1.
        out_channels: number of channels of the images.
        multipliers: channels of each level over `features`, from the images to the
            latents: the same as those of the encoder.
        blocks: residual blocks per level of the encoder; here there is one more.
        attention_at: resolutions with self-attention after each block, as sides of the
            feature maps of an image of `image_size`.
        image_size: the image side to which `attention_at` refers; needed only with it.
            The network runs on latents of any size.
        middle_attention: whether there is attention between the first two blocks. It is
            over all places at once, the only part that is not local.
        head_dim: channels per attention head; None means one head.
        dropout: dropout rate inside the blocks, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, as of `UNet`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `z` `[B, h, w, in_channels]` and `key` (for dropout, or None), and
    returns `[B, h f, w f, out_channels]` of the dtype of `z`, with
    `f = 2**(levels - 1)`.

    Raises:
        ValueError: if `multipliers` is empty, a number of channels, `blocks` or
            `head_dim` is not positive, `attention_at` names a resolution that there is
            not, the number of heads does not divide the channels, `dropout` is outside
            [0, 1) or `remat` names no policy, or when called with a `z` of another rank
            or channel count.

    Source: arXiv:2112.10752 (latent diffusion), arXiv:2012.09841 (VQGAN).

    >>> def call(z):
    ...     return ConvDecoder(2, 4, 3, multipliers=(1, 2), rngs=nnx.Rngs(0))(z)
    >>> jax.eval_shape(call, jnp.ones((1, 2, 3, 2))).shape
    (1, 4, 6, 3)
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
        self.remat = check_remat(remat)
        levels = len(multipliers)
        attends = attending_levels(attention_at, image_size, levels)
        block = functools.partial(
            ResNetBlock, dropout=dropout, head_dim=head_dim, **kwargs
        )

        width = features * multipliers[-1]
        self.input = nnx.Conv(in_channels, width, (3, 3), **kwargs)
        self.middle = nnx.List(
            [block(width, width, attention=middle_attention), block(width, width)]
        )
        up = []
        for level in reversed(range(levels)):
            if level < levels - 1:
                up.append(Upsample(width, **kwargs))
            for _ in range(blocks + 1):
                channels = features * multipliers[level]
                up.append(block(width, channels, attention=attends[level]))
                width = channels
        self.up = nnx.List(up)
        self.norm = group_norm(width, **kwargs)
        self.output = nnx.Conv(width, out_channels, (3, 3), **kwargs)

    def __call__(self, z: Array, key: Key | None = None) -> Array:
        check_image(z, self.in_channels, "z")
        h = run_blocks([*self.middle, *self.up], self.input(z), key, self.remat)
        return self.output(jax.nn.silu(self.norm(h))).astype(z.dtype)
