"""Softmax in one pass over the keys, step by step, for readers."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp

from genlib.types import Array


class OnlineSoftmax(NamedTuple):
    """What one pass over the keys has to remember of those it has seen.

    Attributes:
      top: the largest score so far `[T]`.
      total: the sum of exp(score - top) `[T]`.
      weighted: the sum of exp(score - top) v `[T, V]`.

    >>> OnlineSoftmax(jnp.zeros(1), jnp.full(1, 2.0), jnp.ones((1, 3))).out.tolist()
    [[0.5, 0.5, 0.5]]
    """

    top: Array
    total: Array
    weighted: Array

    @property
    def out(self) -> Array:
        """Attention over the keys so far `[T, V]`."""
        return self.weighted / self.total[:, None]

    @property
    def lse(self) -> Array:
        """The log-sum-exp of the scores so far `[T]`."""
        return self.top + jnp.log(self.total)


def online_softmax(q: Array, k: Array, v: Array, block: int) -> Iterator[OnlineSoftmax]:
    """Yield the state of attention after each block of keys; the last one is exact.

        m' = max(m, max_j s_j),    l' = exp(m - m') l + sum_j exp(s_j - m')
        a' = exp(m - m') a + sum_j exp(s_j - m') v_j,    out = a / l

    No table of all scores is ever there, which is why attention needs no memory for
    one. This is for reading, one head at a time; `attention` does the same in blocks.

    Args:
      q: `[T, H]`.
      k: `[S, H]`.
      v: `[S, V]`.
      block: keys in a block.

    Raises:
      ValueError: if `block` is not positive.

    Source: arXiv:1805.02867; arXiv:2205.14135, algorithm 1.

    >>> q, k, v = jnp.zeros((1, 2)), jnp.ones((3, 2)), jnp.array([[3.0], [6.0], [9.0]])
    >>> [state.out.item() for state in online_softmax(q, k, v, block=1)]
    [3.0, 4.5, 6.0]
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    return _states(q, k, v, block)


def _states(q: Array, k: Array, v: Array, block: int) -> Iterator[OnlineSoftmax]:
    top = jnp.full(len(q), -jnp.inf, q.dtype)
    total = jnp.zeros(len(q), q.dtype)
    weighted = jnp.zeros((len(q), v.shape[1]), v.dtype)
    for start in range(0, len(k), block):
        scores = q @ k[start : start + block].T * q.shape[1] ** -0.5
        higher = jnp.maximum(top, scores.max(1))
        shrink = jnp.exp(top - higher)
        parts = jnp.exp(scores - higher[:, None])
        total = shrink * total + parts.sum(1)
        weighted = shrink[:, None] * weighted + parts @ v[start : start + block]
        top = higher
        yield OnlineSoftmax(top, total, weighted)
