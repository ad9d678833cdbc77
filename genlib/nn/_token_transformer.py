"""The transformer over tokens that flows are conditioned by."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._adapters import check_params, sized
from genlib.nn._layers import (
    ZEROS,
    SelfAttention,
    check_positive,
    check_remat,
    drop,
    keep_rows,
    recompute,
)
from genlib.types import Array, Key, compute_dtype

Cache = tuple[Array, Array]  # keys and values, [depth, B, heads, T, features]


def token_transformers(
    width: int,
    depth: int,
    num_heads: int,
    *,
    mlp_ratio: int,
    causal: bool,
    remat: bool | str,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
) -> Callable[..., tuple[Callable[..., Any], Callable[..., Any]]]:
    """Return a function from inputs to `init` and `apply` of the network for them.

    It is called as `(x, features, cond, params=None)` with x [B, T, C] or its shape,
    refuses inputs that are none and parameters of another network, and describes the
    graph of a network once for each size.
    """
    check_positive(width=width, depth=depth, mlp_ratio=mlp_ratio)
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must divide the width {width}, got {num_heads}")
    check_remat(remat)

    def make(
        length: int, inputs: int, features: int, cond: int, rngs: nnx.Rngs
    ) -> nnx.Module:
        return TokenTransformer(
            length,
            inputs,
            features,
            cond,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            causal=causal,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    network = sized(make)

    def find(x: Any, features: int, cond: Any, params: Any = None) -> Any:
        if len(x.shape) != 3:
            raise ValueError(f"x must be tokens [B, T, C]; its shape is {x.shape}")
        if cond is not None and not (
            cond.ndim == 2
            and cond.shape[0] == x.shape[0]
            and jnp.issubdtype(cond.dtype, jnp.floating)
        ):
            raise ValueError(
                f"cond must be floating vectors [B, K] (jax.nn.one_hot of labels) with "
                f"B = {x.shape[0]}; it is {cond.dtype} {cond.shape}"
            )
        width_cond = 0 if cond is None else cond.shape[-1]
        init, apply, shapes = network(*x.shape[1:], features, width_cond)
        if params is not None:
            shape = None if cond is None else cond.shape
            what = f"a network for x {x.shape}, {features} outputs and cond {shape}"
            check_params(what, params, shapes)
        return init, apply

    return find


class TokenTransformer(nnx.Module):
    """Pre-norm blocks over tokens with learned positions, zero at the start.

    Called as `(x, cond)` it returns a row for every token; called as `(x, cond, cache,
    t)` with the one token `[B, 1, C]` at place t, its row and the cache with it.
    """

    def __init__(
        self,
        length: int,
        in_features: int,
        features: int,
        cond_features: int,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int,
        causal: bool,
        remat: bool | str,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.depth = depth
        self.remat = remat
        self.input = nnx.Linear(in_features, width, rngs=rngs, **kwargs)
        places = 0.02 * jax.random.normal(rngs.params(), (length, width), param_dtype)
        self.positions = nnx.Param(places)
        self.condition = (
            nnx.Linear(cond_features, width, use_bias=False, rngs=rngs, **kwargs)
            if cond_features
            else None
        )

        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> PreNormBlock:
            return PreNormBlock(
                width, num_heads, mlp_ratio, causal, rngs=rngs, **kwargs
            )

        self.blocks = stack(rngs.split(depth))
        self.norm = _norm(width, rngs=rngs, **kwargs)
        self.out = nnx.Linear(width, features, kernel_init=ZEROS, rngs=rngs, **kwargs)

    def __call__(
        self,
        x: Array,
        cond: Array | None = None,
        cache: Cache | None = None,
        t: Array | None = None,
    ) -> Any:
        places = self.positions[...]
        if t is not None:
            places = jax.lax.dynamic_slice_in_dim(places, t, 1)
        h = keep_rows(self.input(x))
        h = h + places[None].astype(h.dtype)
        if self.condition is not None and cond is not None:
            h = h + self.condition(cond)[:, None].astype(h.dtype)
        h, cache = self._run_blocks(h, cache, t)
        row = self.out(self.norm(h))
        return row if cache is None else (row, cache)

    def _run_blocks(self, h: Array, cache: Cache | None, t: Any) -> Any:
        graphdef, params = nnx.split(self.blocks)

        def body(carry, row):
            h, cache = carry
            block_params, layer = row
            block = nnx.merge(graphdef, block_params)
            return block(keep_rows(h), cache, layer, t), None

        # A scan keeps the compiler from undoing the recomputation.
        body = recompute(body, self.remat, prevent_cse=False)
        rows = (params, jnp.arange(self.depth))
        return jax.lax.scan(body, (h, cache), rows)[0]


class PreNormBlock(nnx.Module):
    """Attention and an MLP, each after a norm and added to what it was given."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: int,
        causal: bool,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        self.dropout = dropout
        self.attention_norm = _norm(width, **kwargs)
        self.attention = _Attention(width, num_heads, causal, **kwargs)
        self.mlp_norm = _norm(width, **kwargs)
        self.hidden = nnx.Linear(width, mlp_ratio * width, **kwargs)
        self.out = nnx.Linear(mlp_ratio * width, width, **kwargs)

    def __call__(
        self,
        h: Array,
        cache: Cache | None = None,
        layer: Any = None,
        t: Any = None,
        key: Key | None = None,
    ) -> Any:
        y, cache = self.attention.look_back(self.attention_norm(h), cache, layer, t)
        h = h + y
        y = drop(key, jax.nn.gelu(self.hidden(self.mlp_norm(h))), self.dropout)
        return h + self.out(y), cache


class _Attention(SelfAttention):
    """Attention of every token to all, or to itself and those before it."""

    def __init__(self, width: int, num_heads: int, causal: bool, **kwargs: Any):
        super().__init__(width, num_heads, **kwargs)
        self.causal = causal

    def look_back(self, x: Array, cache: Cache | None, layer: Any, t: Any) -> Any:
        if not self.causal:
            return self(x), None
        q, k, v = rearrange(
            self.qkv(x), "b t (n s d) -> s b n t d", s=3, n=self.num_heads
        )
        if cache is None:
            mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        else:
            # In place: the loops over layers and tokens carry one cache for all layers.
            place = (layer, 0, 0, t, 0)
            keys, values = (
                jax.lax.dynamic_update_slice(old, new[None], place)
                for old, new in zip(cache, (k, v), strict=True)
            )
            k, v = (
                jax.lax.dynamic_index_in_dim(each, layer, keepdims=False)
                for each in (keys, values)
            )
            cache = keys, values
            mask = (jnp.arange(k.shape[2]) <= t)[None]
        y = attend(q, k, v, mask)
        return self.out(rearrange(y, "b n t d -> b t (n d)")), cache


def attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Return softmax(q k / sqrt(d)) v over the keys that a mask [T, S] lets be seen."""
    wide = compute_dtype(q.dtype)
    logits = jnp.einsum("bntd,bnsd->bnts", q, k, preferred_element_type=wide)
    logits = jnp.where(mask[None, None], logits / q.shape[-1] ** 0.5, -jnp.inf)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("bnts,bnsd->bntd", weights, v)


def _norm(width: int, **kwargs: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, use_fast_variance=False, **kwargs)
