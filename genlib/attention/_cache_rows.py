"""What the caches share: checks of new tokens, and where they go."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.attention._cache import Cache
from genlib.types import Array, ArrayLike, concrete


def empty_length(batch: int) -> Array:
    """Return the length of an empty cache."""
    return jnp.zeros(batch, jnp.int32)


def check_sizes(dtype: Any, **sizes: int) -> None:
    """Raise a ValueError unless sizes are positive and the dtype is floating."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, got {jnp.dtype(dtype)}")


def empty_rows(
    dtype: Any,
    num_kv_heads: int,
    features: int,
    value_features: int | None,
    **rows: int,
) -> tuple[Array, Array]:
    """Return keys `[*rows, K, H]` and values `[*rows, K, V]` of an empty cache.

    V is H by default. The sizes in `rows` have the names that errors call them by.
    """
    value_features = features if value_features is None else value_features
    heads = dict(num_kv_heads=num_kv_heads, features=features)
    check_sizes(dtype, **rows, **heads, value_features=value_features)
    shape = (*rows.values(), num_kv_heads)
    k, v = (jnp.zeros((*shape, n), dtype) for n in (features, value_features))
    return k, v


def check_rows(*stored: Any, **rows: Array) -> list[Array]:
    """Return the arrays of new tokens, checked against what a cache stores.

    Args:
      *stored: for each of `rows` an array `[B, capacity, ...]`, or its shape and dtype.
      **rows: arrays `[B, T, ...]` under the names that errors call them by.
    """
    arrays = [jnp.asarray(x) for x in rows.values()]
    for name, x, like in zip(rows, arrays, stored, strict=True):
        wanted = (like.shape[0], *arrays[0].shape[1:2], *like.shape[2:])
        if x.shape != wanted or x.dtype != like.dtype or not wanted[1]:
            sizes = ", ".join(["T" if i == 1 else str(n) for i, n in enumerate(wanted)])
            raise ValueError(
                f"{name} must be {like.dtype} [{sizes}] of one T > 0, as the cache "
                f"holds it, got {x.dtype} of shape {x.shape}"
            )
    return arrays


def check_count(cache: Cache, count: int) -> None:
    """Raise a ValueError if tokens are more than fit into an empty cache."""
    if count > cache.capacity:
        raise ValueError(
            f"append takes at most {cache.capacity} tokens, the capacity, got {count}"
        )


def next_slots(
    cache: Cache, count: int, valid: ArrayLike | None
) -> tuple[Array, Array]:
    """Return where the next tokens go and the lengths with them.

    Each goes to the row of its position; padding, and what does not fit, to rows of
    their own beyond the capacity, where `write` writes nothing.
    """
    check_count(cache, count)
    positions = cache.next_positions(count, valid=valid)
    fits = positions < cache.capacity
    fits = fits if valid is None else fits & jnp.asarray(valid)
    beyond = cache.capacity + jnp.arange(count)[None]
    return jnp.where(fits, positions, beyond), positions[:, -1] + 1


def write(stored: Array, slots: Array, rows: Array) -> Array:
    """Return `stored` `[B, S, ...]` with `rows` `[B, T, ...]` at slots `[B, T]`.

    The slots of an example must differ; those beyond S are left out.
    """

    def one(stored: Array, slots: Array, rows: Array) -> Array:
        return stored.at[slots].set(rows, mode="drop", unique_indices=True)

    return jax.vmap(one)(stored, slots, rows)


def view_positions(cache: Cache) -> Array:
    """Return the positions of what is read, int32 `[B, capacity]`.

    Of an example that has overflowed they are the last ones: whatever the mask, a query
    at any of them sees its own, which is NaN. Beyond all keys it would see none, and 0.
    """
    first = jnp.where(cache.overflowed, cache.length - cache.capacity, 0)
    return first[:, None] + jnp.arange(cache.capacity, dtype=jnp.int32)[None]


def spoil(overflowed: Array, x: Array) -> Array:
    """Return `x` `[B, ...]` with NaN for examples that have overflowed."""
    return jnp.where(overflowed.reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, x)


def refuse_overflow(cache: Any) -> Any:
    """Return the cache, or raise a ValueError if it is known to have overflowed."""
    over = concrete(cache.overflowed)
    if over is not None and over.any():
        raise ValueError(
            f"append must fit what the cache has room for, {cache.capacity} tokens "
            f"each; lengths would be {concrete(cache.length)}, too many for examples "
            f"{over.nonzero()[0]}"
        )
    return cache
