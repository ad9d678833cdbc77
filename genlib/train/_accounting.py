"""What a run takes: tables of its parameters and of its memory."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from genlib import tree
from genlib.train._state import State


class Memory(NamedTuple):
    """Bytes that a compiled program takes on each device.

    Attributes:
      arguments: what goes in: state and batch.
      outputs: what comes out.
      aliased: outputs that lie where donated arguments were.
      temporary: everything in between, gradients and activations first.
      total: arguments + outputs - aliased + temporary.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    total: int


def memory(compiled: Any) -> Memory:
    """Return the memory of a compiled program, as its compiler planned it.

    Args:
      compiled: `jax.jit(fn).lower(*args).compile()`, for any platform.

    Raises:
      ValueError: if the backend says nothing about memory.

    >>> import jax.numpy as jnp
    >>> memory(jax.jit(lambda x: x + 1).lower(jnp.ones(256)).compile()).outputs
    1024
    """
    found = compiled.memory_analysis()
    if found is None:
        raise ValueError("compiled must be of a backend that tells its memory")
    given, made = found.argument_size_in_bytes, found.output_size_in_bytes
    aliased, between = found.alias_size_in_bytes, found.temp_size_in_bytes
    return Memory(given, made, aliased, between, given + made - aliased + between)


def param_table(params: Any, shardings: Any = None) -> str:
    """Write down the parameters: shape, dtype, number, bytes and how each is split.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      shardings: pytree like it, from `param_shardings`; by default each leaf's own.

    Returns:
      Lines of text: each leaf, a total for each first part of the paths, and one of
      all. "each device" is the bytes of a leaf on one device.

    >>> import jax.numpy as jnp
    >>> print(param_table({"out": {"b": jnp.ones(2), "w": jnp.ones((3, 2))}}))
    path   shape  dtype    number  bytes  each device  split
    out/b  2      float32       2    8 B          8 B
    out/w  3x2    float32       6   24 B         24 B
    out                         8   32 B         32 B
    all                         8   32 B         32 B
    """
    leaves = tree.named(params)
    placed = _shardings(params, shardings)
    groups: dict[str, list[_Leaf]] = {}
    for (path, leaf), sharding in zip(leaves.items(), placed, strict=True):
        groups.setdefault(path.partition("/")[0], []).append(
            _Leaf(path, leaf, sharding)
        )
    rows: list[tuple[str, ...]] = [
        ("path", "shape", "dtype", "number", "bytes", "each device", "split")
    ]
    for name, group in groups.items():
        rows += [leaf.row() for leaf in group]
        if len(group) > 1 or group[0].path != name:
            rows.append(_total(name, group))
    rows.append(_total("all", [leaf for group in groups.values() for leaf in group]))
    return _align(rows, right=(3, 4, 5))


def memory_table(state: State, shardings: Any = None) -> str:
    """Write down what a state takes, part by part: in all, and on one device.

    Args:
      state: a `State`, or its shapes (`jax.eval_shape`).
      shardings: a `State` like it, from `state_shardings`; by default each leaf's own.

    Returns:
      Lines of text.

    >>> import jax.numpy as jnp, optax
    >>> from genlib.train import init
    >>> params = {"w": jnp.ones((16, 16))}
    >>> print(memory_table(init(jax.random.key(0), params, optax.sgd(0.1, 0.9))))
    part       number    bytes  each device
    params        256  1.02 kB      1.02 kB
    ema           256  1.02 kB      1.02 kB
    opt_state     256  1.02 kB      1.02 kB
    others          2     12 B         12 B
    all           770  3.08 kB      3.08 kB
    """
    parts: dict[str, list[_Leaf]] = {"params": [], "ema": [], "opt_state": []}
    parts["others"] = []
    fields = state._asdict()
    placed = iter(_shardings(state, shardings))
    for field, values in fields.items():
        part = parts[field if field in parts else "others"]
        for path, leaf in tree.named(values, field).items():
            part.append(_Leaf(path, leaf, next(placed)))
    rows: list[tuple[str, ...]] = [("part", "number", "bytes", "each device")]
    parts = {name: leaves for name, leaves in parts.items() if leaves}
    parts["all"] = [leaf for leaves in parts.values() for leaf in leaves]
    for name, leaves in parts.items():
        path, _, _, number, size, local, _ = _total(name, leaves)
        rows.append((path, number, size, local))
    return _align(rows, right=(1, 2, 3))


class _Leaf(NamedTuple):
    path: str
    leaf: Any
    sharding: Any

    @property
    def bytes(self) -> int:
        return self.leaf.size * self.leaf.dtype.itemsize

    @property
    def local(self) -> int:
        shape = self.leaf.shape
        if self.sharding is not None:
            shape = self.sharding.shard_shape(shape)
        return math.prod(shape) * self.leaf.dtype.itemsize

    def row(self) -> tuple[str, ...]:
        shape = "x".join(map(str, self.leaf.shape)) or "scalar"
        split = getattr(self.sharding, "spec", ())
        split = str(tuple(split)) if any(split) else ""
        number, size = f"{self.leaf.size:,}", _bytes(self.bytes)
        local, dtype = _bytes(self.local), self.leaf.dtype.name
        return self.path, shape, dtype, number, size, local, split


def _shardings(values: Any, shardings: Any) -> list[Any]:
    leaves = jax.tree.leaves(values)
    if shardings is None:
        return [getattr(leaf, "sharding", None) for leaf in leaves]
    if jax.tree.structure(shardings) != jax.tree.structure(values):
        raise ValueError(
            "shardings must have the structure of what they split, "
            f"{jax.tree.structure(values)}; it is {jax.tree.structure(shardings)}"
        )
    return jax.tree.leaves(shardings)


def _total(name: str, leaves: Iterable[_Leaf]) -> tuple[str, ...]:
    leaves = list(leaves)
    number = sum(leaf.leaf.size for leaf in leaves)
    size, local = sum(leaf.bytes for leaf in leaves), sum(leaf.local for leaf in leaves)
    return name, "", "", f"{number:,}", _bytes(size), _bytes(local), ""


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _align(rows: Sequence[tuple[str, ...]], right: tuple[int, ...]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if index in right else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
