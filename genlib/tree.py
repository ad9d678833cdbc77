"""Pytree helpers that jax and optax do not have."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genlib.types import Array, compute_dtype

__all__ = [
    "is_float",
    "lerp",
    "merge",
    "named",
    "own",
    "register_dataclass",
    "select",
    "split_floats",
]

_Class = TypeVar("_Class", bound=type)


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


def register_dataclass(cls: _Class) -> _Class:
    """Register a dataclass as a pytree whose structure tells its class.

    `jax.tree_util.register_dataclass` without names of fields: they are leaves, but for
    those made by `jax.tree.static`, which belong to the structure. Structures made by
    JAX's own are equal, with different hashes, for any two dataclasses that have as
    many fields (jaxlib 0.10.0 to 0.12.0): now and then a jitted function that meets a
    second class runs the program of the first.

    Args:
      cls: a dataclass; objects are made again from its fields, by keyword.

    Returns:
      The class itself.

    Raises:
      ValueError: if `cls` is not a dataclass, or its constructor does not take a field.

    >>> @register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Metres:
    ...     value: float
    >>> jax.tree.map(lambda x: 2 * x, Metres(1.5))
    Metres(value=3.0)
    """
    fields_of: Any = cls
    if not dataclasses.is_dataclass(fields_of):
        raise ValueError(f"register_dataclass needs a dataclass; it is {cls}")
    fields = dataclasses.fields(fields_of)
    for field in fields:
        if not field.init:
            raise ValueError(
                f"fields must be arguments of the constructor; {field.name} of "
                f"{cls.__name__} is not"
            )
    static = tuple(f.name for f in fields if f.metadata.get("static", False))
    leaves = tuple(f.name for f in fields if f.name not in static)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)

    def flatten(tree: Any) -> tuple[tuple, tuple]:
        settings = tuple(getattr(tree, name) for name in static)
        return tuple(getattr(tree, name) for name in leaves), settings

    def flatten_with_keys(tree: Any) -> tuple[tuple, tuple]:
        values, settings = flatten(tree)
        return tuple(zip(keys, values, strict=True)), settings

    def unflatten(settings: tuple, values: Iterable[Any]) -> Any:
        settings_of = dict(zip(static, settings, strict=True))
        return cls(**settings_of, **dict(zip(leaves, values, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
