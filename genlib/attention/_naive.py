"""Attention as it is written in the papers: the reference of all others."""

from typing import Any

import jax.numpy as jnp
from einops import rearrange

from genlib.attention._call import Call
from genlib.attention._scores import dot, finite_rows, seen, softmax_parts
from genlib.attention._tiles import bend, by_query
from genlib.types import Array


def naive(call: Call) -> tuple[Array, Array]:
    """Return the output `[B, T, N, V]` and log-sum-exp `[B, T, N]`, all scores at once.

    It takes `B N T S` numbers of memory, and derivatives of every kind and order.
    """
    length, heads = call.q.shape[1], call.k.shape[2]
    group = call.q.shape[2] // heads
    sides = jnp.asarray(call.q_positions), jnp.asarray(call.kv_positions)
    q, k, v = call.q, call.k, call.v
    visible: Any = None
    bad_q: Any = None
    bad_kv: Any = None
    if call.mask is not None:
        visible = by_query(seen(call.mask, *sides, (heads, group)), group, length)
        bad_q, (q,) = finite_rows(q)
        bad_kv, (k, v) = finite_rows(k, v)
    q = rearrange(q, "b t (k g) h -> b k (g t) h", k=heads)
    k, v = (rearrange(x, "b s k h -> b k s h") for x in (k, v))
    scale = jnp.asarray(call.scale, call.dtype)
    products = dot("bkth,bksh->bkts", q, k) * scale
    logits = bend(products, call.bias, sides, call.softcap)
    if visible is not None:
        logits = jnp.where(visible, logits, -jnp.inf)
    sink: Any = None
    if call.sink is not None:
        sink = jnp.repeat(call.sink.reshape(heads, -1), length, 1)
    weights, lse = softmax_parts(logits, sink)
    out = dot("bkts,bksv->bktv", weights.astype(v.dtype), v)
    if visible is not None:
        bad_q = rearrange(bad_q, "b t (k g) -> b k (g t) 1", k=heads)
        bad = bad_q | rearrange(bad_kv, "b s k -> b k 1 s")
        spoilt = (visible & bad).any(-1)
        out = jnp.where(spoilt[..., None], jnp.nan, out)
        lse = jnp.where(spoilt, jnp.nan, lse)
    out = rearrange(out, "b k (g t) v -> b t (k g) v", g=group)
    lse = rearrange(lse, "b k (g t) -> b t (k g)", g=group)
    return out.astype(call.q.dtype), lse
