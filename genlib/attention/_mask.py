"""Masks: what they are, how they combine, and what they say of whole blocks."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from genlib.attention._positions import Axes, Blocks, OverPositions
from genlib.tree import register_dataclass
from genlib.types import Array, ArrayLike

Bounds = tuple[Any, Any]


def pytree(cls: type) -> type:
    """Make a class a frozen dataclass whose fields are the leaves of a pytree."""
    return register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


class Mask(OverPositions):
    """Which keys a query may see: a predicate over their positions.

    Masks combine by `&`, `|` and `~`. Called with positions of queries `[B or 1, 1, T,
    1]` and of keys `[B or 1, 1, 1, S]` a mask returns bools that broadcast to `[B,
    heads, T, S]`; `bounds` says what holds for whole blocks, so that those in which
    nothing is seen are not computed. Both are enough for a mask of one's own, and
    `predicate` makes one of any function.

    >>> from genlib.attention import causal, window
    >>> mask = causal() & window(2)
    >>> visible(mask, jnp.arange(3), jnp.arange(3))[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        """Return whether blocks may see something of others, and surely all of them.

        Two bool arrays that broadcast to `[blocks of q, blocks of kv]`, right for every
        example and head; (True, False), which says nothing, is always right.
        """
        return np.ones((1, 1), bool), np.zeros((1, 1), bool)

    def __and__(self, other: "Mask") -> "Mask":
        return _All(self, _check(other))

    def __or__(self, other: "Mask") -> "Mask":
        return _Any(self, _check(other))

    def __invert__(self) -> "Mask":
        return _Not(self)


def _check(other: Any) -> Mask:
    if not isinstance(other, Mask):
        raise ValueError(f"masks combine with masks, got {type(other).__name__}")
    return other


@pytree
class _All(Mask):
    first: Mask
    second: Mask

    def __call__(self, q: Array, kv: Array) -> Array:
        return self.first(q, kv) & self.second(q, kv)

    def axes(self) -> list[Axes]:
        return self.first.axes() + self.second.axes()

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        one, two = self.first.bounds(q, kv), self.second.bounds(q, kv)
        return one[0] & two[0], one[1] & two[1]


@pytree
class _Any(Mask):
    first: Mask
    second: Mask

    def __call__(self, q: Array, kv: Array) -> Array:
        return self.first(q, kv) | self.second(q, kv)

    def axes(self) -> list[Axes]:
        return self.first.axes() + self.second.axes()

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        one, two = self.first.bounds(q, kv), self.second.bounds(q, kv)
        return one[0] | two[0], one[1] | two[1]


@pytree
class _Not(Mask):
    mask: Mask

    def __call__(self, q: Array, kv: Array) -> Array:
        return ~self.mask(q, kv)

    def axes(self) -> list[Axes]:
        return self.mask.axes()

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        some, every = self.mask.bounds(q, kv)
        return ~every, ~some


def visible(mask: Mask, q_positions: ArrayLike, kv_positions: ArrayLike) -> Array:
    """Evaluate a mask on all pairs of positions.

    Args:
      mask: any.
      q_positions: integers `[T]` or `[B, T]`.
      kv_positions: integers `[S]` or `[B, S]`.

    Returns:
      bool `[B or 1, heads or 1, T, S]`.

    >>> from genlib.attention import causal
    >>> visible(causal(), jnp.arange(2), jnp.arange(2))[0, 0].tolist()
    [[True, False], [True, True]]
    """
    sides = q_positions, kv_positions
    q, kv = (jnp.atleast_2d(jnp.asarray(x, jnp.int32)) for x in sides)
    seen = mask(q[:, None, :, None], kv[:, None, None, :])
    shape = (1, 1, q.shape[-1], kv.shape[-1])
    return jnp.broadcast_to(seen, jnp.broadcast_shapes(seen.shape, shape))
