"""Encoder and decoder by a transformer over patches."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._blocks import TransformerBlock
from genlib.nn._layers import (
    check_image,
    check_positive,
    check_rate,
    check_remat,
    keep_rows,
)
from genlib.nn._patches import patchify, unpatchify
from genlib.nn._sinusoids import position_embedding
from genlib.nn._stack import run_blocks
from genlib.types import Array, Key


class _GridTransformer(nnx.Module):
    """Pre-norm blocks over the tokens of a grid, between two linear layers."""

    def __init__(
        self,
        in_features: int,
        features: int,
        out_features: int,
        *,
        depth: int,
        num_heads: int,
        mlp_ratio: int,
        dropout: float,
        remat: bool | str,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if features % 4:
            raise ValueError(f"features must be a multiple of 4, got {features}")
        check_positive(features=features, depth=depth, mlp_ratio=mlp_ratio)
        check_rate(dropout)
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.depth = depth
        self.remat = check_remat(remat)
        self.input = nnx.Linear(in_features, features, rngs=rngs, **kwargs)

        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(
                features,
                num_heads,
                hidden_features=mlp_ratio * features,
                dropout=dropout,
                rngs=rngs,
                **kwargs,
            )

        self.blocks = stack(rngs.split(depth))
        self.norm = nnx.LayerNorm(
            features, use_fast_variance=False, rngs=rngs, **kwargs
        )
        self.output = nnx.Linear(features, out_features, rngs=rngs, **kwargs)

    def _run(self, tokens: Array, height: int, width: int, key: Key | None) -> Array:
        """Return a row of features for each token of a grid [B, height * width, C]."""
        h = keep_rows(self.input(tokens))
        places = position_embedding(height, width, h.shape[-1])
        h = h + places[None].astype(h.dtype)
        h, _ = run_blocks(self.blocks, self.depth, h, key=key, remat=self.remat)
        return self.output(self.norm(h))


class PatchEncoder(_GridTransformer):
    """Map images to one vector for each patch, with a vision transformer.

    Patches, a linear layer, sinusoids of the patch coordinates, pre-norm blocks of
    attention and MLP, layer norm and a linear layer. Any image size that the patch size
    divides works, square or not. The parameters of all blocks are stacked and run under
    `jax.lax.scan`: compile time does not grow with depth.

    Args:
        in_channels: number of channels of the images.
        features: width of the transformer, a multiple of 4 and of `num_heads`.
        out_channels: number of channels of the result.
        patch_size: side of a patch in pixels.
        depth: number of blocks.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLPs over `features`.
        dropout: dropout rate inside the MLPs, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, H, W, in_channels]` and `key` (for dropout, or None), and
    returns `[B, H / p, W / p, out_channels]` of the dtype of `x`, with
    `p = patch_size`.

    Raises:
        ValueError: if `features` is no multiple of 4 and of `num_heads`, another size
            is not positive, `dropout` is outside [0, 1) or `remat` names no policy, or
            when called with an `x` of another rank or channel count or that the patch
            size does not divide.

    Source: arXiv:2110.04627 (ViT-VQGAN).

    >>> import jax
    >>> def call(x):
    ...     sizes = dict(patch_size=2, depth=2, num_heads=2)
    ...     return PatchEncoder(3, 8, 5, **sizes, rngs=nnx.Rngs(0))(x)
    >>> jax.eval_shape(call, jnp.ones((1, 4, 6, 3))).shape
    (1, 2, 3, 5)
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        out_channels: int,
        *,
        patch_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        remat: bool | str = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive(patch_size=patch_size, out_channels=out_channels)
        super().__init__(
            patch_size**2 * in_channels,
            features,
            out_channels,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.in_channels = in_channels
        self.patch_size = patch_size

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        check_image(x, self.in_channels)
        patches = patchify(x, self.patch_size)
        height, width = (side // self.patch_size for side in x.shape[1:3])
        h = self._run(patches, height, width, key).astype(x.dtype)
        return h.reshape(x.shape[0], height, width, -1)


class PatchDecoder(_GridTransformer):
    """Map one vector for each patch to images, with a vision transformer.

    `PatchEncoder` the other way round: a linear layer, sinusoids of the coordinates,
    pre-norm blocks, layer norm, and a linear layer to the pixels of each patch.

    Args:
        in_channels: number of channels of the latents.
        features: width of the transformer, a multiple of 4 and of `num_heads`.
        out_channels: number of channels of the images.
        patch_size: side of a patch in pixels.
        depth: number of blocks.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLPs over `features`.
        dropout: dropout rate inside the MLPs, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `z` `[B, h, w, in_channels]` and `key` (for dropout, or None), and
    returns `[B, h p, w p, out_channels]` of the dtype of `z`, with `p = patch_size`.

    Raises:
        ValueError: if `features` is no multiple of 4 and of `num_heads`, another size
            is not positive, `dropout` is outside [0, 1) or `remat` names no policy, or
            when called with a `z` of another rank or channel count.

    Source: arXiv:2110.04627 (ViT-VQGAN).

    >>> import jax
    >>> def call(z):
    ...     sizes = dict(patch_size=2, depth=2, num_heads=2)
    ...     return PatchDecoder(5, 8, 3, **sizes, rngs=nnx.Rngs(0))(z)
    >>> jax.eval_shape(call, jnp.ones((1, 2, 3, 5))).shape
    (1, 4, 6, 3)
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        out_channels: int,
        *,
        patch_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        remat: bool | str = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive(patch_size=patch_size, out_channels=out_channels)
        super().__init__(
            in_channels,
            features,
            patch_size**2 * out_channels,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.in_channels = in_channels
        self.patch_size = patch_size

    def __call__(self, z: Array, key: Key | None = None) -> Array:
        check_image(z, self.in_channels, "z")
        height, width = z.shape[1:3]
        tokens = patchify(z, 1)
        h = self._run(tokens, height, width, key).astype(z.dtype)
        size = self.patch_size
        return unpatchify(h, size, height * size, width * size)
