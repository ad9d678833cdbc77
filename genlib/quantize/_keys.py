"""Keys that follow a batch when it is split over devices."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.types import Array, Key, Scalar, check_typed_key


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


def stage_counts(
    key: Key, examples: int, depth: int, dropout: Scalar, keep: int, axis_name: Any
) -> Array:
    """Draw how many stages each example uses: [examples] in keep .. depth.

    It is `depth`, but with probability `dropout` a uniform draw.

    >>> stage_counts(jax.random.key(0), 2, 4, 0.0, 1, None).tolist()
    [4, 4]
    """

    def draw(key: Key) -> Array:
        whether, number = jax.random.split(key)
        some = jax.random.randint(number, (), keep, depth + 1)
        return jnp.where(jax.random.bernoulli(whether, dropout), some, depth)

    return jax.vmap(draw)(global_keys(key, examples, axis_name))
