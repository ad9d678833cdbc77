"""Which blocks of scores are computed, and which of them need their mask."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from genlib.attention._call import Call
from genlib.attention._positions import blocks

Pairs = tuple[np.ndarray, ...]  # (blocks of queries, blocks of keys)
ROWS = 256  # of queries or keys in a block: fastest on CPUs from 1024 to 8192 rows


class Schedule(NamedTuple):
    """Pairs (block of queries, block of keys), in the order in which they are taken.

    Attributes:
      sizes: rows in a block of queries and of keys.
      counts: blocks of queries and of keys.
      full: pairs in which everything is seen.
      partial: pairs that need their mask. Those that see nothing are in neither list.
    """

    sizes: tuple[int, int]
    counts: tuple[int, int]
    full: Pairs
    partial: Pairs


def schedule(
    call: Call, block: tuple[int, int] | None = None
) -> tuple[Schedule, Any | None]:
    """Return the blocks to compute, and where only a run can tell which: bool [q, k].

    Where masks and positions are known before tracing no work is planned for a block
    that sees nothing. Otherwise every pair is listed, and the second result says which
    ones see something.
    """
    lengths = call.q.shape[1], call.k.shape[1]
    most = block or (ROWS, ROWS)
    sizes = block_size(lengths[0], most[0]), block_size(lengths[1], most[1])
    queries = blocks(call.q_positions, sizes[0], queries=True)
    keys = blocks(call.kv_positions, sizes[1], queries=False)
    counts = queries.lo.shape[0], keys.lo.shape[1]
    bounds = np.True_, np.True_
    if call.mask is not None and min(counts) and call.q.shape[0]:
        bounds = call.mask.bounds(queries, keys)
    if not all(isinstance(x, (np.ndarray, np.bool_)) for x in bounds):
        every = np.zeros(counts, bool)
        some = jax.numpy.broadcast_to(bounds[0], counts)
        plan = Schedule(sizes, counts, every.nonzero(), (~every).nonzero())
        return plan, some
    some, every = (np.broadcast_to(x, counts).copy() for x in bounds)
    if lengths[1] % sizes[1]:
        every[:, -1:] = False  # its last keys are padding
    return Schedule(
        sizes, counts, (some & every).nonzero(), (some & ~every).nonzero()
    ), None


def block_size(length: int, most: int) -> int:
    """Return the rows of blocks that cover a length evenly, with little padding."""
    count = max(1, -(-length // most))
    return min(most, max(1, -(-length // count)))


def walk(
    plan: Schedule,
    some: Any | None,
    state: Any,
    read: Callable[[Any, Any, Any], Any],
    compute: Callable[[Any, Any, bool, Any], Any],
    write: Callable[[Any, Any, Any, Any], Any],
) -> Any:
    """Return the state after all pairs: the rows of each are read, computed, written.

    Args:
      plan: of static length, so that programs do not grow with it.
      some: bool [q, k] or None, which pairs see anything.
      state: pytree.
      read: `(state, i, j) -> rows`.
      compute: `(i, j, masked, rows) -> rows`.
      write: `(state, rows, i, j) -> state`.
    """

    def step(state: Any, pair: Any, masked: bool) -> Any:
        i, j = pair
        rows = read(state, i, j)
        update = lambda rows: compute(i, j, masked, rows)
        if some is None:
            rows = update(rows)
        else:
            rows = jax.lax.cond(some[i, j], update, lambda rows: rows, rows)
        return write(state, rows, i, j), None

    for pairs, masked in ((plan.full, False), (plan.partial, True)):
        if len(pairs[0]):
            pairs = tuple(x.astype(np.int32) for x in pairs)
            state, _ = jax.lax.scan(lambda s, p, m=masked: step(s, p, m), state, pairs)
    return state
