"""The transformer over tokens that flows are conditioned by."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib import attention
from genlib.nn._adapters import check_params, sized
from genlib.nn._blocks import TransformerBlock
from genlib.nn._layers import (
    ZEROS,
    check_positive,
    check_remat,
    keep_rows,
)
from genlib.nn._stack import Cache, run_blocks
from genlib.types import Array


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
        def stack(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(
                width,
                num_heads,
                hidden_features=mlp_ratio * width,
                mask=attention.causal() if causal else None,
                rngs=rngs,
                **kwargs,
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
        h, cache = run_blocks(self.blocks, self.depth, h, cache, t, remat=self.remat)
        row = self.out(self.norm(h))
        return row if cache is None else (row, cache)


def _norm(width: int, **kwargs: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, use_fast_variance=False, **kwargs)
