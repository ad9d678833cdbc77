"""Attention over a sequence that is cut among devices: keys travel around a ring."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from genlib import tree
from genlib.attention._bias import Bias
from genlib.attention._call import Call
from genlib.attention._mask import Mask
from genlib.attention._merge import merge
from genlib.attention._positions import map_axes
from genlib.attention._shards import check_shard, cut
from genlib.attention._tiled import forward
from genlib.attention._tiled_backward import backward
from genlib.attention._tiles import varying
from genlib.types import Array, ArrayLike, Scalar


def ring_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    axis_name: Any,
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
    """Compute attention over a sequence that is cut among devices.

    Keys and values travel from device to device; each adds to what its queries see,
    part by part (`merge`), and blocks that see nothing are not computed. No device ever
    holds more keys than its own and those in flight, in the backward pass neither, in
    which they travel once more, with their gradients. The result is that of `attention`
    over the whole sequence.

    By default device r of n has the r-th part of queries that are the last of the
    positions, and the r-th part of the keys. Under a causal mask the first devices then
    have the least to do: `zigzag` balances them.

    Args:
      q: `[B, T / n, N, H]`, the queries of this device.
      k: `[B, S / n, K, H]`, its keys.
      v: `[B, S / n, K, V]`, its values.
      axis_name: of `shard_map` or `pmap`, of size n.
      mask: as in `attention`. What it holds for each query are those of this device,
        for each key those of this device or of all; a table of both has the rows of
        this device and all columns, `[B, heads, T / n, S]`.
      bias: likewise.
      scale: as in `attention`.
      softcap: as in `attention`.
      sink: as in `attention`.
      q_positions: integers `[T / n]` or `[B, T / n]`, of this device.
      kv_positions: integers `[S / n]` or `[B, S / n]`, of this device.
      block: rows of queries and keys computed at a time.
      return_lse: whether to return the log-sum-exp too.

    Returns:
      `[B, T / n, N, V]`, and with `return_lse` float `[B, T / n, N]`.

    Raises:
      ValueError: as `attention`, or if a mask or bias holds other keys.

    Source: arXiv:2310.01889.

    >>> from genlib.attention import causal
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("ring",))
    >>> ring = functools.partial(ring_attention, axis_name="ring", mask=causal())
    >>> rows = jax.P(None, "ring")
    >>> ring = jax.shard_map(ring, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows)
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
    >>> jax.jit(ring)(q, k, v).shape
    (1, 8, 2, 4)
    """
    shards, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    settings = scale, softcap, sink, q_positions, kv_positions
    call = check_shard(shards, q, k, v, mask, bias, *settings)
    if call.counted:
        mine, keys = call.q.shape[1], call.k.shape[1]
        start = shards * (keys - mine) + index * mine
        call = call._replace(
            q_positions=(start + jnp.arange(mine, dtype=jnp.int32))[None],
            kv_positions=(index * keys + jnp.arange(keys, dtype=jnp.int32))[None],
        )
    settings = (call.scale, call.softcap)
    scale, softcap = jax.tree.map(lambda x: jnp.asarray(x, call.dtype), settings)
    call = call._replace(scale=scale, softcap=softcap, counted=False)
    call = varying(jax.tree.map(jnp.asarray, call), index)
    found: Any = _attend(call, axis_name, block)
    out, lse, spoilt = found
    if spoilt is not None:
        out = jnp.where(spoilt[..., None], jnp.nan, out)
        lse = jnp.where(spoilt, jnp.nan, lse)
    return (out, lse) if return_lse else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attend(call: Call, axis_name: Any, block: Any) -> tuple[Array, Array, Any]:
    out, lse, spoilt = _sums(call, axis_name, block)
    return out.astype(call.q.dtype), lse, spoilt


def _keep(call: Call, axis_name: Any, block: Any) -> Any:
    found: Any = _attend(call, axis_name, block)
    return found, (call, *found[:2])


def _pull(axis_name: Any, block: Any, kept: Any, given: Any) -> tuple[Call]:
    (call, out, lse), (d_out, d_lse, _) = kept, given
    return (_gradients(call, out, lse, d_out, d_lse, axis_name, block),)


_attend.defvjp(_keep, _pull)


def _sums(call: Call, axis_name: Any, block: Any) -> tuple[Array, Array, Any]:
    """Return output, log-sum-exp, and the rows that see what is not finite."""
    shards, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    flies, rows = _flies(call), call.q.shape[:-1]
    found = (
        jnp.zeros((*rows, call.v.shape[-1]), call.dtype),
        jnp.full(rows, -jnp.inf, call.dtype),
        None if call.mask is None else jnp.zeros(rows, bool),
    )

    def add(found: Any, held: Call, step: Any, sink: Any) -> Any:
        part = _landed(held, (index - step) % shards, sink)
        out, lse, spoilt = forward(part, block)
        spoilt = None if spoilt is None else found[2] | spoilt
        return *merge(found[:2], (out, lse)), spoilt

    def turn(carry: Any, step: Any) -> Any:
        held, found = carry
        # Sent before it is needed, so that it travels while this part is computed.
        coming = _send(held, flies, axis_name)
        return (coming, add(found, held, step, None)), None

    held, found = call, varying(found, call)
    if shards > 1:
        steps = jnp.arange(shards - 1)
        (held, found), _ = jax.lax.scan(turn, (held, found), steps)
    return add(found, held, shards - 1, call.sink)


def _gradients(
    call: Call,
    out: Array,
    lse: Array,
    d_out: Array,
    d_lse: Array,
    axis_name: Any,
    block: Any,
) -> Call:
    """Turn the ring once more: keys travel with their gradients, back home."""
    shards, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    flies = _flies(call)
    inputs, inputs_fly = _differentiable(call, call), _differentiable(call, flies)
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, call.dtype), inputs)

    def turn(carry: Any, step: Any) -> Any:
        held, total = carry
        source = (index - step) % shards
        part = _landed(held, source, None)
        found = backward(part, block, out, lse, d_out, d_lse)
        start = source * call.k.shape[1]
        total = jax.tree.map(lambda x, more: _add(x, more, start), total, found)
        total = _send(total, inputs_fly, axis_name)
        return (_send(held, flies, axis_name), total), None

    carry = call, varying(total, call)
    (_, total), _ = jax.lax.scan(turn, carry, jnp.arange(shards))
    found = jax.tree.map(lambda x, like: x.astype(like.dtype), total, inputs)
    if call.sink is None:
        return found
    # The sink is a key of value 0 that stays where it is.
    delta = (d_out.astype(call.dtype) * out.astype(call.dtype)).sum(-1) - d_lse
    weights = jnp.exp(
        call.sink[None, None] - jnp.where(jnp.isneginf(lse), jnp.inf, lse)
    )
    return found._replace(sink=-(weights * delta).sum((0, 1)))


def _flies(call: Call) -> Call:
    """Return for each leaf whether it belongs to the keys, and travels with them."""
    length = call.k.shape[1]

    def mine(x: Any, q_axis: int | None, kv_axis: int | None) -> bool:
        return q_axis is None and kv_axis is not None and x.shape[kv_axis] == length

    stays = jax.tree.map(lambda x: False, call)
    masks = {"mask": map_axes(mine, call.mask), "bias": map_axes(mine, call.bias)}
    return stays._replace(k=True, v=True, kv_positions=True, **masks)


def _differentiable(call: Call, values: Call) -> Call:
    """Keep of `values` what `backward` returns; the rest is None."""
    keep = lambda x, value: value if tree.is_float(x) else None
    nothing = dict.fromkeys(("mask", "sink", "q_positions", "kv_positions", "counted"))
    return values._replace(bias=jax.tree.map(keep, call.bias, values.bias), **nothing)


def _landed(held: Call, source: Any, sink: Any) -> Call:
    """Return the attention to the keys of one device."""
    length = held.k.shape[1]
    start = source * length
    mask, bias = cut(held.mask, start, length), cut(held.bias, start, length)
    return held._replace(mask=mask, bias=bias, sink=sink, counted=False)


def _send(values: Any, flies: Any, axis_name: Any) -> Any:
    shards = jax.lax.axis_size(axis_name)
    to_next = [(i, (i + 1) % shards) for i in range(shards)]
    send = lambda x, fly: jax.lax.ppermute(x, axis_name, to_next) if fly else x
    return jax.tree.map(send, values, flies)


def _add(total: Array, more: Array, start: Any) -> Array:
    """Add to all of an array, or from `start` on along the axis that is longer."""
    more = more.astype(total.dtype)
    if total.shape == more.shape:
        return total + more
    sizes = zip(total.shape, more.shape, strict=True)
    axis = next(n for n, (size, part) in enumerate(sizes) if size != part)
    old = jax.lax.dynamic_slice_in_dim(total, start, more.shape[axis], axis)
    return jax.lax.dynamic_update_slice_in_dim(total, old + more, start, axis)
