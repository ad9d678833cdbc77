"""Learned biases of distances, the longer ones by the bucket."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from genlib.attention._bias import Bias
from genlib.attention._mask import pytree
from genlib.types import Array, ArrayLike


@pytree
class _Relative(Bias):
    table: Any
    bidirectional: bool = dataclasses.field(metadata={"static": True})
    max_distance: int = dataclasses.field(metadata={"static": True})

    def __call__(self, q: Array, kv: Array) -> Array:
        count = self.table.shape[0] // (2 if self.bidirectional else 1)
        past = _buckets(count, self.max_distance)
        future = past[1:] + count if self.bidirectional else 0 * past[1:]
        rows = jnp.asarray(self.table)[np.concatenate([past[::-1], future])]
        end = self.max_distance
        found = rows[jnp.clip(kv - q, -end, end) + end]
        return jnp.moveaxis(found[:, 0], -1, 1)


def _buckets(count: int, max_distance: int) -> np.ndarray:
    """Return the bucket of each distance up to the last, in exact arithmetic."""
    exact = count // 2
    more = count - exact
    # The bucket of d is exact + floor(more log(d / exact) / log(max_distance / exact)).
    starts = [
        next(
            d
            for d in range(exact, max_distance + 1)
            if d**more >= exact ** (more - i) * max_distance**i
        )
        for i in range(1, more)
    ]
    distances = np.arange(max_distance + 1)
    far = exact + np.searchsorted(starts, distances, side="right")
    return np.where(distances < exact, distances, far)


def relative_bias(
    table: ArrayLike, *, bidirectional: bool = True, max_distance: int = 128
) -> Bias:
    """Return the learned biases of T5: one for each head and bucket of distances.

    Half of the buckets are the distances 0, 1, .. themselves, the others grow
    geometrically up to `max_distance`, and the last holds all that is beyond. With
    `bidirectional` the first half of the buckets is of keys at and before the query,
    the second of those after it; without, all are of the former, and later keys are at
    distance 0.

    Args:
      table: `[buckets, heads]`, a leaf of the bias.
      bidirectional: as above.
      max_distance: positions.

    Raises:
      ValueError: if the table has not two axes and at least 2 buckets for a direction
        (an even number of them for two), or if `max_distance` is not beyond the
        distances that have a bucket of their own.

    Source: arXiv:1910.10683, section 2.1.

    >>> bias = relative_bias(jnp.arange(4.0)[:, None], max_distance=8)
    >>> q, k = jnp.full((1, 1, 1, 1), 1), jnp.arange(4).reshape(1, 1, 1, 4)
    >>> bias(q, k)[0, 0, 0].tolist()
    [1.0, 0.0, 3.0, 3.0]
    """
    shape = jnp.shape(table)
    ways = 2 if bidirectional else 1
    if len(shape) != 2 or shape[0] < 2 * ways or shape[0] % ways:
        raise ValueError(
            f"table must be [buckets, heads] of at least {2 * ways} buckets, an even "
            f"number for two directions, got shape {list(shape)}"
        )
    if max_distance <= shape[0] // ways // 2:
        raise ValueError(
            f"max_distance must be above {shape[0] // ways // 2}, got {max_distance}"
        )
    return _Relative(table, bidirectional, max_distance)
