"""Stacked blocks under one loop, and the one cache that it carries."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from genlib import attention
from genlib.nn._layers import keep_rows, recompute
from genlib.tree import register_dataclass
from genlib.types import Array, Key

Cache = tuple[Array, Array]  # keys and values, [depth, B, T, heads, features]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache(attention.Cache):
    """What one layer keeps in the cache of all of them, one token at a time.

    One cache is carried through the loops over layers and tokens, so that a token
    writes its own row and nothing is copied.
    """

    keys: Array
    values: Array
    layer: Array
    t: Array

    @property
    def length(self) -> Array:
        """How many tokens came before, int32 `[B]`."""
        return jnp.full(self.keys.shape[1:2], self.t, jnp.int32)

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        return self.keys.shape[2]

    def append(self, k: Array, v: Array, *, valid: Any = None) -> "LayerCache":
        place = (self.layer, 0, self.t, 0, 0)
        write = lambda old, new: jax.lax.dynamic_update_slice(old, new[None], place)
        keys, values = write(self.keys, k), write(self.values, v)
        return LayerCache(keys, values, self.layer, self.t + k.shape[1])

    def read(self) -> attention.CacheView:
        k, v = (
            jax.lax.dynamic_index_in_dim(each, self.layer, keepdims=False)
            for each in (self.keys, self.values)
        )
        positions = jnp.arange(k.shape[1])[None]
        return attention.CacheView(k, v, positions, attention.prefix(self.t))


def run_blocks(
    blocks: nnx.Module,
    depth: int,
    h: Array,
    cache: Cache | None = None,
    t: Any = None,
    *,
    condition: Array | None = None,
    key: Key | None = None,
    remat: bool | str = False,
) -> tuple[Array, Cache | None]:
    """Run stacked blocks one after another, at place t of a cache if there is one."""
    graphdef, params = nnx.split(blocks)
    keys = None if key is None else jax.random.split(key, depth)

    def body(carry: Any, row: Any) -> Any:
        h, cache = carry
        block_params, block_key, layer = row
        block = nnx.merge(graphdef, block_params)
        about = None if condition is None else keep_rows(condition)
        call = functools.partial(block, condition=about, key=block_key)
        if cache is None:
            return (call(keep_rows(h)), None), None
        keys, values = cache
        place = LayerCache(keys, values, layer, jnp.asarray(t))
        h, place = call(keep_rows(h), cache=place)
        return (h, (place.keys, place.values)), None

    # A scan keeps the compiler from undoing the recomputation.
    body = recompute(body, remat, prevent_cse=False)
    return jax.lax.scan(body, (h, cache), (params, keys, jnp.arange(depth)))[0]
