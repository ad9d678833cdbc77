"""Pytree helpers that jax and optax do not have."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genlib.types import Array, compute_dtype

__all__ = ["is_float", "lerp", "merge", "named", "own", "select", "split_floats"]


def is_float(leaf: ArrayLike) -> bool:
    """Tell whether `leaf` holds real or complex floats (not integers, bools or keys).

    >>> is_float(jnp.ones(2)), is_float(3), is_float(jax.random.key(0))
    (True, False, False)
    """
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def own(tree: Any) -> Any:
    """Copy every leaf into a new array, and floats into at least float32.

    Nothing in the result shares a buffer with the input, so either may be donated.
    Widening is exact; integers, bools and keys keep their dtype.

    >>> own({"w": jnp.ones(2, jnp.bfloat16), "n": 3})["w"].dtype.name
    'float32'
    """

    def copy(leaf: ArrayLike) -> Array:
        dtype = jnp.result_type(leaf)
        dtype = compute_dtype(dtype) if is_float(leaf) else dtype
        return jnp.array(leaf, dtype=dtype, copy=True)

    return jax.tree.map(copy, tree)


def split_floats(tree: Any) -> tuple[Any, Any]:
    """Split `tree` into its float leaves and the others; None fills the gaps.

    `merge` puts the two halves together again.

    >>> split_floats({"w": 1.0, "n": 3})
    ({'n': None, 'w': 1.0}, {'n': 3, 'w': None})
    """
    floats = jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, tree)
    others = jax.tree.map(lambda leaf: None if is_float(leaf) else leaf, tree)
    return floats, others


def merge(first: Any, second: Any) -> Any:
    """Fill the None leaves of `first` from `second`: the inverse of `split_floats`.

    >>> merge({"n": None, "w": 1.0}, {"n": 3, "w": None})
    {'n': 3, 'w': 1.0}
    """
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def lerp(start: Any, end: Any, weight: ArrayLike) -> Any:
    """Return `start + weight (end - start)` for float leaves, and `end` for the others.

    With `weight = 1 - decay` this is one step of an exponential moving average,
    computed and kept in the dtype of `start` (a float32 average of bfloat16 numbers
    moves; a bfloat16 one stands still).

    Args:
      start: pytree.
      end: pytree of the same structure and shapes.
      weight: scalar.

    Returns:
      A pytree like `start`; leaves that are not floats are those of `end`.

    >>> float(lerp(0.0, 2.0, 0.25))
    0.5
    """

    def move(a: ArrayLike, b: ArrayLike) -> ArrayLike:
        if not is_float(a):
            return b
        dtype = jnp.result_type(a)
        return (a + weight * (jnp.asarray(b, dtype) - a)).astype(dtype)

    return jax.tree.map(move, start, end)


def select(condition: ArrayLike, on_true: Any, on_false: Any) -> Any:
    """Choose one of two pytrees of equal structure, bit for bit.

    Args:
      condition: bool scalar, may be traced.
      on_true: pytree; typed keys are allowed as leaves.
      on_false: pytree of the same structure, shapes and dtypes.

    >>> int(select(False, {"n": 1}, {"n": 2})["n"])
    2
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def named(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of `tree` under their paths, in the order of the leaves.

    Raises:
      ValueError: if two leaves have the same path (a key that contains "/").

    >>> named({"dense": {"w": 1.0, "b": [2.0, 3.0]}}, "params")
    {'params/dense/b/0': 2.0, 'params/dense/b/1': 3.0, 'params/dense/w': 1.0}
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name = "/".join(part for part in (prefix, name) if part)
        if name in leaves:
            raise ValueError(f"tree must have one leaf at each path; {name} is twice")
        leaves[name] = leaf
    return leaves
