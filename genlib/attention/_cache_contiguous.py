"""The plain cache: a row of memory for each token there may be."""

from typing import Any, Self

import jax.numpy as jnp

from genlib.attention._cache import Cache, CacheView
from genlib.attention._cache_rows import (
    check_rows,
    empty_length,
    empty_rows,
    next_slots,
    refuse_overflow,
    spoil,
    view_positions,
    write,
)
from genlib.attention._mask import pytree
from genlib.attention._masks import prefix
from genlib.types import Array, ArrayLike


@pytree
class _KVCache(Cache):
    k: Array
    v: Array
    length: Array

    @property
    def capacity(self) -> int:
        return self.k.shape[1]

    def append(self, k: Array, v: Array, *, valid: ArrayLike | None = None) -> Self:
        k, v = check_rows(self.k, self.v, k=k, v=v)
        slots, length = next_slots(self, k.shape[1], valid)
        k, v = write(self.k, slots, k), write(self.v, slots, v)
        return refuse_overflow(self._replace(k=k, v=v, length=length))

    def read(self) -> CacheView:
        k, v = (spoil(self.overflowed, x) for x in (self.k, self.v))
        return CacheView(k, v, view_positions(self), prefix(self.length))


def kv_cache(
    batch: int,
    capacity: int,
    num_kv_heads: int,
    features: int,
    value_features: int | None = None,
    *,
    dtype: Any = jnp.float32,
) -> Cache:
    """Make an empty cache of keys and values, one row of memory for each token.

    Args:
      batch: sequences B.
      capacity: tokens S of each.
      num_kv_heads: heads K of keys and values.
      features: of a key, H.
      value_features: of a value, V; by default H.
      dtype: of the keys and values that are appended and read.

    Raises:
      ValueError: if a size is not positive or `dtype` is not floating.

    >>> cache = kv_cache(batch=2, capacity=8, num_kv_heads=1, features=4)
    >>> cache.read().k.shape, cache.capacity
    ((2, 8, 1, 4), 8)
    """
    sizes = num_kv_heads, features, value_features
    k, v = empty_rows(dtype, *sizes, batch=batch, capacity=capacity)
    return _KVCache(k, v, empty_length(batch))
