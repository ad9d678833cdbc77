"""Masks that are functions of positions alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.attention._mask import Bounds, Mask, pytree
from genlib.attention._positions import Blocks
from genlib.types import Array, ArrayLike, concrete


@pytree
class _Causal(Mask):
    def __call__(self, q: Array, kv: Array) -> Array:
        return kv <= q

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return kv.lo <= q.hi, kv.hi <= q.lo


def causal() -> Mask:
    """Let a query see the keys at its own position and before.

        k <= q

    By default the queries are the last T of the S positions, so that a few queries
    over a cache see what they see in the full sequence; with `q_positions` and
    `kv_positions` anything else.

    Source: arXiv:1706.03762.

    >>> from genlib.attention import visible
    >>> visible(causal(), jnp.array([4, 5]), jnp.arange(6))[0, 0].sum(-1).tolist()
    [5, 6]
    """
    return _Causal()


@pytree
class _Window(Mask):
    size: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        return (q - kv < self.size) & (kv - q < self.size)

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        known = concrete(self.size)
        size = self.size if known is None else known
        some = (q.lo - kv.hi < size) & (kv.lo - q.hi < size)
        return some, (q.hi - kv.lo < size) & (kv.hi - q.lo < size)


def window(size: int) -> Mask:
    """Let a query see keys nearer than `size` positions.

        |q - k| < size

    `causal() & window(w)` sees w keys, those at q - w + 1 .. q.

    Args:
      size: at least 1 (itself alone).

    Raises:
      ValueError: if `size` is not a scalar or below 1.

    Source: arXiv:2004.05150.

    >>> from genlib.attention import visible
    >>> visible(window(2), jnp.array([4]), jnp.arange(7))[0, 0, 0].nonzero()[0].tolist()
    [3, 4, 5]
    """
    _check_size(size)
    return _Window(size)


@pytree
class _Prefix(Mask):
    length: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        length = self.length
        return kv < (length if jnp.ndim(length) == 0 else length[:, None, None, None])

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        known = concrete(self.length)
        length = self.length if known is None else known
        return kv.lo < length.max(), kv.hi < length.min()


def prefix(length: ArrayLike) -> Mask:
    """Let every query see the keys at positions below `length`.

        k < length

    `causal() | prefix(n)` is the mask of a prefix language model; with a length for
    each example, `prefix` alone is that of padded keys.

    Args:
      length: an integer, or one for each example `[B]`.

    Raises:
      ValueError: if `length` is neither.

    Source: arXiv:1910.10683 (prefix LM).

    >>> from genlib.attention import visible
    >>> mask = prefix(jnp.array([1, 3]))
    >>> visible(mask, jnp.arange(1), jnp.arange(4))[:, 0, 0].astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 1, 0]]
    """
    kind = jnp.result_type(length)
    if jnp.ndim(length) > 1 or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(
            f"length must be an integer or integers [B], got {kind} of shape "
            f"{jnp.shape(length)}"
        )
    return _Prefix(length)


@pytree
class _BlockCausal(Mask):
    size: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        return kv // self.size <= q // self.size

    def bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        known = concrete(self.size)
        size = self.size if known is None else known
        return kv.lo // size <= q.hi // size, kv.hi // size <= q.lo // size


def block_causal(size: int) -> Mask:
    """Let a query see its own block of positions, whole, and the blocks before.

        floor(k / size) <= floor(q / size)

    Args:
      size: positions in a block; 1 is `causal()`.

    Raises:
      ValueError: if `size` is not a scalar or below 1.

    Source: arXiv:2503.09573.

    >>> from genlib.attention import visible
    >>> mask = visible(block_causal(2), jnp.arange(4), jnp.arange(4))
    >>> mask[0, 0].sum(-1).tolist()
    [2, 2, 4, 4]
    """
    _check_size(size)
    return _BlockCausal(size)


def _check_size(size: Any) -> None:
    known = concrete(size)
    if jnp.ndim(size) or (known is not None and not known >= 1):
        raise ValueError(f"size must be a number of at least 1, got {size}")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Predicate(Mask):
    function: Callable[[Array, Array], Array]

    def __call__(self, q: Array, kv: Array) -> Array:
        seen = jnp.asarray(self.function(q, kv))
        if seen.dtype != jnp.bool_:
            raise ValueError(
                f"function of predicate must return bools, got {seen.dtype}"
            )
        return jnp.broadcast_to(seen, jnp.broadcast_shapes(seen.shape, (1, 1, 1, 1)))


def predicate(function: Callable[[Array, Array], Array]) -> Mask:
    """Make a mask of any function of positions.

    No block is skipped for it, but combined with another mask those are that the other
    one rules out.

    Args:
      function: `(q, k) -> bool` of integer arrays that broadcast against each other.

    Raises:
      ValueError: when it is called, if it returns anything but bools.

    >>> from genlib.attention import visible
    >>> strided = predicate(lambda q, k: (q - k) % 2 == 0)
    >>> visible(strided & causal(), jnp.array([4]), jnp.arange(5)).sum().item()
    3
    """
    return _Predicate(function)
