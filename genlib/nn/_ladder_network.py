"""The two paths of a ladder VAE: up from the data, and down through the latents."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from genlib.nn._ladder_parts import LadderBlock, ResidualBottleneck
from genlib.nn._layers import (
    ZEROS,
    check_positive,
    check_remat,
    keep_rows,
    recompute,
)
from genlib.nn._unet_block import resample
from genlib.types import Array, Key, Scalar, compute_dtype


class LadderNetwork(nnx.Module):
    """Levels of blocks, from fine to coarse and back.

    Called as `(count, x, keys, temperature)` it returns raw numbers of `count` examples
    and the KL divergence of each of their groups of latents, `[B, N]`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        features: int,
        out_channels: int,
        *,
        blocks: tuple[int, ...],
        latent: int,
        hidden: int | None,
        remat: bool | str,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        height, width, channels = shape
        factor = 2 ** (len(blocks) - 1)
        if not blocks or height % factor or width % factor:
            raise ValueError(
                f"blocks must name at least one level, and shape {shape} be divisible "
                f"by 2 between levels, got {blocks}"
            )
        check_positive(out_channels=out_channels, channels=channels, height=height)
        check_positive(width=width, **{f"blocks[{i}]": n for i, n in enumerate(blocks)})
        check_remat(remat)
        self.input = nnx.Conv(channels, features, (3, 3), rngs=rngs, **kwargs)
        self.levels = nnx.List(
            [
                _Level(
                    (height >> level, width >> level, features),
                    count,
                    latent,
                    hidden,
                    depth=sum(blocks),
                    remat=remat,
                    rngs=rngs,
                    **kwargs,
                )
                for level, count in enumerate(blocks)
            ]
        )
        self.output = nnx.Linear(
            features, out_channels, kernel_init=ZEROS, rngs=rngs, **kwargs
        )

    def __call__(
        self,
        count: int,
        x: Array | None = None,
        keys: Key | None = None,
        temperature: Scalar | None = None,
    ) -> tuple[Array, Array]:
        contexts = [None] * len(self.levels) if x is None else self._up(x)
        h: Any = None
        kls, first = [], 0
        for level, context in reversed(list(zip(self.levels, contexts, strict=True))):
            start = jnp.broadcast_to(level.start[...], (count, *level.start.shape))
            # The dtype is that of the layers, whatever the parameters are kept in.
            start = start.astype(self.output.dtype)
            h = start if h is None else start + resample(h, "up")
            h, kl = level.down(h, context, keys, first, temperature)
            kls.append(kl)
            first += len(kl)
        raw = self.output(h)
        return raw.astype(compute_dtype(raw.dtype)), jnp.concatenate(kls).T

    def _up(self, x: Array) -> list[Array]:
        h, contexts = self.input(x), []
        for i, level in enumerate(self.levels):
            h = level.up(resample(h, "down") if i else h)
            contexts.append(h)
        return contexts


class _Level(nnx.Module):
    """The blocks of one resolution, up and down."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        count: int,
        latent: int,
        hidden: int | None,
        *,
        depth: int,
        remat: bool | str,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        features = shape[-1]
        inner = max(1, features // 4) if hidden is None else hidden
        # Larger kernels would see little but the padding.
        size = 3 if min(shape[:2]) > 2 else 1
        self.count = count
        self.remat = remat
        self.start = nnx.Param(jnp.zeros(shape, kwargs["param_dtype"]))

        @nnx.vmap
        def ascent(rngs: nnx.Rngs) -> ResidualBottleneck:
            return ResidualBottleneck(features, inner, size, depth, rngs=rngs, **kwargs)

        @nnx.vmap
        def descent(rngs: nnx.Rngs) -> LadderBlock:
            return LadderBlock(
                features,
                latent,
                hidden=inner,
                kernel_size=size,
                depth=depth,
                rngs=rngs,
                **kwargs,
            )

        self.ascent = ascent(rngs.split(count))
        self.descent = descent(rngs.split(count))

    def up(self, h: Array) -> Array:
        graphdef, params = nnx.split(self.ascent)

        def body(h, block_params):
            return nnx.merge(graphdef, block_params)(keep_rows(h)), None

        # A scan keeps the compiler from undoing the recomputation.
        body = recompute(body, self.remat, prevent_cse=False)
        return jax.lax.scan(body, h, params)[0]

    def down(
        self, h: Array, context: Array | None, keys: Any, first: int, temperature: Any
    ) -> tuple[Array, Array]:
        """Return features after the blocks, and KL divergences `[count, B]`."""
        graphdef, params = nnx.split(self.descent)
        fold = jax.vmap(jax.random.fold_in, (0, None))

        def body(h, row):
            block_params, place = row
            key = None if keys is None else fold(keys, place)
            block = nnx.merge(graphdef, block_params)
            return block(keep_rows(h), context, key, temperature)

        body = recompute(body, self.remat, prevent_cse=False)
        return jax.lax.scan(body, h, (params, first + jnp.arange(self.count)))
