"""Finite scalar quantization: each number rounded to one of a few levels."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.quantize._entropy import index_perplexity
from genlib.quantize._estimators import straight_through
from genlib.quantize._keys import global_keys
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_indices,
    check_mask,
    check_vectors,
    without_masked,
)
from genlib.types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    concrete,
    expand_like,
)


def fsq(levels: Sequence[int], *, eps: float = 1e-3, noise: Scalar = 0.0) -> Quantizer:
    """Round each number of a vector to one of a few levels: there is no codebook.

    Number d is squashed to l = levels[d] steps and rounded (arXiv:2309.15505):

        x = (l - 1)(1 + eps)/2 tanh(z + shift) - offset,    code = round(x) / floor(l/2)

    with offset 1/2 for even l and 0 for odd, and shift = atanh(2 offset/((l - 1)(1 +
    eps))), so that z = 0 has x = 0. The gradient is that of x / floor(l/2). There are
    prod(levels) codes within [-1, 1], nothing to learn, and no losses; number 0 is the
    least significant digit of the index. A number that is NaN has the digit of z = 0,
    and gradient NaN.

    Two levels depart from the formula: their shift is 0, and z >= 0 the upper one. The
    shift above, 3.8, would leave the lower one to z < -3.8. Levels that the paper
    recommends:

    | codes  | levels              |
    |--------|---------------------|
    | 240    | (8, 6, 5)           |
    | 1000   | (8, 5, 5, 5)        |
    | 4375   | (7, 5, 5, 5, 5)     |
    | 15360  | (8, 8, 8, 6, 5)     |
    | 64000  | (8, 8, 8, 5, 5, 5)  |

    Args:
      levels: of each of the D numbers, at least 2.
      eps: how far beyond the outermost levels the bound reaches, relative to half the
        range, so that they have a gradient.
      noise: share of the examples (entries of the first axis) in which, given a `key`,
        x is not rounded: uniform noise of one step is added to it (arXiv:2411.19842).
        Their codes are on no grid, and leave [-1, 1] by up to half a step; their
        indices are those without noise.

    Returns:
      A `Quantizer` of vectors [..., D] with D = len(levels), without parameters.

    Raises:
      ValueError: if `levels` are no integers from 2, or have more than 2^31 - 1 codes;
        if `eps` is negative or would reach a level that does not exist; if `noise` is
        not within 0 .. 1.

    >>> bottleneck = fsq((8, 5, 5, 5))
    >>> z = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.3, -0.7, 0.9, -0.1]])
    >>> bottleneck.quantize({}, z).indices.tolist()
    [500, 533]
    >>> bottleneck.lookup({}, jnp.array(533)).tolist()
    [0.25, -0.5, 0.5, 0.0]
    """
    grid = Grid(check_levels(levels, least=2), check_eps(eps, levels))
    check_share("noise", noise)

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        z = check_vectors(z, len(grid.levels))
        mask = check_mask(mask, z.shape[:-1])
        x = grid.bound(without_masked(z, mask))
        digits = grid.round(x)
        soft = grid.unit(x)
        codes = straight_through(soft, grid.unit(digits.astype(x.dtype)))
        if key is not None and _possible(noise):
            noisy, offset = _draw(global_keys(key, len(z), axis_name), x, noise)
            codes = jnp.where(expand_like(noisy, x), soft + grid.unit(offset), codes)
        codes, indices = unmasked(codes, grid.pack(digits), mask)
        perplexity = index_perplexity(indices, grid.size, axis_name)
        return Quantized(codes.astype(z.dtype), indices, {}, perplexity, ())

    def lookup(indices: Array) -> Array:
        return grid.unit(grid.unpack(indices).astype(jnp.result_type(float)))

    return without_params(len(grid.levels), quantize, lookup, grid.size)


class Grid(NamedTuple):
    """The levels of D numbers, in steps: -floor(l/2) .. floor((l - 1)/2) of l."""

    levels: np.ndarray
    eps: float

    @property
    def size(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels.tolist())

    @property
    def middle(self) -> np.ndarray:
        """The digit of z = 0, for each number."""
        return self.levels // 2

    def bound(self, z: Array) -> Array:
        """Squash numbers [..., D] to the range of the levels, in steps."""
        half = (self.levels - 1) * (1 + self.eps) / 2
        offset = np.where(self.levels % 2, 0.0, 0.5)
        shift = np.arctanh(np.where(self.levels == 2, 0.0, offset / half))
        half, offset, shift = (along_last(a, z, z.dtype) for a in (half, offset, shift))
        return jnp.tanh(z + shift) * half - offset

    def round(self, x: Array) -> Array:
        """Return the nearest level in int32 [..., D]; that of NaN is 0."""
        nearest = jnp.where(jnp.isnan(x), 0, jnp.rint(x)).astype(x.dtype)
        least = along_last(-self.middle, x, x.dtype)
        most = along_last(self.levels - 1 - self.middle, x, x.dtype)
        return jnp.clip(nearest, least, most).astype(jnp.int32)

    def unit(self, x: Array) -> Array:
        """Scale from steps to [-1, 1]."""
        # By the reciprocal: compiled division by a constant is no division, and gives
        # other last bits than division op by op.
        return x * along_last(1 / self.middle, x, x.dtype)

    def pack(self, digits: Array) -> Array:
        """Return the index [...] of levels [..., D]: exact, being in integers."""
        digits = digits + self._int(self.middle, digits)
        return (digits * self._base(digits)).sum(-1, dtype=jnp.int32)

    def unpack(self, indices: Array) -> Array:
        """Return the levels [..., D] of an index [...], 0 of -1."""
        index = indices[..., None]
        digits = index // self._base(index) % self._int(self.levels, index)
        return jnp.where(index < 0, 0, digits - self._int(self.middle, index))

    def _base(self, like: Array) -> Array:
        return self._int(np.cumprod(np.append(1, self.levels[:-1])), like)

    def _int(self, values: np.ndarray, like: Array) -> Array:
        return along_last(values, like, jnp.int32)


def along_last(values: np.ndarray, like: Array, dtype: Any) -> Array:
    """Return [D] as [1, ..., 1, D] with the rank of `like`."""
    return jnp.asarray(values, dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def without_params(
    features: int,
    quantize: Callable[..., Quantized],
    lookup: Callable[[Array], Array],
    size: int,
) -> Quantizer:
    """Return a quantizer without parameters."""

    def init(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        check_mask(mask, check_vectors(z, features).shape[:-1])
        return {}

    return Quantizer(
        init,
        quantize,
        lookup=lambda params, indices: lookup(check_indices(indices, size)),
        update=lambda params, statistics: params,
        size=size,
    )


def unmasked(codes: Array, indices: Array, mask: Array | None) -> tuple[Array, Array]:
    """Return codes [..., D], 0 where masked, and indices [...], -1 there."""
    if mask is None:
        return codes, indices
    return jnp.where(mask[..., None], codes, 0), jnp.where(mask, indices, -1)


def _draw(keys: Key, x: Array, share: Scalar) -> tuple[Array, Array]:
    """Return which examples [B] are noisy, and noise of one step like x."""

    def draw(key: Key) -> tuple[Array, Array]:
        chosen, offset = jax.random.split(key)
        noise = jax.random.uniform(offset, x.shape[1:], x.dtype, -0.5, 0.5)
        return jax.random.uniform(chosen) < share, noise

    return jax.vmap(draw)(keys)


def _possible(share: Scalar) -> bool:
    """Return False if a share is known to be 0."""
    value = concrete(share)
    return value is None or bool(value)


def check_share(name: str, share: Scalar) -> None:
    """Raise a ValueError if a share is known to be outside of 0 .. 1."""
    value = concrete(share)
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} must be within 0 .. 1; it is {share}")


def check_levels(levels: Sequence[int], least: int) -> np.ndarray:
    """Return levels as an array, if they are integers and their codes fit int32."""
    array = np.asarray(levels)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"levels must be a sequence of integers; they are {levels}")
    if (array < least).any():
        raise ValueError(f"levels must be at least {least}; they are {levels}")
    if math.prod(array.tolist()) > 2**31 - 1:
        raise ValueError(
            "levels must have at most 2^31 - 1 codes, whose indices are int32; the "
            f"product of {levels} is {math.prod(array.tolist())}"
        )
    return array.astype(np.int64)


def check_eps(eps: float, levels: Sequence[int]) -> float:
    """Return `eps`, if nothing is bounded to a level beyond the outermost."""
    most = 1 / (max(levels) - 1)
    if not 0 <= eps < most:
        raise ValueError(
            f"eps must be from 0 to less than 1 / (max(levels) - 1), {most:.6g}; it is "
            f"{eps}"
        )
    return eps
