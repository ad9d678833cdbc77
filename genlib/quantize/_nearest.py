"""The nearest of many codes, for blocks of vectors that fit into a cache."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from genlib.quantize._codebook import unit
from genlib.quantize._quantizer import check_vectors
from genlib.types import Array, ArrayLike, compute_dtype

METRICS = ("euclidean", "cosine")
# Scores in a block: the cache of a CPU, and little of what another device has.
CPU_SCORES, OTHER_SCORES = 2**19, 2**24


def nearest(
    codebook: ArrayLike,
    z: ArrayLike,
    *,
    metric: str = "euclidean",
    block: int | None = None,
) -> Array:
    """Return the index of the nearest code for each vector.

    argmin_k |z - c_k| = argmax_k <z, c_k> - |c_k|^2 / 2, or argmax_k <z, c_k> / |c_k|
    of "cosine", where a code of 0 scores 0. Products have the highest precision of the
    device, at least float32; their rounding hides what is small beside |z|, so subtract
    a mean first if all vectors are far from 0. Of equally near codes it is the first,
    so for z = 0 under "cosine" it is 0; for a vector that holds NaN it is 0 too. No
    gradient flows.

    Vectors are taken in blocks, so that memory does not grow with vectors x codes. A
    block holds as many vectors of each device, if the first axis is split over devices
    under `jit`, so that none are sent. (If that axis is longer than `block`, the number
    of devices must divide a power of 2, at most `block`, that divides the length.)

    Args:
      codebook: K codes [K, D].
      z: vectors [..., D].
      metric: "euclidean" or "cosine".
      block: most vectors at a time; None for 2^19 / K on a CPU, 2^24 / K elsewhere.

    Returns:
      int32 [...] from 0 to K - 1.

    Raises:
      ValueError: if `codebook` is not floating point [K, D], empty or longer than int32
        can number, `z` has another width, `metric` is unknown or `block` not positive.

    >>> codebook = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    >>> z = jnp.array([[1.0, 0.9], [2.0, 0.1]])
    >>> nearest(codebook, z).tolist(), nearest(codebook, z, metric="cosine").tolist()
    ([2, 1], [1, 1])
    """
    codebook, z = _checked(codebook, z, metric, block)
    size = len(codebook)
    if metric == "cosine":
        codebook, bias = unit(codebook), jnp.zeros(size, codebook.dtype)
    else:
        bias = jnp.square(codebook).sum(-1) / -2
    width = 1 << (size.bit_length() - 1) // 2  # about the square root
    # Padding repeats the last code: the first of equals is never the padding.
    codebook, bias = (
        jnp.pad(x, [(0, -size % width), *[(0, 0)] * (x.ndim - 1)], mode="edge")
        for x in (codebook, bias)
    )

    def search(scores: int, z: Array, codebook: Array, bias: Array) -> Array:
        def find(z: Array) -> Array:
            z = z.astype(codebook.dtype)
            products = jnp.tensordot(codebook, z, (1, -1), precision="highest")
            return _argmax(products + bias.reshape(-1, *[1] * (z.ndim - 1)), width)

        return _in_blocks(find, z, block or max(1, scores // size))

    if block is not None or z[..., 0].size * size <= CPU_SCORES:
        return search(CPU_SCORES, z, codebook, bias)
    cpu, other = partial(search, CPU_SCORES), partial(search, OTHER_SCORES)
    return jax.lax.platform_dependent(z, codebook, bias, cpu=cpu, default=other)


def _checked(
    codebook: ArrayLike, z: ArrayLike, metric: str, block: int | None
) -> tuple[Array, Array]:
    """Return codes, in the dtype of the computation, and vectors, as constants."""
    codebook = jnp.asarray(codebook)
    if codebook.ndim != 2 or not jnp.issubdtype(codebook.dtype, jnp.floating):
        raise ValueError(
            "codebook must be floating point codes [K, D]; it is "
            f"{codebook.dtype}{list(codebook.shape)}"
        )
    if not 1 <= len(codebook) < 2**31:
        raise ValueError(
            f"codebook must have 1 to 2^31 - 1 codes; it has {len(codebook)}"
        )
    z = check_vectors(z, codebook.shape[1])
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}; it is {metric!r}")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1; it is {block}")
    wide = compute_dtype(jnp.promote_types(codebook.dtype, z.dtype))
    return jax.lax.stop_gradient((codebook.astype(wide), z))


def _argmax(scores: Array, width: int) -> Array:
    """Return argmax over the first axis of [K, ...], K a multiple of `width`.

    It is the argmax of the maxima of groups, and then of the group: on a CPU a maximum
    is many times as fast as an argmax.
    """
    scores = scores.reshape(len(scores) // width, width, *scores.shape[1:])
    group = jnp.argmax(scores.max(1), 0)
    inside = jnp.take_along_axis(scores, group[None, None], 0)[0]
    return (group * width + jnp.argmax(inside, 0)).astype(jnp.int32)


def _in_blocks(find: Callable[[Array], Array], z: Array, block: int) -> Array:
    """Map `find`, of [..., D] to [...], over about `block` vectors at a time.

    A block of neighbours would lie on one device, and all would have to fetch it.
    """
    first, rest = len(z), math.prod(z.shape[1:-1])
    if first * rest <= block:
        return find(z)
    rows, share = _part(first, block), _part(rest, max(1, block // first))
    padding = [(0, -first % rows), (0, -rest % share), (0, 0)]
    grid = jnp.pad(z.reshape(first, rest, -1), padding)
    # XLA copies the whole grid into the loop if an axis has length 1.
    parts = (rows, share) if share > 1 else (rows,)
    grid = grid.reshape(*parts, -1, z.shape[-1])
    found = jax.lax.map(
        lambda step: find(jax.lax.dynamic_index_in_dim(grid, step, -2, keepdims=False)),
        jnp.arange(grid.shape[-2]),
    )
    found = jnp.moveaxis(found, 0, -1).reshape(-1, rest + padding[1][1])
    return found[:first, :rest].reshape(z.shape[:-1])


def _part(length: int, most: int) -> int:
    """Return how many slices along an axis go into a block, up to `most`.

    It is a power of 2 that divides the length, if that is not much less.
    """
    if length <= most:
        return length
    power = math.gcd(length, 1 << most.bit_length() - 1)
    blocks = -(-length // most)
    # 8 are enough to be faster than padding, and for a host of 8 devices.
    return power if power >= min(most // 2 + 1, 8) else -(-length // blocks)
