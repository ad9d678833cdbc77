"""The order of a sequence in which causal attention is equal work for every device."""

import jax.numpy as jnp
import numpy as np

from genlib.types import Array, ArrayLike


def zigzag_positions(length: int, shards: int) -> np.ndarray:
    """Return which position is where once a sequence is in zigzag order.

    The sequence is cut in 2n chunks, of which shard r holds those numbered r and
    2n - 1 - r: one early, which sees little under a causal mask, and one late.

    Args:
      length: L, a multiple of 2n.
      shards: n.

    Returns:
      int32 `[L]`, a NumPy array, of which part r is for shard r.

    Raises:
      ValueError: if `length` is no multiple of `2 shards`.

    >>> zigzag_positions(8, 2).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    """
    if shards < 1 or length % (2 * shards):
        raise ValueError(
            f"the length must be a multiple of 2 shards, got {length} and {shards} "
            "shards"
        )
    chunks = np.arange(length, dtype=np.int32).reshape(2, shards, -1)
    return np.stack([chunks[0], chunks[1, ::-1]], 1).reshape(-1)


def zigzag(x: ArrayLike, shards: int, axis: int = 1) -> Array:
    """Put a sequence into zigzag order, which balances causal ring attention.

    Tokens and `zigzag_positions` go through the network in that order: attention needs
    the positions, everything that acts on tokens alone does not notice. Whatever leaves
    the network is put back by `unzigzag`, or compared with targets in the same order.

    Args:
      x: `[..., L, ...]` with L a multiple of `2 shards`.
      shards: parts in which the sequence is cut.
      axis: that of the sequence.

    Raises:
      ValueError: if L is no multiple of `2 shards`.

    Source: arXiv:2311.09431 (balance by order, there in stripes); Llama 3,
    arXiv:2407.21783, section 3.3.2 (this order).

    >>> zigzag(jnp.arange(8)[None], shards=2)[0].tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    """
    x = jnp.asarray(x)
    return _reorder(x, zigzag_positions(x.shape[axis], shards), axis)


def unzigzag(x: ArrayLike, shards: int, axis: int = 1) -> Array:
    """Undo `zigzag`.

    Args:
      x: `[..., L, ...]` with L a multiple of `2 shards`.
      shards: parts in which the sequence is cut.
      axis: that of the sequence.

    Raises:
      ValueError: if L is no multiple of `2 shards`.

    >>> unzigzag(zigzag(jnp.arange(8)[None], shards=2), shards=2)[0].tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    x = jnp.asarray(x)
    return _reorder(x, np.argsort(zigzag_positions(x.shape[axis], shards)), axis)


def _reorder(x: Array, order: np.ndarray, axis: int) -> Array:
    return jnp.take(x, order, axis, unique_indices=True)
