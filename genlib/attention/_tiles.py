"""Queries, keys and values in blocks, and the scores of a pair of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from genlib.attention._bias import Bias
from genlib.attention._call import Call
from genlib.attention._positions import pad, take
from genlib.attention._schedule import Schedule
from genlib.attention._scores import by_group, finite_rows, seen
from genlib.types import Array, compute_dtype


class Tiles(NamedTuple):
    """The arguments of an attention, padded to whole blocks.

    Attributes:
      q: `[blocks, B, K, G rows, H]`, 0 where a row is not finite and may be
        hidden by a mask.
      k: `[blocks, B, K, H, rows]`, likewise.
      v: `[blocks, B, K, rows, V]`, likewise.
      bad_q: bool `[blocks, B, K, G rows]`, which rows are not finite, or None.
      bad_kv: bool `[blocks, B, K, rows]`, or None.
      mask: padded.
      bias: padded.
      scale: as in `Call`.
      softcap: as in `Call`.
      q_positions: `[B or 1, padded T]`.
      kv_positions: `[B or 1, padded S]`.
    """

    q: Array
    k: Array
    v: Array
    bad_q: Any
    bad_kv: Any
    mask: Any
    bias: Any
    scale: Any
    softcap: Any
    q_positions: Array
    kv_positions: Array


def tiles(call: Call, plan: Schedule) -> Tiles:
    """Cut the arguments of an attention into blocks."""
    heads, (rows, keys) = call.k.shape[2], plan.sizes
    q, k, v, bad_q, bad_kv = call.q, call.k, call.v, None, None
    if call.mask is not None:
        bad_q, (q,) = finite_rows(q)
        bad_kv, (k, v) = finite_rows(k, v)
        bad_q = by_block(bad_q[..., None], rows, heads)[..., 0]
        bad_kv = by_block(bad_kv[..., None], keys)[..., 0]
    more = -call.q.shape[1] % rows, -call.k.shape[1] % keys
    positions = (
        jnp.pad(jnp.asarray(x), ((0, 0), (0, n)), "edge")
        if x.shape[1]
        else jnp.asarray(x)
        for x, n in zip((call.q_positions, call.kv_positions), more, strict=True)
    )
    return Tiles(
        by_block(q, rows, heads),
        jnp.swapaxes(by_block(k, keys), -1, -2),
        by_block(v, keys),
        bad_q,
        bad_kv,
        pad(call.mask, more),
        pad(call.bias, more),
        call.scale,
        call.softcap,
        *positions,
    )


def by_block(x: Array, size: int, heads: int | None = None) -> Array:
    """Cut `[B, L, K G, H]` into `[blocks, B, K, G size, H]`, padded with 0."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
    heads = heads or x.shape[2]
    return rearrange(x, "b (n t) (k g) h -> n b k (g t) h", t=size, k=heads)


def by_row(x: Array, size: int, length: int) -> Array:
    """Undo `by_block`."""
    x = rearrange(x, "n b k (g t) h -> b (n t) (k g) h", t=size)
    return x[:, :length]


def sides(tile: Tiles, plan: Schedule, i: Any, j: Any) -> tuple[Array, Array]:
    """Return the positions of a block of queries and one of keys."""
    rows, keys = plan.sizes
    return (
        jax.lax.dynamic_slice_in_dim(tile.q_positions, i * rows, rows, 1),
        jax.lax.dynamic_slice_in_dim(tile.kv_positions, j * keys, keys, 1),
    )


def seen_in(tile: Tiles, plan: Schedule, length: int, i: Any, j: Any) -> Array:
    """Return which scores of a block count, bool broadcasting to `[B, K, G t, s]`.

    Args:
      length: keys before padding.
    """
    rows, keys = plan.sizes
    heads = tile.q.shape[2], tile.q.shape[3] // rows
    inside = (j * keys + jnp.arange(keys) < length)[None, None, None]

    def evaluate() -> Array:
        mask = take(tile.mask, i * rows, j * keys, plan.sizes)
        table = seen(mask, *sides(tile, plan, i, j), heads)
        return by_query(table, heads[1], rows) & inside

    if tile.mask is None:
        return inside
    # A branch that is always taken, because what it returns is kept: otherwise CPUs
    # evaluate the mask again in every loop that needs it, and exp is 6 times slower.
    shape = jax.eval_shape(evaluate)
    nothing = lambda: varying(jnp.zeros(shape.shape, bool), tile)
    return jax.lax.cond(j >= 0, evaluate, nothing)


def by_query(table: Array, group: int, rows: int) -> Array:
    """Fold the groups of a table `[B, K, G, t, s]` into its rows: `[B, K, G t, s]`."""
    shape = table.shape
    table = jnp.broadcast_to(table, (*shape[:2], group, rows, shape[4]))
    return table.reshape(*shape[:2], group * rows, shape[4])


def varying(tree: Any, like: Any = None) -> Any:
    """Make all leaves vary over the mesh axes that one of them, or of `like`, does.

    Inside `shard_map` what a loop carries must, and a sum over devices is then the
    transpose of this, as it should be.
    """

    def over(x: Any) -> frozenset[str]:
        kind = jax.typeof(x)
        axes = getattr(kind, "manual_axis_type", None)  # jax 0.9 has `vma` instead
        return getattr(kind, "vma", frozenset()) if axes is None else axes.varying

    axes = frozenset().union(*map(over, jax.tree.leaves((tree, like))))
    if not axes:
        return tree
    cast = lambda x: jax.lax.pcast(jnp.asarray(x), tuple(axes - over(x)), to="varying")
    return jax.tree.map(lambda x: cast(x) if axes - over(x) else x, tree)


def at(x: Array, i: Any) -> Array:
    """Return a block."""
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def put(x: Array, block: Array, i: Any) -> Array:
    """Replace a block."""
    return jax.lax.dynamic_update_index_in_dim(x, block, i, 0)


def product(equation: str, x: Array, y: Array, scale: Any = 1.0) -> Array:
    """Return an einsum times a scale, in at least float32, of what may be narrower.

    Accelerators multiply what is as narrow as the narrower of the two; CPUs are faster,
    and as exact as float32, when both are widened.
    """
    wide = compute_dtype(x.dtype)
    least = x.dtype if y.dtype == wide else y.dtype
    scale = jnp.asarray(scale, wide)

    def widened(x: Array, y: Array, scale: Array) -> Array:
        return jnp.einsum(equation, x.astype(wide) * scale, y.astype(wide))

    def narrow(x: Array, y: Array, scale: Array) -> Array:
        x, y = x.astype(least), y.astype(least)
        return jnp.einsum(equation, x, y, preferred_element_type=wide) * scale

    if least == wide:
        return widened(x, y, scale)
    return jax.lax.platform_dependent(x, y, scale, cpu=widened, default=narrow)


def bend(
    products: Array,
    bias: Bias | None,
    where: tuple[Array, Array],
    softcap: Any = None,
) -> Array:
    """Return scores of scaled products of queries and keys, `[B, K, G t, s]`."""
    logits = products
    if softcap is not None:
        softcap = jnp.asarray(softcap, products.dtype)
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is None:
        return logits
    rows, heads = where[0].shape[1], logits.shape[1]
    group = logits.shape[2] // rows
    table = bias(where[0][:, None, :, None], where[1][:, None, None, :])
    table = by_group(table, (heads, group)).astype(logits.dtype)
    return logits + by_query(table, group, rows)
