"""What a transformer asks of its arguments, and how it finds what is of a layer."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from genlib import attention
from genlib.attention import Mask
from genlib.nn._attention import both
from genlib.types import Array, concrete


def layer_groups(
    encodings: Any, depth: int, mask: Mask | None
) -> list[tuple[Any, Mask | None, int]]:
    """Return (encoding, mask, number of layers) of layers that are alike, in order."""
    if encodings is None or isinstance(encodings, attention.Encoding):
        encodings = [encodings] * depth
    if len(encodings) != depth:
        raise ValueError(
            f"encodings must be one for each of {depth} layers, got {len(encodings)}"
        )
    single = lambda each: each is None or isinstance(each, attention.Encoding)
    pairs = [(each, None) if single(each) else tuple(each) for each in encodings]
    return [
        (encoding, both(mask, own), len(list(group)))
        for (encoding, own), group in itertools.groupby(pairs)
    ]


def check_ids(tokens: Array, vocabulary: int) -> None:
    """Refuse what is not integers `[B, T]`, and known ones that are no tokens."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens must be integers [B, T], got {tokens.dtype} of shape "
            f"{tokens.shape}"
        )
    known = concrete(tokens)
    if known is not None and ((known < 0) | (known >= vocabulary)).any():
        raise ValueError(
            f"tokens must be in 0..{vocabulary - 1}, got {known.min()}..{known.max()}"
        )


def next_places(caches: Any, tokens: Array, depth: int, valid: Any) -> Array:
    """Return the positions of tokens that follow what the caches hold."""
    if isinstance(caches, Sequence) and len(caches) != depth:
        raise ValueError(
            f"caches must be one for each of {depth} layers, got {len(caches)}"
        )
    places = nth(caches, 0).next_positions(tokens.shape[1], valid=valid)
    # Padding before the first token has no position.
    return places if valid is None else jnp.maximum(places, 0)


def check_room(caches: Any, count: int) -> None:
    """Refuse caches that did not have room for the last `count` tokens, if known."""
    for cache in caches if isinstance(caches, Sequence) else [nth(caches, 0)]:
        over = concrete(cache.overflowed)
        if over is not None and over.any():
            raise ValueError(
                f"tokens must fit the caches, which have room for {cache.capacity} of "
                f"each example; got {count} more, {concrete(cache.length)} in all"
            )


def learned(table: Array, places: Any) -> Array:
    """Return the rows of a table `[n, features]` at places; NaN for unknown ones."""
    known = concrete(places)
    if known is not None and known.size:
        low, high = known.min(), known.max()
        if low < 0 or high >= len(table):
            raise ValueError(
                f"positions must be in 0..{len(table) - 1}, which are learned, got "
                f"{low}..{high}"
            )
    return rows_of(table, places)


def rows_of(table: Array, index: Any) -> Array:
    """Return rows of a table, NaN for those that it has not."""
    index = jnp.asarray(index)
    index = jnp.where(index < 0, len(table), index)  # no counting from the end
    return table.at[index].get(mode="fill", fill_value=jnp.nan)


def nth(caches: Any, layer: Any) -> Any:
    """Return the cache of a layer, of a sequence or of a stack of caches."""
    if isinstance(caches, Sequence):
        return caches[layer]
    return jax.tree.map(lambda x: x[layer], caches)
