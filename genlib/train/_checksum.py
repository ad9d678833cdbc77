"""Checksums that see every flipped bit, whatever devices hold the arrays."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from genlib.types import Array


def checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Return one number for each array, and wait for them.

    checksum = sum_i word_i (2 i + 1) mod 2^32 over the 32-bit words in row-major order.
    The factors are odd, so a change of any one word changes the sum; and integers add
    up exactly in every order, so the number does not depend on how an array is sharded.
    It is computed where the array is: nothing else is moved to the host.
    """
    return {k: int(v) for k, v in jax.device_get(_all(arrays)).items()}


def digest(value: Any) -> str:
    """Return a hash of a JSON value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _all(arrays: Mapping[str, Any]) -> dict[str, Array]:
    # One small program for each shape and sharding compiles far faster than one of all
    # leaves, of which large models have a thousand. Each is waited for: CPU devices
    # with too many programs in flight wait for each other for ever.
    return {name: jax.block_until_ready(_checksum(x)) for name, x in arrays.items()}


@jax.jit
def _checksum(leaf: Array) -> Array:
    words = _words(leaf)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


def _words(leaf: Array) -> Array:
    """Return the bits of `leaf` as uint32, two for each number of 64 bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        width = 8 * leaf.dtype.itemsize
        leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{width}"))
    return leaf.astype(jnp.uint32)
