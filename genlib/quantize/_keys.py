"""Keys that follow a batch when it is split over devices."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.types import Key, check_typed_key


def global_keys(key: Key, count: int, axis_name: Any = None) -> Key:
    """Return one key for each of `count` rows, by its number in the whole batch.

    So that a device that sees a part of the batch draws for it what a device that sees
    the whole would draw.

    Raises:
      ValueError: if `key` is not a typed key.

    >>> global_keys(jax.random.key(0), 3).shape
    (3,)
    """
    check_typed_key(key)
    before = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return jax.vmap(jax.random.fold_in, (None, 0))(key, before + jnp.arange(count))
