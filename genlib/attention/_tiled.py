"""Attention block by block: memory that is linear in length, and its own derivative."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.attention._call import Call
from genlib.attention._positions import take
from genlib.attention._schedule import Schedule, schedule, walk
from genlib.attention._scores import row_max
from genlib.attention._tiled_backward import gradients
from genlib.attention._tiles import (
    Tiles,
    at,
    bend,
    by_row,
    product,
    put,
    seen_in,
    sides,
    tiles,
    varying,
)
from genlib.types import Array


def tiled(call: Call, block: tuple[int, int] | None = None) -> tuple[Array, Array]:
    """Return the output `[B, T, N, V]` and log-sum-exp `[B, T, N]`."""
    plan, some = schedule(call, block)

    @jax.custom_vjp
    def attend(call: Call, some: Any) -> tuple[Array, Array, Any]:
        out, lse, spoilt = sums(call, plan, some)
        return out.astype(call.q.dtype), lse, spoilt

    def keep(call: Call, some: Any) -> Any:
        found = attend(call, some)
        return found, (call, some, *found[:2])

    def pull(kept: Any, given: Any) -> Any:
        call, some, out, lse = kept
        found = gradients(plan, call, some, out, lse, *given[:2])
        narrow = {name: getattr(found, name).astype(call.q.dtype) for name in "qkv"}
        return found._replace(**narrow), None

    attend.defvjp(keep, pull)
    out, lse, spoilt = attend(*varying((call, some)))
    if spoilt is not None:
        out = jnp.where(spoilt[..., None], jnp.nan, out)
        lse = jnp.where(spoilt, jnp.nan, lse)
    return out, lse


def forward(
    call: Call, block: tuple[int, int] | None = None
) -> tuple[Array, Array, Array | None]:
    """Return output, log-sum-exp, and which rows see something that is not finite.

    Output and log-sum-exp, in at least float32, are finite in such rows too: computed
    with 0 in place of what is not. The third is bool `[B, T, N]`, None without a mask.
    """
    plan, some = schedule(call, block)
    call, some = varying((call, some))
    return sums(call, plan, some)


def sums(call: Call, plan: Schedule, some: Any) -> tuple[Array, Array, Any]:
    """Return what `forward` does, with the schedule of the call."""
    tile, wide = tiles(call, plan), call.dtype
    length, keys = call.q.shape[1], call.k.shape[1]
    shape = tile.q.shape[:-1]
    # A maximum that is never -inf, so that no difference is NaN.
    top, total = jnp.full(shape, jnp.finfo(wide).min, wide), jnp.zeros(shape, wide)
    if call.sink is not None:
        sink = jnp.repeat(call.sink.reshape(shape[2], -1), plan.sizes[0], 1)
        top = jnp.maximum(sink[None, None], top)
        total = jnp.exp(sink[None, None] - top)
    out = jnp.zeros((*shape, call.v.shape[-1]), wide)

    def compute(i: Any, j: Any, masked: bool, rows: Any) -> Any:
        out, old, total = rows
        products = product("bkth,bkhs->bkts", at(tile.q, i), at(tile.k, j), tile.scale)
        bias = take(tile.bias, i * plan.sizes[0], j * plan.sizes[1], plan.sizes)
        logits = bend(products, bias, sides(tile, plan, i, j), tile.softcap)
        if masked:
            visible = seen_in(tile, plan, keys, i, j)
            logits = jnp.where(visible, logits, -jnp.inf)
        top = jnp.maximum(old, row_max(logits))
        parts = jnp.exp(logits - top[..., None])
        shrink = jnp.exp(old - top)
        out *= shrink[..., None]
        out += product("bkts,bksv->bktv", parts, at(tile.v, j))
        return out, top, total * shrink + parts.sum(-1)

    read = lambda state, i, j: jax.tree.map(lambda x: at(x, i), state)
    write = lambda state, rows, i, j: tuple(
        put(x, row, i) for x, row in zip(state, rows, strict=True)
    )
    state = varying((out, top, total), call)
    out, top, total = walk(plan, some, state, read, compute, write)
    empty = total == 0
    safe = jnp.where(empty, 1.0, total)
    lse = jnp.where(empty, -jnp.inf, top + jnp.log(safe))
    flat = lambda x: by_row(x[..., None], plan.sizes[0], length)[..., 0]
    spoilt = None if tile.bad_q is None else flat(spoilt_rows(tile, plan, some, keys))
    return by_row(out / safe[..., None], plan.sizes[0], length), flat(lse), spoilt


def spoilt_rows(tile: Tiles, plan: Schedule, some: Any, length: int) -> Array:
    """Return which queries see a row that is not finite, `[blocks, B, K, G rows]`."""
    none = varying(jnp.zeros(tile.bad_q.shape, bool), tile)

    def compute(i: Any, j: Any, masked: bool, spoilt: Array) -> Array:
        bad = at(tile.bad_q, i)[..., None] | at(tile.bad_kv, j)[:, :, None]
        if masked:
            bad &= seen_in(tile, plan, length, i, j)
        return spoilt | bad.any(-1)

    def search() -> Array:
        read = lambda state, i, j: at(state, i)
        write = lambda state, rows, i, j: put(state, rows, i)
        return walk(plan, some, none, read, compute, write)

    return jax.lax.cond(tile.bad_q.any() | tile.bad_kv.any(), search, lambda: none)
