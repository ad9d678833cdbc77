"""The transformer over codes: their indices in, logits of indices out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib import attention
from genlib.nn._blocks import TransformerBlock
from genlib.nn._conditioning import LabelEmbedding
from genlib.nn._layers import (
    ZEROS,
    check_positive,
    check_rate,
    check_remat,
    keep_rows,
)
from genlib.nn._stack import Cache, run_blocks
from genlib.quantize._quantizer import check_indices
from genlib.types import Array, Key, compute_dtype


class CodeTransformer(nnx.Module):
    """Map the codes of a quantizer to logits of codes, by a transformer over places.

    `h <- h + attention(norm(h))`, `h <- h + mlp(norm(h))` in each block, where h starts
    as the sum of embeddings of code, place and label. Causal, a place sees the codes
    before it, as a start token and all codes but the last are its input; otherwise it
    sees all codes, its own too. An index of -1 has an embedding of its own: no code, a
    masked code or the start. The blocks run under `jax.lax.scan`, and the last layer
    starts at zero, so that a new network says that all codes are equally probable.

    Args:
        size: number of codes K.
        length: number of places T.
        features: width of the transformer, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: number of attention heads.
        causal: whether a place sees only the codes before it.
        mlp_ratio: width of the MLPs over `features`.
        num_classes: number of classes, or None for a network without labels.
        dropout: dropout rate inside the MLPs, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `indices` `[B, T]` in -1 .. K - 1 (traced ones outside of that give
    NaN), `labels` (`[B]` or None, the null class) and `key` (for dropout, or None), and
    returns logits `[B, T, K]` in at least float32. A causal network called with the
    codes `[B, 1]` before place `t` (-1 before the first) and a `cache`, two arrays
    `[depth, B, T, num_heads, features / num_heads]` of `dtype`, zeros at the start,
    returns the logits `[B, 1, K]` of place t and the cache with it.

    Raises:
        ValueError: if a size is not positive, `num_heads` does not divide `features`,
            `dropout` is outside [0, 1) or `remat` is no policy, or when called with
            indices of another shape or range or with labels for a network that has
            none, or with a cache if it is not causal.

    Source: arXiv:1706.03762, arXiv:2202.04200 (masked).

    >>> def call(indices):
    ...     sizes = dict(depth=2, num_heads=2, causal=True)
    ...     return CodeTransformer(5, 3, 8, **sizes, rngs=nnx.Rngs(0))(indices)
    >>> jax.eval_shape(call, jnp.array([[4, 0, -1]])).shape
    (1, 3, 5)
    """

    def __init__(
        self,
        size: int,
        length: int,
        features: int,
        *,
        depth: int,
        num_heads: int,
        causal: bool,
        mlp_ratio: int = 4,
        num_classes: int | None = None,
        dropout: float = 0.0,
        remat: bool | str = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive(size=size, length=length, features=features, depth=depth)
        check_positive(mlp_ratio=mlp_ratio)
        check_rate(dropout)
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        draw = lambda *shape: nnx.Param(
            0.02 * jax.random.normal(rngs.params(), shape, param_dtype)
        )
        self.size = size
        self.depth = depth
        self.causal = causal
        self.remat = check_remat(remat)
        self.dtype = dtype
        self.table = draw(size + 1, features)
        self.positions = draw(length, features)
        self.label = (
            LabelEmbedding(num_classes, features, rngs=rngs, **kwargs)
            if num_classes is not None
            else None
        )

        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(
                features,
                num_heads,
                hidden_features=mlp_ratio * features,
                mask=attention.causal() if causal else None,
                dropout=dropout,
                rngs=rngs,
                **kwargs,
            )

        self.blocks = stack(rngs.split(depth))
        self.norm = nnx.LayerNorm(
            features, use_fast_variance=False, rngs=rngs, **kwargs
        )
        self.out = nnx.Linear(features, size, kernel_init=ZEROS, rngs=rngs, **kwargs)

    def __call__(
        self,
        indices: Array,
        labels: Array | None = None,
        key: Key | None = None,
        cache: Cache | None = None,
        t: Array | None = None,
    ) -> Any:
        h = keep_rows(self._embed(check_indices(indices, self.size), labels, cache, t))
        h, cache = run_blocks(
            self.blocks, self.depth, h, cache, t, key=key, remat=self.remat
        )
        logits = self.out(self.norm(h)).astype(compute_dtype(self.dtype))
        return logits if cache is None else (logits, cache)

    def _embed(
        self, indices: Array, labels: Array | None, cache: Cache | None, t: Any
    ) -> Array:
        places = self.positions[...]
        if cache is not None:
            if not self.causal:
                raise ValueError("cache must be None for a network that is not causal")
            places = jax.lax.dynamic_slice_in_dim(places, t, 1)
        if indices.ndim != 2 or indices.shape[1] != len(places):
            raise ValueError(
                f"indices must be [B, {len(places)}]; their shape is {indices.shape}"
            )
        if self.causal and cache is None:
            indices = jnp.pad(indices[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        # Row `size` stands for no code; a row that does not exist gives NaN.
        known = jnp.where(
            (indices >= 0) & (indices < self.size), indices, self.size + 1
        )
        index = jnp.where(indices == -1, self.size, known)
        h = self.table[...].at[index].get(mode="fill", fill_value=jnp.nan)
        h = h + places[None]
        if self.label is not None:
            none = jnp.full(indices.shape[:1], self.label.num_classes)
            h = h + self.label(none if labels is None else labels)[:, None]
        elif labels is not None:
            raise ValueError("labels must be None for a network without num_classes")
        return h.astype(self.dtype)
