"""A cache whose memory is pages, which sequences take as they grow."""

from typing import Any, Self

import jax
import jax.numpy as jnp

from genlib.attention._cache import Cache, CacheView
from genlib.attention._cache_rows import (
    check_count,
    check_rows,
    check_sizes,
    empty_length,
    refuse_overflow,
    view_positions,
)
from genlib.attention._mask import pytree
from genlib.attention._masks import prefix
from genlib.types import Array, ArrayLike


@pytree
class _PagedCache(Cache):
    k: Array  # [pages, page size, K, H]
    v: Array
    table: Array  # pages of each example in order, -1 for none; [B, max pages]
    length: Array

    @property
    def capacity(self) -> int:
        return self.table.shape[1] * self.k.shape[1]

    @property
    def overflowed(self) -> Array:
        # A page that could not be had stays missing, so this is for good.
        missing = (self.table < 0) & (_indices(self.table) < self._pages(self.length))
        return (self.length > self.capacity) | missing.any(1)

    def _pages(self, length: Array) -> Array:
        return (-(-length // self.k.shape[1]))[:, None]

    def append(self, k: Array, v: Array, *, valid: ArrayLike | None = None) -> Self:
        batch, size = self.table.shape[0], self.k.shape[1]
        like = (
            jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
            for x in (self.k, self.v)
        )
        k, v = check_rows(*like, k=k, v=v)
        check_count(self, k.shape[1])
        positions = self.next_positions(k.shape[1], valid=valid)
        length = positions[:, -1] + 1
        table = self._allocate(length)
        page = jnp.take_along_axis(table, positions // size, 1, mode="clip")
        kept = (page >= 0) & (positions < self.capacity)
        kept = kept if valid is None else kept & jnp.asarray(valid)
        beyond = len(self.k) * size + jnp.arange(kept.size).reshape(kept.shape)
        slots = jnp.where(kept, page * size + positions % size, beyond)
        k, v = (_write(*side) for side in ((self.k, slots, k), (self.v, slots, v)))
        return refuse_overflow(self._replace(k=k, v=v, table=table, length=length))

    def _allocate(self, length: Array) -> Array:
        """Return the table with the pages for these lengths, as far as there are any.

        Free pages are given in their order to examples in theirs.
        """
        pages = len(self.k)
        taken = jnp.where(self.table < 0, pages, self.table).ravel()
        taken = jnp.zeros(pages, bool).at[taken].set(True, mode="drop")
        free = jnp.argsort(taken, stable=True).astype(jnp.int32)
        wanted = (self.table < 0) & (_indices(self.table) < self._pages(length))
        wanted = wanted & ~self.overflowed[:, None]
        rank = jnp.cumsum(wanted.ravel()).reshape(wanted.shape) - 1
        found = jnp.take(free, rank, mode="clip")
        return jnp.where(wanted & (rank < (~taken).sum()), found, self.table)

    def read(self) -> CacheView:
        # Beyond the last page is NaN; a page that is not there is masked.
        spoilt = self.overflowed[:, None]
        pages = jnp.where(spoilt, len(self.k), jnp.maximum(self.table, 0))
        k, v = (
            x.at[pages]
            .get(mode="fill", fill_value=jnp.nan)
            .reshape(len(pages), self.capacity, *x.shape[2:])
            for x in (self.k, self.v)
        )
        return CacheView(k, v, view_positions(self), prefix(self.length))

    def release(self, rows: ArrayLike) -> Self:
        cache = super().release(rows)
        table = jnp.where(jnp.asarray(rows)[:, None], -1, self.table)
        return cache._replace(table=table)


def _indices(table: Array) -> Array:
    return jnp.arange(table.shape[1], dtype=jnp.int32)[None]


def _write(pool: Array, slots: Array, rows: Array) -> Array:
    flat = pool.reshape(-1, *pool.shape[2:])
    rows = rows.reshape(-1, *rows.shape[2:])
    flat = flat.at[slots.ravel()].set(rows, mode="drop", unique_indices=True)
    return flat.reshape(pool.shape)


def paged_cache(
    pages: int,
    page_size: int,
    batch: int,
    max_pages: int,
    num_kv_heads: int,
    features: int,
    value_features: int | None = None,
    *,
    dtype: Any = jnp.float32,
) -> Cache:
    """Make an empty cache of pages that sequences take when they need them.

    Memory is that of all tokens there are, not of the longest sequence times B. A
    sequence that finds no free page has overflowed; `release` gives its pages back.
    `read` gathers the pages of each sequence in order, which copies them: `[B,
    max_pages page_size, K, H]` for as long as attention lasts.

    Args:
      pages: in all.
      page_size: tokens in a page.
      batch: sequences B.
      max_pages: of one sequence; the capacity is `max_pages * page_size`.
      num_kv_heads: heads K of keys and values.
      features: of a key, H.
      value_features: of a value, V; by default H.
      dtype: of the keys and values that are appended and read.

    Raises:
      ValueError: if a size is not positive or `dtype` is not floating.

    Source: arXiv:2309.06180.

    >>> cache = paged_cache(pages=3, page_size=2, batch=2, max_pages=4, num_kv_heads=1,
    ...                     features=2)
    >>> x = jnp.ones((2, 3, 1, 2))
    >>> cache = cache.append(x, x, valid=jnp.array([[True] * 3, [True, False, False]]))
    >>> cache.table.tolist()
    [[0, 1, -1, -1], [2, -1, -1, -1]]
    """
    value_features = features if value_features is None else value_features
    sizes = dict(pages=pages, page_size=page_size, batch=batch, max_pages=max_pages)
    sizes |= dict(num_kv_heads=num_kv_heads, features=features)
    check_sizes(dtype, **sizes, value_features=value_features)
    shape = (pages, page_size, num_kv_heads)
    k, v = (jnp.zeros((*shape, n), dtype) for n in (features, value_features))
    table = jnp.full((batch, max_pages), -1, jnp.int32)
    return _PagedCache(k, v, table, empty_length(batch))
