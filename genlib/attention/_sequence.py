"""Attention of arrays whose sequence is cut over an axis of the mesh, under `jit`."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from genlib.attention._attention import attention
from genlib.attention._bias import Bias
from genlib.attention._call import Call, make_call
from genlib.attention._mask import Mask
from genlib.attention._positions import map_axes
from genlib.attention._ring import ring_attention
from genlib.attention._shards import by_example, by_head, is_table, some_heads
from genlib.attention._ulysses import ulysses_attention
from genlib.types import Array, ArrayLike, Scalar

METHODS: dict[str, Any] = {"ring": ring_attention, "ulysses": ulysses_attention}
# As `train.make_mesh` names them.
ROWS, HEADS = ("data", "fsdp"), "tensor"


def sequence_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    method: Literal["ring", "ulysses"] = "ring",
    axis: str = "sequence",
    mask: Mask | ArrayLike | None = None,
    bias: Bias | ArrayLike | None = None,
    scale: Scalar | None = None,
    softcap: Scalar | None = None,
    sink: ArrayLike | None = None,
    q_positions: ArrayLike | None = None,
    kv_positions: ArrayLike | None = None,
    block: tuple[int, int] | None = None,
    return_lse: bool = False,
) -> Any:
    """Compute `attention` with the sequence cut over an axis of the mesh around `jit`.

    It takes the arguments of `attention`, whole, and returns the same. On a mesh of
    `train.make_mesh`, under `train.jit_step` or `jax.set_mesh`, every device computes
    its part of the sequence by `ring_attention` or `ulysses_attention`, of the examples
    ("data" and "fsdp") and of the heads ("tensor") where they divide. Without a mesh,
    or where the axis has one device, it is `attention`; inside a `shard_map` over the
    axis it is the method itself, of the parts of this device.

    Args:
      q: `[B, T, N, H]`.
      k: `[B, S, K, H]`.
      v: `[B, S, K, V]`.
      method: "ring" for any number of heads and the least memory, "ulysses" for less
        communication with as many heads as devices or more.
      axis: of the mesh; its size divides T and S.
      mask: as in `attention`.
      bias: as in `attention`.
      scale: as in `attention`.
      softcap: as in `attention`.
      sink: as in `attention`.
      q_positions: as in `attention`; `zigzag_positions` for arrays in that order.
      kv_positions: as in `attention`.
      block: as in `attention`.
      return_lse: as in `attention`.

    Returns:
      As `attention`.

    Raises:
      ValueError: as `attention` and the method, if the mesh has no such axis, or if T
        or S do not divide by its size.

    Source: arXiv:2310.01889 (ring), arXiv:2309.14509 (Ulysses).

    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("sequence",))
    >>> with jax.set_mesh(mesh):
    ...     jax.jit(sequence_attention)(q, k, v).shape
    (1, 8, 2, 4)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, got {method!r}")
    options = {"block": block, "return_lse": return_lse}
    sides = {"q_positions": q_positions, "kv_positions": kv_positions}
    settings = {"scale": scale, "softcap": softcap, "sink": sink, **sides}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attention(q, k, v, mask=mask, bias=bias, **settings, **options)
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of {mesh.axis_names}, got {axis!r}")
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds[axis] is AxisType.Manual:
        options["axis_name"] = axis
        return METHODS[method](q, k, v, mask=mask, bias=bias, **settings, **options)
    if mesh.shape[axis] == 1:
        return attention(q, k, v, mask=mask, bias=bias, **settings, **options)
    call = make_call(q, k, v, mask, bias, *settings.values())
    return _mapped(call, mesh, axis, method, **options)


class _Cut(NamedTuple):
    """Over which axes of the mesh positions, examples and heads are cut, or None."""

    axis: str
    rows: tuple[str, ...] | None
    heads: str | None


