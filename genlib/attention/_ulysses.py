"""Attention over a sequence that is cut among devices: each computes some heads."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.attention._attention import attention
from genlib.attention._bias import Bias
from genlib.attention._mask import Mask
from genlib.attention._positions import map_axes
from genlib.attention._shards import (
    by_head,
    check_shard,
    is_table,
    some_heads,
    take_heads,
)
from genlib.attention._tiles import varying
from genlib.types import Array, ArrayLike, Scalar


def ulysses_attention(
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
    impl: Any = "auto",
    block: tuple[int, int] | None = None,
    return_lse: bool = False,
) -> Any:
    """Compute attention over a sequence that is cut among devices, head by head.

    An all-to-all gives every device all positions of some heads; it computes their
    attention by any `impl`, and another all-to-all brings the results back. That is
    less communication than a ring's and needs no layout of its own, but there can be no
    more devices than heads. The result is that of `attention` over the whole sequence.

    With fewer key heads than devices each is sent to several, n / K of them. Unlike in
    a ring what masks and biases hold for queries and keys is gathered.

    Args:
      q: `[B, T / n, N, H]`, the queries of this device; N a multiple of n.
      k: `[B, S / n, K, H]`, its keys; K a multiple or a divisor of n.
      v: `[B, S / n, K, V]`, its values.
      axis_name: of `shard_map` or `pmap`, of size n.
      mask: as in `attention`. What it holds for each query are those of this device,
        for each key those of this device or of all; a table of both has the rows of
        this device and all columns, `[B, heads, T / n, S]`.
      bias: likewise.
      scale: as in `attention`.
      softcap: as in `attention`.
      sink: as in `attention`, `[N]`.
      q_positions: integers `[T / n]` or `[B, T / n]`, of this device.
      kv_positions: integers `[S / n]` or `[B, S / n]`, of this device.
      impl: as in `attention`.
      block: as in `attention`.
      return_lse: whether to return the log-sum-exp too.

    Returns:
      `[B, T / n, N, V]`, and with `return_lse` float `[B, T / n, N]`.

    Raises:
      ValueError: as `attention`, if heads and devices do not divide as above, or if a
        mask or bias holds other keys.

    Source: arXiv:2309.14509.

    >>> import functools
    >>> from genlib.attention import causal
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("heads",))
    >>> local = functools.partial(ulysses_attention, axis_name="heads", mask=causal())
    >>> rows = jax.P(None, "heads")
    >>> whole = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows)
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
    >>> jax.jit(whole)(q, k, v).shape
    (1, 8, 2, 4)
    """
    shards, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    settings = scale, softcap, sink, q_positions, kv_positions
    call = check_shard(shards, q, k, v, mask, bias, *settings)
    queries, keys = call.q.shape[1:3], call.k.shape[1:3]
    if queries[1] % shards or (keys[1] % shards and shards % keys[1]):
        raise ValueError(
            f"the {queries[1]} heads of q must be a multiple of the {shards} devices "
            f"of {axis_name!r}, and the {keys[1]} of k a multiple or a divisor"
        )

    def join(x: Any, axis: int) -> Array:
        return jax.lax.all_gather(jnp.asarray(x), axis_name, axis=axis, tiled=True)

    def swap(x: Array, heads: int, axis: int) -> Array:
        """Return all of an axis, for the heads of this device."""
        if x.shape[heads] < shards:
            x = jnp.repeat(x, shards // x.shape[heads], heads)
        return jax.lax.all_to_all(x, axis_name, heads, axis, tiled=True)

    def gather(x: Any, q_axis: int | None, kv_axis: int | None) -> Any:
        if q_axis is not None:
            return swap(x, 1, q_axis) if is_table(x) else join(x, q_axis)
        if kv_axis is not None and x.shape[kv_axis] == keys[0]:
            x = join(x, kv_axis)
        return take_heads(x, index, shards) if is_table(x) else x

    lengths = queries[0] * shards, keys[0] * shards
    # Sums over devices are of gradients of the leaves then, not of whole tables.
    bias = varying(call.bias, (call.q, index))
    trees = [map_axes(gather, tree) for tree in (call.mask, bias)]
    mask, bias = (
        some_heads(tree, index, shards) if by_head(tree, lengths) else tree
        for tree in trees
    )
    count = queries[1] // shards
    if call.sink is not None:
        sink = jax.lax.dynamic_slice_in_dim(call.sink, index * count, count)
    sides = None, None
    if not call.counted:
        sides = join(call.q_positions, 1), join(call.kv_positions, 1)
    found = attention(
        *(swap(x, 2, 1) for x in (call.q, call.k, call.v)),
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sink=sink,
        q_positions=sides[0],
        kv_positions=sides[1],
        impl=impl,
        block=block,
        return_lse=return_lse,
    )
    back = lambda x: jax.lax.all_to_all(x, axis_name, 1, 2, tiled=True)
    return jax.tree.map(back, found)
