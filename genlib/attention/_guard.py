"""What kernels of other libraries leave undone: rows that see nothing, and NaN."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from genlib.attention._call import Call
from genlib.attention._mask import Mask, _All
from genlib.attention._positions import blocks
from genlib.attention._scores import finite_rows, seen
from genlib.types import Array, concrete

Kernel = Callable[[Array, Array, Array], Array]


def guarded(call: Call, kernel: Kernel) -> Array:
    """Return `kernel(q, k, v)` with 0 where nothing is seen and NaN where a NaN is.

    The kernel is given finite rows, and no derivative of a repaired row reaches it.
    """
    if call.mask is None:
        return kernel(call.q, call.k, call.v)
    mask, heads = call.mask, (call.k.shape[2], call.q.shape[2] // call.k.shape[2])
    sides = jnp.asarray(call.q_positions), jnp.asarray(call.kv_positions)
    bad_q, (q,) = finite_rows(call.q)
    bad_kv, (k, v) = finite_rows(call.k, call.v)
    rows = rearrange(bad_q, "b t (k g) -> b k g t 1", k=heads[0])
    columns = rearrange(bad_kv, "b s k -> b k 1 1 s")

    def spoilt() -> Array:
        return (seen(mask, *sides, heads) & (rows | columns)).any(-1)

    # A table of T x S, even one that is reduced at once, is not for every call.
    some_bad = bad_q.any() | bad_kv.any()
    nan = jax.lax.cond(some_bad, spoilt, lambda: jnp.zeros(rows.shape[:-1], bool))
    empty = ~seen(mask, *sides, heads).any(-1)
    out = rearrange(kernel(q, k, v), "b t (k g) v -> b k g t v", k=heads[0])
    out = jnp.where(nan[..., None], jnp.nan, out)
    out = jnp.where(empty[..., None], 0.0, out)
    return rearrange(out, "b k g t v -> b t (k g) v")


def conditions(call: Call) -> list[Mask]:
    """Return the masks whose conjunction is the mask, less those that are true."""
    sizes = call.q.shape[1], call.k.shape[1]
    if 0 in sizes:
        return _conjuncts(call.mask)
    q = blocks(call.q_positions, sizes[0], queries=True)
    kv = blocks(call.kv_positions, sizes[1], queries=False)

    def certain(mask: Mask) -> bool:
        every = concrete(mask.bounds(q, kv)[1])
        return every is not None and bool(every.all())

    return [mask for mask in _conjuncts(call.mask) if not certain(mask)]


def _conjuncts(mask: Any) -> list[Mask]:
    if isinstance(mask, _All):
        return _conjuncts(mask.first) + _conjuncts(mask.second)
    return [] if mask is None else [mask]