def _mapped(call: Call, mesh: Any, axis: str, method: str, **options: Any) -> Any:
    """Run a method on every device of the mesh, with its part of all arguments."""
    for name, x in (("q", call.q), ("k", call.k)):
        if x.shape[1] % mesh.shape[axis]:
            raise ValueError(
                f"the length of {name} must be a multiple of the {mesh.shape[axis]} "
                f"devices of {axis!r}, got {x.shape[1]}"
            )
    if call.counted:  # the method counts for itself
        call = call._replace(q_positions=None, kv_positions=None)
    cut = _cut(call, mesh, axis, method)
    lengths = call.q.shape[1], call.k.shape[1]
    several = [cut.heads and by_head(x, lengths) for x in (call.mask, call.bias)]
    leaves, treedef = jax.tree.flatten(call)
    specs = jax.tree.leaves(_specs(call, cut, mesh))
    # What is known before tracing stays known: schedules are made of it.
    given = [
        n
        for n, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array) or specs[n] != PartitionSpec()
    ]

    def local(*arrays: Array) -> Any:
        mine = list(leaves)
        for n, array in zip(given, arrays, strict=True):
            mine[n] = array
        call = treedef.unflatten(mine)
        mask, bias = (
            some_heads(x, jax.lax.axis_index(HEADS), mesh.shape[HEADS]) if many else x
            for x, many in zip((call.mask, call.bias), several, strict=True)
        )
        settings = call._replace(mask=mask, bias=bias)._asdict()
        del settings["counted"]
        return METHODS[method](**settings, axis_name=axis, **options)

    out = PartitionSpec(cut.rows, cut.axis, cut.heads)
    return jax.shard_map(
        local,
        in_specs=tuple(specs[n] for n in given),
        out_specs=(out, out) if options["return_lse"] else out,
        axis_names={axis, *(cut.rows or ()), *([cut.heads] if cut.heads else [])},
    )(*(leaves[n] for n in given))


def _cut(call: Call, mesh: Any, axis: str, method: str) -> _Cut:
    """Cut examples and heads too where they divide; the compiler would gather them."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    free = [n for n, kind in kinds if kind is AxisType.Auto and mesh.shape[n] > 1]
    rows = tuple(name for name in ROWS if name in free)
    size = math.prod(mesh.shape[name] for name in rows)
    lengths = call.q.shape[1], call.k.shape[1]
    if call.q.shape[0] % size or any(
        by_example(x, lengths, call.q.shape[0], size) is None
        for x in (call.mask, call.bias)
    ):
        rows = ()
    parts = mesh.shape.get(HEADS, 1)
    mine, other = parts * (mesh.shape[axis] if method == "ulysses" else 1), parts
    divides = not (call.q.shape[2] % mine or call.k.shape[2] % other)
    return _Cut(axis, rows or None, HEADS if HEADS in free and divides else None)


def _specs(call: Call, cut: _Cut, mesh: Any) -> Call:
    """Return how each leaf is cut."""
    batch, lengths = call.q.shape[0], (call.q.shape[1], call.k.shape[1])
    size = math.prod(mesh.shape[name] for name in cut.rows or ())

    def specs(tree: Any) -> Any:
        rows = iter(by_example(tree, lengths, batch, size) if cut.rows else ())

        def spec(x: Any, q_axis: int | None, kv_axis: int | None) -> PartitionSpec:
            spec: list[Any] = [None] * jnp.ndim(x)
            if next(rows, False):
                spec[0] = cut.rows
            if is_table(x):
                spec[1] = cut.heads
            # A table of queries and keys has all columns everywhere.
            sequence = kv_axis if q_axis is None else q_axis
            if sequence is not None:
                spec[sequence] = cut.axis
            return PartitionSpec(*spec)

        return map_axes(spec, tree)

    def positions(x: Any) -> PartitionSpec:
        return PartitionSpec(cut.rows if x.shape[0] > 1 else None, cut.axis)

    whole = PartitionSpec(cut.rows, cut.axis, cut.heads)
    return jax.tree.map(lambda x: PartitionSpec(), call)._replace(
        q=whole,
        k=whole,
        v=whole,
        mask=specs(call.mask),
        bias=specs(call.bias),
        sink=jax.tree.map(lambda x: PartitionSpec(cut.heads), call.sink),
        q_positions=jax.tree.map(positions, call.q_positions),
        kv_positions=jax.tree.map(positions, call.kv_positions),
    )
