"""Binary codes: the sign of each number."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from genlib.quantize._codebook import unit
from genlib.quantize._entropy import bit_entropy, index_perplexity, mean_entropy
from genlib.quantize._estimators import straight_through
from genlib.quantize._fsq import unmasked, without_params
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_mask,
    check_vectors,
    mean_square,
    without_masked,
)
from genlib.types import Array, ArrayLike, Key, Scalar, check_positive, concrete


def lookup_free(
    bits: int,
    *,
    gamma: Scalar = 1.0,
    temperature: Scalar = 1.0,
    group_size: int | None = None,
) -> Quantizer:
    """Quantise each number to its sign: 2^bits codes and no codebook.

        code_b = 1 if z_b >= 0 else -1,    index = sum_b 2^(bits - 1 - b) [z_b >= 0]

    (arXiv:2310.05737). The gradient is straight-through. With p(c | z) the softmax over
    codes of -|z - c|^2 / temperature, under which bit b is 1 with probability
    sigmoid(4 z_b / temperature), independently of the others, a vector has the losses

        commitment = mean_b (z_b - sg(code_b))^2
        entropy = H[p(. | z)] - gamma H[mean of p(. | z) over the batch]   (in nats)

    The first entropy makes each assignment sure. The second, the same for each vector,
    has all codes used; it is no sum over the batch: microbatches have one each. Nothing
    is of the size of vectors times codes. A NaN has code -1, and makes entropies NaN.

    Args:
      bits: D, 1 .. 31.
      gamma: weight of the entropy of the mean, not negative.
      temperature: in the units of z^2. Entropies, and their gradients, vanish where |z|
        is much larger than it. May be traced, as may be `gamma`.
      group_size: how many neighbouring bits the entropy of the mean takes jointly, at
        most 20; entropies of groups add up, an upper bound on the joint one. None is
        all bits, the exact one. Its memory is 2^group_size for each group, and for each
        vector 2^(group_size/2): that of 1 is the one of z.

    Returns:
      A `Quantizer` of vectors [..., bits], without parameters.

    Raises:
      ValueError: if `bits` is not within 1 .. 31; if `group_size` does not divide it or
        is more than 20; if `gamma` is negative, or `temperature` not positive.

    >>> bottleneck = lookup_free(4)
    >>> z = jnp.array([[0.5, -0.5, 0.5, -0.5], [1.0, 1.0, -1.0, -1.0]])
    >>> _, indices, losses, *_ = bottleneck.quantize({}, z)
    >>> indices.tolist(), losses["commitment"].tolist()
    ([10, 12], [0.25, 0.0])
    """
    return _binary(bits, 1.0, lambda z: z, gamma, temperature, group_size)


def binary_spherical(
    bits: int,
    *,
    gamma: Scalar = 1.0,
    temperature: Scalar = 0.01,
    group_size: int | None = None,
) -> Quantizer:
    """Quantise each vector to the nearest corner of the cube within the unit sphere.

        u = z / |z|,    code_b = 1/sqrt(bits) if z_b >= 0 else -1/sqrt(bits)

    (arXiv:2406.07548). The gradient is that of u, straight-through. Everything else is
    as in `lookup_free`, of u: bit b is 1 with probability sigmoid(4 u_b / (sqrt(bits)
    temperature)), and commitment = mean_b (u_b - sg(code_b))^2, which is bounded. The
    vector 0 has u = 0, all bits 1, and the gradient of u = z.

    Args:
      bits: D, 1 .. 31.
      gamma: weight of the entropy of the mean, not negative.
      temperature: neighbouring codes have |c - c'|^2 = 4/bits.
      group_size: as in `lookup_free`.

    Returns:
      A `Quantizer` of vectors [..., bits], without parameters.

    Raises:
      ValueError: as `lookup_free`.

    >>> bottleneck = binary_spherical(4)
    >>> z = jnp.array([[3.0, -1.0, 0.0, -2.0]])
    >>> codes, indices, *_ = bottleneck.quantize({}, z)
    >>> codes.tolist(), indices.tolist()
    ([[0.5, -0.5, 0.5, -0.5]], [10])
    """
    side = 1 / math.sqrt(max(bits, 1))
    return _binary(bits, side, unit, gamma, temperature, group_size)


def _binary(
    bits: int,
    side: float,
    place: Callable[[Array], Array],
    gamma: Scalar,
    temperature: Scalar,
    group_size: int | None,
) -> Quantizer:
    if not 1 <= bits <= 31:
        raise ValueError(
            f"bits must be within 1 .. 31, for int32 indices; it is {bits}"
        )
    group_size = _check_group_size(group_size, bits)
    check_positive("temperature", temperature)
    weight = concrete(gamma)
    if weight is not None and not weight >= 0:
        raise ValueError(f"gamma must not be negative; it is {gamma}")

    def signs(positive: Array, dtype: Any) -> Array:
        return jnp.where(positive, side, -side).astype(dtype)

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        z = check_vectors(z, bits)
        mask = check_mask(mask, z.shape[:-1])
        wide = without_masked(z, mask)
        u, positive = place(wide), wide >= 0
        fixed = signs(positive, u.dtype)
        index = (positive << _places(bits, z.ndim)).sum(-1, dtype=jnp.int32)
        codes, indices = unmasked(straight_through(u, fixed), index, mask)
        losses = {
            "commitment": mean_square(u - fixed, mask),
            "entropy": entropy(u, mask, axis_name),
        }
        perplexity = index_perplexity(indices, 2**bits, axis_name)
        return Quantized(codes.astype(z.dtype), indices, losses, perplexity, ())

    def entropy(u: Array, mask: Array | None, axis_name: Any) -> Array:
        logits = u * (4 * side / jnp.asarray(temperature, u.dtype))
        each = bit_entropy(logits).sum(-1)
        whole = mean_entropy(logits, group_size, mask, axis_name)
        result = each - jnp.asarray(gamma, u.dtype) * whole
        return result if mask is None else jnp.where(mask, result, 0)

    def lookup(indices: Array) -> Array:
        index = indices[..., None]
        positive = (index >> _places(bits, index.ndim)) & 1 == 1
        return jnp.where(index < 0, 0, signs(positive, jnp.result_type(float)))

    return without_params(bits, quantize, lookup, 2**bits)


def _places(bits: int, ndim: int) -> Array:
    """Return by how much to shift each bit, the first the most: [1, ..., 1, bits]."""
    return jnp.arange(bits - 1, -1, -1, jnp.int32).reshape((1,) * (ndim - 1) + (-1,))


def _check_group_size(group_size: int | None, bits: int) -> int:
    size = bits if group_size is None else group_size
    if size > 20:
        raise ValueError(
            f"group_size must be at most 20, for 2^20 joint probabilities; it is {size}"
        )
    if size < 1 or bits % size:
        raise ValueError(f"group_size must divide bits, {bits}; it is {group_size}")
    return size
