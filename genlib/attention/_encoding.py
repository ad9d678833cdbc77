"""What an encoding of positions is: a way to keep keys and a way to attend to them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from genlib.attention._rope import check_positions
from genlib.types import Array


class Encoding(NamedTuple):
    """How attention knows where things are.

    Attributes:
      keys: `(k, positions=None) -> k`: what is kept of keys `[B, S, K, H]` at integer
        positions `[S]` or `[B, S]`, as rotated keys in a cache.
      attend: `(q, k, v, q_positions=None, kv_positions=None, *, mask=None, **options)`:
        the attention of queries `[B, T, N, H]`, as they are, to what `keys` made of
        keys. Options are those of `attention`, and `attend`, the function of its
        arguments that is called in its place.

    Without positions keys are counted from 0, and queries are the last of them.
    """

    keys: Callable[..., Array]
    attend: Callable[..., Any]


def check_sides(q: Array, k: Array, mine: Any, other: Any) -> tuple[Array, Array]:
    """Return positions `[B or 1, T]` of queries and `[B or 1, S]` of keys."""
    if (mine is None) != (other is None):
        raise ValueError("give both q_positions and kv_positions, or neither")
    if mine is None:
        mine = np.arange(k.shape[1] - q.shape[1], k.shape[1])
        other = np.arange(k.shape[1])
    return check_positions(q, mine, 0), check_positions(k, other, 0)
