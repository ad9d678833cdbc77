"""Functions of the positions of a query and a key: the base of masks and biases."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.types import Array, concrete

Axes = tuple[int | None, int | None]


class OverPositions:
    """A function of the positions of queries and keys, perhaps with data of its own.

    Called with integer positions of queries `[B or 1, 1, T, 1]` and of keys `[B or 1,
    1, 1, S]` it returns what broadcasts to `[B, heads, T, S]`. A subclass is a frozen
    dataclass that is registered as a pytree. If one of its leaves has an entry for
    each query or each key, `axes` says along which axis, so that any block of the
    table of queries and keys can be computed alone.
    """

    def __call__(self, q: Array, kv: Array, /) -> Array:
        raise NotImplementedError

    def axes(self) -> list[Axes]:
        """Return for each leaf its axis of queries and its axis of keys, or None."""
        return [(None, None)] * len(jax.tree.leaves(self))


def leaf_axes(tree: Any) -> list[Axes]:
    """Return the axes of the leaves of an `OverPositions`, or of None."""
    return [] if tree is None else tree.axes()


def map_axes(change: Any, tree: Any) -> Any:
    """Apply `change(leaf, q_axis, kv_axis)` to every leaf of an `OverPositions`."""
    leaves, treedef = jax.tree.flatten(tree)
    axes = leaf_axes(tree)
    return treedef.unflatten(change(x, *ax) for x, ax in zip(leaves, axes, strict=True))


def take(tree: Any, q: Any, kv: Any, sizes: tuple[int, int]) -> Any:
    """Return an `OverPositions` for `sizes` queries and keys from rows q and kv on."""

    def change(x: Any, *axes: int | None) -> Any:
        for start, size, axis in zip((q, kv), sizes, axes, strict=True):
            if axis is not None:
                x = jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, size, axis)
        return x

    return map_axes(change, tree)


def pad(tree: Any, more: tuple[int, int]) -> Any:
    """Append entries for `more` queries and keys, copies of the last ones."""

    def change(x: Any, *axes: int | None) -> Any:
        for count, axis in zip(more, axes, strict=True):
            if axis is not None and count:
                where = [(0, count if i == axis else 0) for i in range(x.ndim)]
                x = (np if isinstance(x, np.ndarray) else jnp).pad(x, where, "edge")
        return x

    return map_axes(change, tree)


class Blocks(NamedTuple):
    """Rows of queries or of keys in blocks of `size`, and the positions they span.

    Attributes:
      lo: the smallest position in each block, `[n, 1]` of queries, `[1, n]` of keys.
      hi: the largest, likewise. NumPy arrays where everything is known before tracing.
      size: rows in a block.
    """

    lo: Any
    hi: Any
    size: int

    def span(self, x: Any, axis: int) -> tuple[Any, Any]:
        """Return the smallest and largest of `x` in each block along an axis."""
        known = concrete(x)
        x = x if known is None else known
        return _span(x, axis, self.size, self.lo.shape)


def blocks(positions: Any, size: int, *, queries: bool) -> Blocks:
    """Return the blocks of positions `[B or 1, L]`."""
    known = concrete(positions)
    positions = positions if known is None else known
    count = -(-positions.shape[-1] // size)
    shape = (count, 1) if queries else (1, count)
    return Blocks(*_span(positions, -1, size, shape), size)


def _span(x: Any, axis: int, size: int, shape: tuple[int, ...]) -> tuple[Any, Any]:
    numpy = np if isinstance(x, np.ndarray) else jnp
    if not x.size:  # no examples, or nothing to look at
        return numpy.zeros(shape, x.dtype), numpy.zeros(shape, x.dtype)
    x = numpy.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    rows = numpy.pad(x, [(0, 0), (0, -x.shape[1] % size)], "edge")
    rows = rows.reshape(len(rows), -1, size)
    return rows.min((0, 2)).reshape(shape), rows.max((0, 2)).reshape(shape)
