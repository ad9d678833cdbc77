"""The derivative of tiled attention: scores are computed again, block by block."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.attention._bias import Bias
from genlib.attention._call import Call
from genlib.attention._positions import Axes, leaf_axes, take
from genlib.attention._schedule import Schedule, schedule, walk
from genlib.attention._tiles import (
    Tiles,
    at,
    bend,
    by_block,
    by_row,
    product,
    put,
    seen_in,
    sides,
    tiles,
    varying,
)
from genlib.tree import is_float
from genlib.types import Array


def backward(
    call: Call,
    block: tuple[int, int] | None,
    out: Array,
    lse: Array,
    d_out: Array,
    d_lse: Array,
) -> Call:
    """Return gradients in the places of the arguments, None for those that have none.

        dl_ij = p_ij (do_i v_j - do_i o_i + dlse_i),    p_ij = exp(l_ij - lse_i)

    Args:
      call: the queries, and some or all of the keys.
      block: as in the forward pass.
      out: `[B, T, N, V]`, the output over all keys.
      lse: `[B, T, N]`, the log-sum-exp over all keys.
      d_out: the gradient of `out`.
      d_lse: the gradient of `lse`.

    Returns:
      Gradients of q, k and v in at least float32, others in the dtype of the argument.

    Source: arXiv:2307.08691.
    """
    plan, some = schedule(call, block)
    return gradients(plan, *varying((call, some, out, lse, d_out, d_lse)))


class _Rows(NamedTuple):
    """What belongs to each query, in blocks: as in `backward`, and `do o - dlse`."""

    d_out: Array
    lse: Array
    delta: Array


class _Floats:
    """The floating leaves of a bias, and what of them a block of scores needs."""

    def __init__(self, bias: Bias | None, sizes: tuple[int, int]):
        leaves, self.treedef = jax.tree.flatten(bias)
        self.sizes = sizes
        self.where = [n for n, leaf in enumerate(leaves) if is_float(leaf)]
        self.axes = [leaf_axes(bias)[n] for n in self.where]
        self.all = self.of(bias)

    def of(self, bias: Bias | None) -> list[Array]:
        leaves = jax.tree.leaves(bias)
        return [jnp.asarray(leaves[n]) for n in self.where]

    def join(self, bias: Bias | None, floats: list[Any], others: bool = True) -> Any:
        """Return a bias with other floats, and None for other leaves if asked to."""
        leaves = jax.tree.leaves(bias) if others else [None] * self.treedef.num_leaves
        for n, leaf in zip(self.where, floats, strict=True):
            leaves[n] = leaf
        return self.treedef.unflatten(leaves)

    def read(self, floats: list[Array], i: Any, j: Any) -> list[Array]:
        return [
            jax.lax.dynamic_slice(x, *self._place(x, axes, i, j))
            for x, axes in zip(floats, self.axes, strict=True)
        ]

    def write(self, floats: list[Array], block: list[Array], i: Any, j: Any) -> Any:
        return [
            jax.lax.dynamic_update_slice(x, new, self._place(x, axes, i, j)[0])
            for x, new, axes in zip(floats, block, self.axes, strict=True)
        ]

    def _place(self, x: Array, axes: Axes, i: Any, j: Any) -> tuple[Any, Any]:
        starts: list[Any] = [jnp.zeros((), jnp.int32)] * x.ndim
        shape = list(x.shape)
        for axis, block, size in zip(axes, (i, j), self.sizes, strict=True):
            if axis is not None:
                starts[axis], shape[axis] = block * size, size
        return starts, shape


def gradients(
    plan: Schedule,
    call: Call,
    some: Any,
    out: Array,
    lse: Array,
    d_out: Array,
    d_lse: Array,
) -> Call:
    """Return what `backward` does, with the schedule of the call."""
    tile = tiles(call, plan)
    floats = _Floats(tile.bias, plan.sizes)
    rows, d_sink = _rows(call, plan, out, lse, d_out, d_lse)
    turn = lambda x: jnp.swapaxes(x, -1, -2)
    turned, rows_turned = turn(tile.v), (turn(tile.q), turn(rows.d_out))
    cap = [] if tile.softcap is None else [jnp.asarray(tile.softcap, call.dtype)]
    state = tile.q, tile.k, turned, floats.all, cap
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, call.dtype), state)

    def compute(i: Any, j: Any, masked: bool, sums: Any) -> Any:
        part = take(tile.bias, i * plan.sizes[0], j * plan.sizes[1], plan.sizes)
        where = sides(tile, plan, i, j)

        def logits(products: Array, changed: list[Array], cap: list[Array]) -> Array:
            return bend(products, floats.join(part, changed), where, *cap)

        visible = seen_in(tile, plan, call.k.shape[1], i, j) if masked else None
        given = at(tile.q, i), at(tile.k, j), at(turned, j)
        mine, mine_turned = jax.tree.map(lambda x: at(x, i), (rows, rows_turned))
        pull = lambda products: jax.vjp(logits, products, floats.of(part), cap)
        more = _pair(given, mine, mine_turned, tile.scale, pull, visible)
        return jax.tree.map(lambda x, y: x + y.astype(x.dtype), sums, more)

    def read(state: Any, i: Any, j: Any) -> Any:
        q, k, v, table, cap = state
        return at(q, i), at(k, j), at(v, j), floats.read(table, i, j), cap

    def write(state: Any, new: Any, i: Any, j: Any) -> Any:
        q, k, v, table, _ = state
        table = floats.write(table, new[3], i, j)
        return put(q, new[0], i), put(k, new[1], j), put(v, new[2], j), table, new[4]

    state = walk(plan, some, varying(state, rows), read, compute, write)
    return _collect(call, plan, tile, floats, state, d_sink)


def _rows(
    call: Call, plan: Schedule, out: Any, lse: Any, d_out: Any, d_lse: Any
) -> tuple[_Rows, Array | None]:
    wide, heads, size = call.dtype, call.k.shape[2], plan.sizes[0]
    delta = (d_out.astype(wide) * out.astype(wide)).sum(-1) - d_lse
    # exp(l - inf) = 0: rows that see nothing, and those of the padding.
    lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse)
    d_sink = None
    if call.sink is not None:
        d_sink = -(jnp.exp(call.sink[None, None] - lse) * delta).sum((0, 1))
    ends = ((0, 0), (0, -lse.shape[1] % size), (0, 0))
    lse = jnp.pad(lse, ends, constant_values=jnp.inf)
    cut = lambda x: by_block(x[..., None], size, heads)[..., 0]
    d_out = by_block(d_out.astype(call.v.dtype), size, heads)
    return _Rows(d_out, cut(lse), cut(delta)), d_sink


def _pair(
    given: Any, rows: _Rows, turned: Any, scale: Any, pull: Any, visible: Any
) -> tuple:
    """Return what a block of scores adds to the gradients; those of keys transposed.

    No product runs down the columns of its first factor, which takes CPUs twice as
    long: that is why q and the gradient of the output come transposed as well.
    """
    (q, k, v), (q_turned, d_out_turned) = given, turned
    logits, pull = pull(product("bkth,bkhs->bkts", q, k, scale))
    weights = jnp.exp(logits - rows.lse[..., None])
    if visible is not None:
        weights = jnp.where(visible, weights, 0.0)
    d_weights = product("bktv,bkvs->bkts", rows.d_out, v)
    d_products, *others = pull(weights * (d_weights - rows.delta[..., None]))
    return (
        product("bkts,bkhs->bkth", d_products, k),
        product("bkht,bkts->bkhs", q_turned, d_products),
        product("bkvt,bkts->bkvs", d_out_turned, weights),
        *others,
    )


def _collect(
    call: Call, plan: Schedule, tile: Tiles, floats: _Floats, state: Any, d_sink: Any
) -> Call:
    """Return gradients in the places of the arguments."""
    q, k, v, table, cap = state
    k, v = (jnp.swapaxes(x, -1, -2) for x in (k, v))
    if tile.bad_q is not None:
        q = jnp.where(tile.bad_q[..., None], 0.0, q)
        k, v = (jnp.where(tile.bad_kv[..., None], 0.0, x) for x in (k, v))
    like = lambda x, d: d.astype(jnp.result_type(x)) if is_float(x) else None
    table = [
        like(x, d[tuple(map(slice, x.shape))])
        for x, d in zip(floats.of(call.bias), table, strict=True)
    ]
    (rows, keys), scale = plan.sizes, jnp.asarray(call.scale, call.dtype)
    return Call(
        q=by_row(q * scale, rows, call.q.shape[1]),
        k=by_row(k * scale, keys, call.k.shape[1]),
        v=by_row(v, keys, call.k.shape[1]),
        mask=None,
        bias=floats.join(call.bias, table, others=False),
        scale=like(call.scale, (q * tile.q).sum()),
        softcap=None if call.softcap is None else like(call.softcap, cap[0]),
        sink=d_sink,
        q_positions=None,
        kv_positions=None,
        counted=None,  # pyright: ignore[reportArgumentType]
    )
