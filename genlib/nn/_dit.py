"""The diffusion transformer: attention over patches, adaLN-zero."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._blocks import TransformerBlock
from genlib.nn._conditioning import Conditioning
from genlib.nn._layers import (
    ZEROS,
    check_image,
    check_positive,
    check_rate,
    check_remat,
    keep_rows,
    modulate,
)
from genlib.nn._patches import patchify, unpatchify
from genlib.nn._sinusoids import position_embedding
from genlib.nn._stack import run_blocks
from genlib.types import Array, Key, Scalar

XAVIER = nnx.initializers.xavier_uniform()


class DiT(nnx.Module):
    """Map images, time and label to images with a transformer over patches.

    In each block, with scales, shifts and gates linear in the embedding of time and
    label and zero at the start (adaLN-zero):
    `h <- h + gate_1 attention(norm(h) (1 + scale_1) + shift_1)`, then
    `h <- h + gate_2 mlp(norm(h) (1 + scale_2) + shift_2)`. A new network returns 0.

    The parameters of all blocks are stacked on a first axis of length `depth` and the
    blocks run under `jax.lax.scan`: compile time does not grow with depth. Positions
    are sinusoids of the patch coordinates, so any image size that the patch size
    divides works, square or not.

    Args:
        in_channels: number of channels of the images.
        features: width of the transformer, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        patch_size: side of a patch in pixels.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLPs over `features`.
        out_channels: number of channels of the result; None means `in_channels`.
        num_classes: number of classes, or None for a network without labels.
        dropout: dropout rate inside the MLPs, used only in calls that pass a key.
        qk_norm: whether queries and keys are normalised, as of `Attention`.
        impl: what computes attention, as of `Attention`. Losses that take a `jvp`
            (`losses.mean_flow`) need "naive" where there are more than 512 patches.
        remat: what the backward pass recomputes of each block, for less memory: False
            nothing, True all, or the name of one of `jax.checkpoint_policies`, such as
            "dots_with_no_batch_dims_saveable".
        time_scale: factor on `t`, see `timestep_embedding`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, H, W, in_channels]`, `t` (scalar or `[B]`), `labels`
    (`[B]` or None, the null class) and `key` (for dropout, or None), and returns
    `[B, H, W, out_channels]` of the dtype of `x`.

    Raises:
        ValueError: if `features` is no multiple of 4 and of `num_heads`, `depth` or
            `patch_size` is not positive, `dropout` is outside [0, 1) or `remat` is no
            policy, or when called with an `x` of another rank or channel count or that
            the patch size does not divide, or a `t` or `labels` that `Conditioning`
            refuses.

    Source: arXiv:2212.09748.

    >>> import jax
    >>> def call(x, t):
    ...     model = DiT(3, 16, depth=2, patch_size=2, num_heads=2, rngs=nnx.Rngs(0))
    ...     return model(x, t)
    >>> jax.eval_shape(call, jnp.ones((1, 4, 6, 3)), 0.5).shape
    (1, 4, 6, 3)
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        depth: int,
        *,
        patch_size: int,
        num_heads: int,
        mlp_ratio: int = 4,
        out_channels: int | None = None,
        num_classes: int | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
        impl: str = "auto",
        remat: bool | str = False,
        time_scale: float = 1000.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if features % 4:
            raise ValueError(f"features must be a multiple of 4, got {features}")
        check_positive(depth=depth, patch_size=patch_size)
        check_rate(dropout)
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        pixels = patch_size * patch_size
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.depth = depth
        self.remat = check_remat(remat)
        self.condition = Conditioning(
            features, num_classes, time_scale=time_scale, rngs=rngs, **kwargs
        )
        self.input = nnx.Linear(
            pixels * in_channels, features, kernel_init=XAVIER, rngs=rngs, **kwargs
        )

        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(
                features,
                num_heads,
                hidden_features=mlp_ratio * features,
                condition_features=features,
                dropout=dropout,
                init=XAVIER,
                out_init=XAVIER,
                qk_norm=qk_norm,
                impl=impl,
                rngs=rngs,
                **kwargs,
            )

        self.blocks = stack(rngs.split(depth))
        self.final = _Final(
            features, pixels * (out_channels or in_channels), rngs=rngs, **kwargs
        )

    def __call__(
        self,
        x: Array,
        t: Array | Scalar,
        labels: Array | None = None,
        key: Key | None = None,
    ) -> Array:
        check_image(x, self.in_channels)
        height, width = x.shape[1:3]
        patches = patchify(x, self.patch_size)
        embedding = keep_rows(self.condition(t, labels, x.shape[0])[:, None])
        h = keep_rows(self.input(patches))
        places = position_embedding(
            height // self.patch_size, width // self.patch_size, h.shape[-1]
        )
        h = h + places[None].astype(h.dtype)
        given = {"condition": embedding, "key": key, "remat": self.remat}
        h = self.final(run_blocks(self.blocks, self.depth, h, **given)[0], embedding)
        return unpatchify(h, self.patch_size, height, width).astype(x.dtype)


def _norm(features: int, **kwargs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        features, use_scale=False, use_bias=False, use_fast_variance=False, **kwargs
    )


class _Final(nnx.Module):
    def __init__(self, features: int, out_features: int, **kwargs):
        self.norm = _norm(features, **kwargs)
        self.modulation = nnx.Linear(
            features, 2 * features, kernel_init=ZEROS, **kwargs
        )
        self.out = nnx.Linear(features, out_features, kernel_init=ZEROS, **kwargs)

    def __call__(self, h: Array, embedding: Array) -> Array:
        scale, shift = jnp.split(self.modulation(embedding), 2, axis=-1)
        return self.out(modulate(self.norm(h), scale, shift))
