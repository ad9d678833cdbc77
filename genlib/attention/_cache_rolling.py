"""A cache of the last tokens alone, for attention within a window."""

from typing import Any, Self

import jax.numpy as jnp

from genlib.attention._cache import Cache, CacheView
from genlib.attention._cache_rows import (
    check_rows,
    empty_length,
    empty_rows,
    write,
)
from genlib.attention._mask import Mask, pytree
from genlib.attention._masks import prefix, window
from genlib.types import Array, ArrayLike


@pytree
class _RollingCache(Cache):
    k: Array
    v: Array
    length: Array

    @property
    def capacity(self) -> int:
        return self.k.shape[1]

    @property
    def overflowed(self) -> Array:
        return jnp.zeros(self.length.shape, bool)

    @property
    def _mask(self) -> Mask:
        # Rows without a token have negative positions.
        return ~prefix(0) & window(self.capacity)

    def append(self, k: Array, v: Array, *, valid: ArrayLike | None = None) -> Self:
        k, v = check_rows(self.k, self.v, k=k, v=v)
        count, size = k.shape[1], self.capacity
        positions = self.next_positions(count, valid=valid)
        length = positions[:, -1] + 1
        kept = positions >= length[:, None] - size
        kept = kept if valid is None else kept & jnp.asarray(valid)
        slots = jnp.where(kept, positions % size, size + jnp.arange(count)[None])
        k, v = write(self.k, slots, k), write(self.v, slots, v)
        return self._replace(k=k, v=v, length=length)

    def read(self) -> CacheView:
        last = self.length[:, None] - 1
        slots = jnp.arange(self.capacity, dtype=jnp.int32)[None]
        positions = last - (last - slots) % self.capacity
        return CacheView(self.k, self.v, positions, self._mask)

    def extend(
        self, k: Array, v: Array, *, valid: ArrayLike | None = None
    ) -> tuple[CacheView, Self]:
        cache = self.append(k, v, valid=valid)
        if k.shape[1] == 1:  # it pushes out only what its own query does not see
            return cache.read(), cache
        positions = self.next_positions(k.shape[1], valid=valid)
        if valid is not None:
            positions = jnp.where(jnp.asarray(valid), positions, -1)
        old = self.read()
        both = [(old.k, k), (old.v, v), (old.positions, positions)]
        k, v, positions = (jnp.concatenate(parts, 1) for parts in both)
        return CacheView(k, v, positions, self._mask), cache


def rolling_cache(
    batch: int,
    window: int,
    num_kv_heads: int,
    features: int,
    value_features: int | None = None,
    *,
    dtype: Any = jnp.float32,
) -> Cache:
    """Make an empty cache of the last `window` tokens of each sequence.

    A ring: the token at position p is in row p mod `window`, where it replaces the one
    that is `window` positions before it. It never overflows. Whatever the mask of the
    model, nothing further away than the window is seen: `causal()` over it is `causal()
    & window(w)`. Several tokens at once are right of any number by `cached_attention`
    or `extend`, which let the first of them look at what the last ones replace. After
    `append` alone only the query of the last one, and later ones, see all they should.

    Args:
      batch: sequences B.
      window: tokens W that a query sees, itself included.
      num_kv_heads: heads K of keys and values.
      features: of a key, H.
      value_features: of a value, V; by default H.
      dtype: of the keys and values that are appended and read.

    Raises:
      ValueError: if a size is not positive or `dtype` is not floating.

    Source: arXiv:2310.06825 (rolling buffer cache).

    >>> cache = rolling_cache(batch=1, window=4, num_kv_heads=1, features=2)
    >>> cache = cache.append(jnp.ones((1, 6, 1, 2)), jnp.ones((1, 6, 1, 2)))
    >>> cache.length.tolist(), cache.read().positions.tolist()
    ([6], [[4, 5, 2, 3]])
    """
    sizes = num_kv_heads, features, value_features
    k, v = empty_rows(dtype, *sizes, batch=batch, window=window)
    return _RollingCache(k, v, empty_length(batch))
