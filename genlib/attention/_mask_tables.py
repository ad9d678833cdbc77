"""Masks that carry data for every query or key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.attention._mask import Bounds, Mask, pytree
from genlib.attention._positions import Axes, Blocks
from genlib.types import Array, ArrayLike, concrete


@pytree
class _Segments(Mask):
    q_ids: Any
    kv_ids: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        mine, other = self.q_ids[:, None, :, None], self.kv_ids[:, None, None, :]
        return (mine == other) & (other != 0)

    def axes(self) -> list[Axes]:
        return [(1, None), (None, 1)]

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        low, high = q.span(self.q_ids, 1)
        kv_low, kv_high = kv.span(self.kv_ids, 1)
        some = (kv_low <= high) & (low <= kv_high) & ((kv_low != 0) | (kv_high != 0))
        same = (low == high) & (kv_low == kv_high) & (low == kv_low)
        return some, same & (low != 0)


def segments(q_ids: ArrayLike, kv_ids: ArrayLike | None = None) -> Mask:
    """Let a query see the keys of its own segment; segment 0 is padding.

        id(k) = id(q) != 0

    Several documents packed into one row attend each to itself alone.

    Args:
      q_ids: integers `[B, T]`, or `[1, T]` for all examples.
      kv_ids: integers `[B, S]`; by default those of the queries.

    Raises:
      ValueError: if they are not integers of two axes.

    >>> from genlib.attention import visible
    >>> mask = segments(jnp.array([[1, 1, 2, 0]]))
    >>> visible(mask, jnp.arange(4), jnp.arange(4))[0, 0].astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """
    kv_ids = q_ids if kv_ids is None else kv_ids
    for name, ids in (("q_ids", q_ids), ("kv_ids", kv_ids)):
        kind = jnp.result_type(ids)
        if jnp.ndim(ids) != 2 or not jnp.issubdtype(kind, jnp.integer):
            raise ValueError(
                f"{name} must be integers [B, length], got {kind} of shape "
                f"{jnp.shape(ids)}"
            )
    return _Segments(_array(q_ids), _array(kv_ids))


@pytree
class _Padding(Mask):
    valid: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        return self.valid[:, None, None, :]

    def axes(self) -> list[Axes]:
        return [(None, 1)]

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        low, high = kv.span(self.valid, 1)
        return high, low


def padding(valid: ArrayLike) -> Mask:
    """Let every query see the keys that are marked as valid.

    Args:
      valid: bool `[B, S]`, or `[1, S]` for all examples.

    Raises:
      ValueError: if it is not bool of two axes.

    >>> from genlib.attention import visible
    >>> mask = padding(jnp.array([[True, True, False]]))
    >>> visible(mask, jnp.arange(1), jnp.arange(3))[0, 0].astype(int).tolist()
    [[1, 1, 0]]
    """
    if jnp.ndim(valid) != 2 or jnp.result_type(valid) != jnp.bool_:
        raise ValueError(
            f"valid must be bool [B, S], got {jnp.result_type(valid)} of shape "
            f"{jnp.shape(valid)}"
        )
    return _Padding(_array(valid))


@pytree
class _Dense(Mask):
    table: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        return self.table

    def axes(self) -> list[Axes]:
        return [table_axes(self.table)]

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        known = concrete(self.table)
        table = self.table if known is None else known
        numpy: Any = jnp if known is None else np
        q_axis, kv_axis = table_axes(table)
        some, every = table.any((0, 1)), table.all((0, 1))
        for axis, side in ((0, q), (1, kv)):
            if (q_axis, kv_axis)[axis] is None:
                continue
            ends = [(0, 0), (0, 0)]
            ends[axis] = (0, -some.shape[axis] % side.size)
            split = (-1, side.size)
            some, every = (
                numpy.moveaxis(numpy.pad(x, ends, "edge"), axis, 0)
                for x in (some, every)
            )
            some = numpy.moveaxis(some.reshape(*split, some.shape[1]).any(1), 0, axis)
            every = every.reshape(*split, every.shape[1]).all(1)
            every = numpy.moveaxis(every, 0, axis)
        return some, every


def table_axes(table: Any) -> Axes:
    """Return the axes of queries and keys of a table `[B, heads, T, S]`; 1 is none."""
    return (2 if table.shape[2] > 1 else None, 3 if table.shape[3] > 1 else None)


def dense(table: ArrayLike) -> Mask:
    """Let a query see the keys that a table marks.

    Args:
      table: bool `[B, heads, T, S]`, where every axis may also be 1 and heads may be
        those of the queries or those of the keys. Row t is that of the t-th query,
        whatever its position.

    Raises:
      ValueError: if it is not bool of four axes.

    >>> from genlib.attention import visible
    >>> mask = dense(jnp.eye(3, dtype=bool)[None, None])
    >>> visible(mask, jnp.arange(3), jnp.arange(3)).shape
    (1, 1, 3, 3)
    """
    if jnp.ndim(table) != 4 or jnp.result_type(table) != jnp.bool_:
        raise ValueError(
            "a dense mask must be bool [B, heads, T, S] with axes of 1 where it does "
            f"not differ, got {jnp.result_type(table)} of shape {jnp.shape(table)}; "
            "valid keys [B, S] are `padding(valid)`"
        )
    return _Dense(_array(table))


def _array(x: ArrayLike) -> Any:
    return x if isinstance(x, (np.ndarray, jax.Array)) else np.asarray(x)
