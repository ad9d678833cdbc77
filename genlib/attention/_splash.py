"""Attention by the splash kernels of jax for TPUs, for the calls that they do."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.attention._call import Call
from genlib.attention._costs import block_sizes
from genlib.attention._guard import conditions, guarded
from genlib.attention._mask import Mask
from genlib.attention._mask_tables import _Segments
from genlib.attention._positions import map_axes
from genlib.types import Array, concrete, is_concrete


def refusal(call: Call, return_lse: bool) -> str | None:
    """Return why splash cannot compute this call, or None if it can."""
    lengths = call.q.shape[1], call.k.shape[1]
    packed, others = _split(call)
    reasons = {
        "it computes in bfloat16 and float32": call.q.dtype
        not in (jnp.bfloat16, jnp.float32),
        f"lengths must be multiples of 128, they are {lengths}": lengths[0] % 128
        or lengths[1] % 128
        or 0 in (*lengths, call.q.shape[0]),
        "its log-sum-exp has no derivative": return_lse,
        "it has no bias": call.bias is not None,
        "the derivative of its sink is rounded to the dtype of q": call.sink
        is not None,
        "softcap must be known before tracing": call.softcap is not None
        and concrete(call.softcap) is None,
        "it takes one mask of segments": len(packed) > 1,
    }
    for reason, applies in reasons.items():
        if applies:
            return reason
    if not others:
        return None
    # The kernel is built for one pattern of blocks.
    known = is_concrete(others) and all(
        isinstance(x, np.ndarray) and len(x) == 1
        for x in (call.q_positions, call.kv_positions)
    )
    if not known or _table(others, call, slice(0, 1), slice(0, 1)).shape[0] > 1:
        return (
            "masks other than segments must be known before tracing, and one for all "
            "examples"
        )
    strips = (slice(start, start + 128) for start in range(0, lengths[0], 128))
    if not any(_table(others, call, rows, slice(None)).any() for rows in strips):
        return "nothing is seen"
    return None


def splash(call: Call, block: tuple[int, int] | None) -> tuple[Array, None]:
    """Return the output `[B, T, N, V]`; memory is linear."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    lengths = call.q.shape[1], call.k.shape[1]
    rows, columns = block or block_sizes("tpu", *lengths)
    if lengths[0] % rows or lengths[1] % columns or rows % 128 or columns % 128:
        raise ValueError(
            "block must be multiples of 128 that divide the lengths "
            f"{lengths}, got {block}"
        )
    packed, others = _split(call)
    kernel: Any = library.make_splash_mha(
        _pattern(others, call, library),
        block_sizes=library.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
        ),
        attn_logits_soft_cap=None
        if call.softcap is None
        else float(np.asarray(concrete(call.softcap))),
        head_shards=1,
        q_seq_shards=1,
    )

    def run(q: Array, k: Array, v: Array) -> Array:
        q = (q.astype(call.dtype) * call.scale).astype(q.dtype)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        if not packed:
            return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)
        ids = _segment_ids(packed[0], len(q))
        each = lambda q, k, v, *ids: kernel(q, k, v, library.SegmentIds(*ids))
        return jax.vmap(each)(q, k, v, *ids).swapaxes(1, 2)

    return guarded(call, run), None


def _split(call: Call) -> tuple[list[Any], list[Mask]]:
    """Return the masks of segments, and the others."""
    masks = conditions(call)
    packed = [mask for mask in masks if isinstance(mask, _Segments)]
    return packed, [mask for mask in masks if not isinstance(mask, _Segments)]


def _segment_ids(mask: Any, batch: int) -> list[Array]:
    """Return ids [B, T] and [B, S] that are equal where a query may see a key."""
    q, kv = (jnp.asarray(ids, jnp.int32) for ids in (mask.q_ids, mask.kv_ids))
    kv = jnp.where(kv == 0, jnp.iinfo(jnp.int32).min, kv)  # no one sees padding
    return [jnp.broadcast_to(ids, (batch, ids.shape[1])) for ids in (q, kv)]


def _table(masks: list[Mask], call: Call, rows: slice, columns: slice) -> np.ndarray:
    """Return [1, heads or 1, rows, columns] of a conjunction that is known."""

    def cut(leaf: Any, *axes: int | None) -> Any:
        leaf = np.asarray(leaf)
        for axis, part in zip(axes, (rows, columns), strict=True):
            if axis is not None:
                leaf = leaf[(slice(None),) * axis + (part,)]
        return leaf

    q = call.q_positions[:, None, rows, None]
    kv = call.kv_positions[:, None, None, columns]
    with jax.ensure_compile_time_eval():
        tables = [np.asarray(map_axes(cut, mask)(q, kv)) for mask in masks]
    seen = functools.reduce(operator.and_, tables)
    shape = (1, 1, q.shape[2], kv.shape[3])
    return np.broadcast_to(seen, np.broadcast_shapes(seen.shape, shape))


def _pattern(masks: list[Mask], call: Call, library: Any) -> Any:
    """Return masks as those of the library, one for each head."""
    lengths, heads = (call.q.shape[1], call.k.shape[1]), call.q.shape[2]
    if not masks:
        return library.MultiHeadMask([library.FullMask(lengths)] * heads)

    class Head(library.Mask):
        shape = lengths

        def __init__(self, head: int):
            self.head = head

        def __getitem__(self, parts: tuple[slice, slice]) -> np.ndarray:
            return _table(masks, call, *parts)[0, self.head]

    first = slice(0, 1)
    count = _table(masks, call, first, first).shape[1]
    distinct = [Head(head) for head in range(count)]
    return library.MultiHeadMask(
        [distinct[head * count // heads] for head in range(heads)]
    )
