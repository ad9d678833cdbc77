"""Caches: what they are, and the attention that makes them grow."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import jax.numpy as jnp

from genlib.attention._attention import attention
from genlib.attention._mask import Mask
from genlib.attention._masks import causal
from genlib.types import Array, ArrayLike

_CAUSAL = causal()


class CacheView(NamedTuple):
    """What is in a cache, as `attention` takes it.

    Attributes:
      k: keys `[B, S, K, H]`; what `mask` hides is arbitrary.
      v: values `[B, S, K, V]`.
      positions: of the keys, int32 `[B, S]`.
      mask: which of them there are, to be combined with the mask of the model.
    """

    k: Array
    v: Array
    positions: Array
    mask: Mask


class Cache:
    """Keys and values of the tokens of B sequences, each of a length of its own.

    A cache is a frozen pytree of arrays: `append` returns the next one. Donated to
    `jit`, or carried by `scan`, it is written in place. Tokens are numbered from 0 in
    the order in which they are appended, and are stored as given: rotate keys first.

    What does not fit is refused with a ValueError where lengths are known. Where they
    are traced the example is spoilt until it is released: all that is read of it is
    NaN, at the positions of the last tokens, so that no answer is without the lost one.

    Attributes:
      length: how many tokens each example has been given, int32 `[B]`.

    >>> from genlib.attention import kv_cache
    >>> cache = kv_cache(batch=2, capacity=8, num_kv_heads=1, features=4)
    >>> k = v = jnp.ones((2, 3, 1, 4))
    >>> cache.append(k, v, valid=jnp.array([[True] * 3, [True, False, False]])).length
    Array([3, 1], dtype=int32)
    """

    length: Array

    @property
    def capacity(self) -> int:
        """How many tokens of an example are kept."""
        raise NotImplementedError

    @property
    def overflowed(self) -> Array:
        """Which examples were given more than fits, bool `[B]`."""
        return self.length > self.capacity

    def append(self, k: Array, v: Array, *, valid: ArrayLike | None = None) -> Self:
        """Return the cache with T more tokens.

        Args:
          k: keys `[B, T, K, H]` in the dtype of the cache.
          v: values `[B, T, K, V]`.
          valid: bool `[B, T]`, False for padding, which is left out wherever it is.

        Raises:
          ValueError: if shapes or dtypes are not those of the cache, if T is more than
            its capacity, or if it is known that the tokens do not fit.
        """
        raise NotImplementedError

    def read(self) -> Any:
        """Return a `CacheView` of all tokens, for queries that come after them."""
        raise NotImplementedError

    def extend(
        self, k: Array, v: Array, *, valid: ArrayLike | None = None
    ) -> tuple[Any, Self]:
        """Append tokens and return what their own queries look at, and the cache.

        The same as `append` and `read` but for caches that forget: there the first of
        several tokens still look at what the last of them push out.
        """
        cache = self.append(k, v, valid=valid)
        return cache.read(), cache

    def next_positions(self, count: int, *, valid: ArrayLike | None = None) -> Array:
        """Return the positions that the next tokens get, int32 `[B, count]`.

        Args:
          count: how many tokens, T.
          valid: as for `append`; a token of padding has the position of the one before.

        Raises:
          ValueError: if `valid` is not bool `[B, T]`.
        """
        shape = (self.length.shape[0], count)
        if valid is None:
            valid = jnp.ones(shape, bool)
        elif jnp.shape(valid) != shape or jnp.result_type(valid) != jnp.bool_:
            raise ValueError(
                f"valid must be bool {list(shape)}, got {jnp.result_type(valid)} of "
                f"shape {jnp.shape(valid)}"
            )
        steps = jnp.cumsum(jnp.asarray(valid), 1, dtype=jnp.int32) - 1
        return self.length[:, None] + steps

    def release(self, rows: ArrayLike) -> Self:
        """Return the cache with some examples emptied, ready for other sequences.

        Args:
          rows: bool `[B]`.

        Raises:
          ValueError: if it is not.
        """
        shape = self.length.shape
        if jnp.shape(rows) != shape or jnp.result_type(rows) != jnp.bool_:
            raise ValueError(
                f"rows must be bool {list(shape)}, got {jnp.result_type(rows)} of "
                f"shape {jnp.shape(rows)}"
            )
        return self._replace(length=jnp.where(jnp.asarray(rows), 0, self.length))

    def _replace(self, **fields: Array) -> Self:
        return dataclasses.replace(cast(Any, self), **fields)


def cached_attention(
    q: Array,
    k: Array,
    v: Array,
    cache: Any,
    *,
    mask: Mask | None = _CAUSAL,
    valid: ArrayLike | None = None,
    attend: Callable[..., Any] = attention,
    **options: Any,
) -> tuple[Any, Any]:
    """Append tokens to a cache and let their queries look at all that it then holds.

    Tokens one by one, in chunks, and all at once give the same outputs.

    Args:
      q: queries `[B, T, N, H]` of the next tokens.
      k: their keys `[B, T, K, H]`, as they are to be kept.
      v: their values `[B, T, K, V]`.
      cache: a `Cache`.
      mask: over positions counted from the start of each sequence; None lets the tokens
        look at all there is, those after them included.
      valid: bool `[B, T]`, False for padding; its outputs mean nothing.
      attend: `attention`, or the `attend` of an encoding of positions.
      **options: further arguments of it.

    Returns:
      What `attend` returns and the next cache.

    Raises:
      ValueError: if q and k are not of as many tokens; as `Cache.append` and
        `attention` do.

    >>> import jax
    >>> from genlib.attention import kv_cache
    >>> cache = kv_cache(batch=1, capacity=8, num_kv_heads=1, features=2)
    >>> q = k = v = jnp.eye(2)[None, :, None]
    >>> out, cache = jax.jit(cached_attention)(q, k, v, cache)
    >>> out.shape, cache.length.tolist()
    ((1, 2, 1, 2), [2])
    """
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(
            f"q must be of the tokens of k, got shapes {q.shape} and {k.shape}"
        )
    positions = cache.next_positions(q.shape[1], valid=valid)
    view, cache = cache.extend(k, v, valid=valid)
    options["mask"] = view.mask if mask is None else view.mask & mask
    sides = dict(q_positions=positions, kv_positions=view.positions)
    return attend(q, view.k, view.v, **sides, **options), cache
