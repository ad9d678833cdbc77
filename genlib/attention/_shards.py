"""What masks and biases hold where a sequence or heads are cut among devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.attention._bias import Bias, as_bias
from genlib.attention._call import Call, make_call
from genlib.attention._mask import Bounds, Mask, pytree
from genlib.attention._mask_tables import dense
from genlib.attention._positions import Axes, Blocks, leaf_axes, map_axes
from genlib.types import Array


def check_shard(
    shards: int, q: Any, k: Any, v: Any, mask: Any, bias: Any, *settings: Any
) -> Call:
    """Return the checked arguments of one device of several.

    Leaves of masks and biases with an entry for each query hold this device's; those
    with one for each key alone hold this device's or all; tables of queries and keys
    hold the rows of this device and all columns.
    """
    call = make_call(q, k, v, None, None, *settings)
    lengths = call.q.shape[1], call.k.shape[1]
    if not (mask is None or isinstance(mask, Mask) or callable(mask)):
        mask = dense(mask)
    bias = as_bias(bias)
    first = []
    for name, tree in (("mask", mask), ("bias", bias)):
        if isinstance(tree, Mask | Bias):
            _check_columns(name, tree, shards, *lengths)
            tree = cut(tree, 0, lengths[1])
        first.append(tree)
    make_call(q, k, v, *first, *settings)
    return call._replace(mask=mask, bias=bias)


def _check_columns(name: str, tree: Any, shards: int, rows: int, length: int) -> None:
    for leaf, (q, kv) in zip(jax.tree.leaves(tree), leaf_axes(tree), strict=True):
        shape = getattr(leaf, "shape", ())
        if shards > 1 and len(shape) == 4 and 1 in (rows, length):
            raise ValueError(
                f"{name} may hold a table only where every device has at least 2 "
                f"queries and 2 keys, got {rows} and {length}"
            )
        sizes = [length * shards] if q is not None else [length, length * shards]
        if kv is not None and shape[kv] not in sizes:
            mine = "" if q is not None else f", or the {length} of this one"
            raise ValueError(
                f"{name} must hold the {length * shards} keys of all devices{mine}, "
                f"got shape {list(shape)}"
            )


def cut(tree: Any, start: Any, length: int) -> Any:
    """Return `length` keys from `start` on of those leaves that hold more."""

    def change(x: Any, q_axis: int | None, kv_axis: int | None) -> Any:
        if kv_axis is None or x.shape[kv_axis] == length:
            return x
        return jax.lax.dynamic_slice_in_dim(x, start, length, kv_axis)

    return map_axes(change, tree)


def is_table(x: Any) -> bool:
    """Tell whether a leaf is a table `[B, heads, T, S]` of several heads."""
    return getattr(x, "ndim", 0) == 4 and x.shape[1] > 1


def by_head(tree: Any, lengths: tuple[int, int]) -> bool:
    """Tell whether a mask or bias differs from head to head without being a table.

    Args:
      tree: `OverPositions` or None.
      lengths: queries and keys that it fits.
    """
    if tree is None or any(map(is_table, jax.tree.leaves(tree))):
        return False
    return table_shape(tree, lengths)[1] > 1


def by_example(tree: Any, lengths: tuple[int, int], batch: int, parts: int) -> Any:
    """Return which leaves can be cut in `parts` along their first axis, or None.

    Those with an entry for each query or key begin with the axis of examples. Of the
    others one learns it from the shape of the table: with lengths for each example it
    has as many rows, with slopes for each head it has not.

    Args:
      tree: `OverPositions` or None.
      lengths: queries and keys that it fits.
      batch: examples.
      parts: a divisor of `batch`.

    Returns:
      A bool for each leaf, or None if parts of the leaves are not parts of the table.
    """
    leaves, treedef = jax.tree.flatten(tree)
    whole = [jnp.shape(x)[:1] == (batch,) != (1,) for x in leaves]
    rows = [
        full and axes != (None, None)
        for full, axes in zip(whole, leaf_axes(tree), strict=True)
    ]

    def shape(cut: list[bool], size: int) -> tuple[int, ...]:
        part = [
            jax.ShapeDtypeStruct((size,) * n + jnp.shape(x)[n:], jnp.result_type(x))
            for x, n in zip(leaves, cut, strict=True)
        ]
        return table_shape(treedef.unflatten(part), lengths)

    if tree is None:
        return rows
    several, *table = shape(rows, 1)
    if several > 1 and whole == rows:
        return None  # it knows examples without a leaf
    rows = rows if several == 1 else whole
    several, *part = shape(rows, batch // parts)
    return rows if part == table and several in (1, batch // parts) else None


def table_shape(tree: Any, lengths: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the table of a mask or bias, `[B or 1, heads or 1, T, S]`."""
    shapes = (1, 1, lengths[0], 1), (1, 1, 1, lengths[1])
    sides = [jax.ShapeDtypeStruct(shape, np.int32) for shape in shapes]
    return jax.eval_shape(lambda tree, *sides: tree(*sides), tree, *sides).shape


def some_heads(tree: Any, index: Any, parts: int) -> Any:
    """Return a mask or bias for one of `parts` equal groups of heads."""
    kind = _MaskOfSome if isinstance(tree, Mask) else _BiasOfSome
    return kind(tree, index, parts)


def take_heads(x: Array, index: Any, parts: int) -> Array:
    """Return the heads of one of `parts` groups of a table `[B, heads, T, S]`.

    With fewer heads than groups several groups share one.
    """
    heads = x.shape[1]
    start = index * heads // parts
    return jax.lax.dynamic_slice_in_dim(x, start, max(heads // parts, 1), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class _OfSome:
    whole: Any
    index: Any
    parts: int = dataclasses.field(metadata={"static": True})

    def __call__(self, q: Array, kv: Array) -> Array:
        return take_heads(self.whole(q, kv), self.index, self.parts)

    def axes(self) -> list[Axes]:
        return [*self.whole.axes(), (None, None)]


@pytree
class _MaskOfSome(_OfSome, Mask):
    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return self.whole.bounds(q, kv)


@pytree
class _BiasOfSome(_OfSome, Bias):
    pass
