"""A cache of latents, from which keys and values of all heads are made."""

from typing import Any, NamedTuple, Self

import jax.numpy as jnp

from genlib.attention._cache import Cache
from genlib.attention._cache_rows import (
    check_rows,
    check_sizes,
    empty_length,
    next_slots,
    refuse_overflow,
    spoil,
    view_positions,
    write,
)
from genlib.attention._mask import Mask, pytree
from genlib.attention._masks import prefix
from genlib.types import Array, ArrayLike


class LatentView(NamedTuple):
    """What is in a cache of latents.

    Attributes:
      latent: `[B, S, d_c]`; what `mask` hides is arbitrary.
      rope: rotated keys that all heads share, `[B, S, d_r]`.
      positions: int32 `[B, S]`.
      mask: which of them there are, to be combined with the mask of the model.
    """

    latent: Array
    rope: Array
    positions: Array
    mask: Mask


@pytree
class _LatentCache(Cache):
    latent: Array
    rope: Array
    length: Array

    @property
    def capacity(self) -> int:
        return self.latent.shape[1]

    def append(
        self, latent: Array, rope: Array, *, valid: ArrayLike | None = None
    ) -> Self:
        latent, rope = check_rows(self.latent, self.rope, latent=latent, rope=rope)
        slots, length = next_slots(self, latent.shape[1], valid)
        latent = write(self.latent, slots, latent)
        rope = write(self.rope, slots, rope)
        return refuse_overflow(self._replace(latent=latent, rope=rope, length=length))

    def read(self) -> LatentView:
        latent, rope = (spoil(self.overflowed, x) for x in (self.latent, self.rope))
        return LatentView(latent, rope, view_positions(self), prefix(self.length))


def latent_cache(
    batch: int,
    capacity: int,
    latent_features: int,
    rope_features: int,
    *,
    dtype: Any = jnp.float32,
) -> Cache:
    """Make an empty cache of latent attention: d_c + d_r numbers for each token.

    `append(latent [B, T, d_c], rope [B, T, d_r])` takes the normalised latents and the
    rotated keys, `read()` returns a `LatentView` of them.

    Args:
      batch: sequences B.
      capacity: tokens S of each.
      latent_features: d_c.
      rope_features: d_r.
      dtype: of what is appended and read.

    Raises:
      ValueError: if a size is not positive or `dtype` is not floating.

    Source: arXiv:2405.04434, section 2.1.

    >>> cache = latent_cache(1, capacity=8, latent_features=4, rope_features=2)
    >>> cache = cache.append(jnp.ones((1, 3, 4)), jnp.ones((1, 3, 2)))
    >>> cache.length.tolist(), cache.read().latent.shape
    ([3], (1, 8, 4))
    """
    check_sizes(
        dtype,
        batch=batch,
        capacity=capacity,
        latent_features=latent_features,
        rope_features=rope_features,
    )
    sizes = latent_features, rope_features
    parts = [jnp.zeros((batch, capacity, n), dtype) for n in sizes]
    return _LatentCache(*parts, empty_length(batch))
