"""The discriminator that judges patches."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._layers import check_image, check_positive, keep_rows
from genlib.nn._unet_block import group_norm
from genlib.types import Array

NORMAL = nnx.initializers.normal(0.02)


class PatchDiscriminator(nnx.Module):
    """Map images to maps of logits, one for each of many patches that overlap.

    `layers` 4x4 convolutions with stride 2 and twice the channels each, at most eight
    times `features`; two more with stride 1, the last to one channel. Leaky ReLU (slope
    0.2) after all but the last, and a norm before it in all but the first. A logit sees
    16, 34 and 70 pixels to a side for 1, 2 and 3 layers.

    The papers' batch norm is not offered: it lets one example's logits depend on the
    others', so that a gradient penalty would not be per example, and on how a batch is
    split over devices.

    Args:
        in_channels: number of channels of the images.
        features: number of channels after the first convolution.
        layers: number of convolutions with stride 2.
        norm: "group", or None.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, H, W, in_channels]` and returns logits `[B, h, w, 1]` of
    the dtype of `x`, with `h = H // 2**layers - 2` and `w` alike; the losses of
    `genlib.losses` average over them.

    Raises:
        ValueError: if `features` or `layers` is not positive or `norm` is another, or
            when called with an `x` of another rank or channel count or too small for a
            single logit.

    Source: arXiv:1611.07004.

    >>> def call(x):
    ...     return PatchDiscriminator(3, 8, layers=2, rngs=nnx.Rngs(0))(x)
    >>> jax.eval_shape(call, jnp.ones((1, 16, 32, 3))).shape
    (1, 2, 6, 1)
    """

    def __init__(
        self,
        in_channels: int,
        features: int = 64,
        *,
        layers: int = 3,
        norm: Literal["group"] | None = "group",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive(features=features, layers=layers)
        if norm not in ("group", None):
            raise ValueError(f"norm must be 'group' or None, got {norm!r}")
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.in_channels = in_channels
        widths = [features * min(2**layer, 8) for layer in range(layers + 1)]
        convs, norms = [], []
        for layer, (before, width) in enumerate(
            zip([in_channels, *widths], [*widths, 1], strict=True)
        ):
            normed = norm is not None and 0 < layer <= layers
            conv = nnx.Conv(
                before,
                width,
                (4, 4),
                strides=2 if layer < layers else 1,
                padding=1,
                use_bias=not normed,
                kernel_init=NORMAL,
                **kwargs,
            )
            convs.append(conv)
            if normed:
                norms.append(group_norm(width, **kwargs))
        self.layers = layers
        self.convs = nnx.List(convs)
        self.norms = nnx.List(norms)

    def __call__(self, x: Array) -> Array:
        check_image(x, self.in_channels)
        least = 3 * 2**self.layers
        if min(x.shape[1:3]) < least:
            raise ValueError(
                f"x must have a height and width of at least {least} for {self.layers} "
                f"layers, got shape {x.shape}"
            )
        h = keep_rows(self.convs[0](x))
        for layer, conv in enumerate(self.convs[1:]):
            if layer > 0 and self.norms:
                h = self.norms[layer - 1](h)
            h = conv(jax.nn.leaky_relu(h, 0.2))
        return h.astype(x.dtype)
