"""What a bottleneck of codes is: pure functions over its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from genlib.types import Array, ArrayLike, compute_dtype, concrete

# {} where there are none.
Params = Any

# Names of subtrees of parameters that no gradient trains.
UNTRAINED = ("statistics", "frozen")


class Quantized(NamedTuple):
    """What a quantizer made of a batch of vectors z [..., D].

    Attributes:
      codes: [..., D] in the dtype of `z`: exactly the codes, with the gradient in `z`
        that the estimator gives them. 0 where there is no code.
      indices: int32 [...], or [..., S] of several codebooks: the codes as numbers
        0 .. size - 1, and -1 where there is no code (masked vectors, dropped stages).
      losses: by name, one number for each vector [...] in at least float32, not
        weighted, 0 for masked vectors: their mean over a batch is their sum over the
        number of vectors that are not masked.
      perplexity: exp of the entropy of the indices of this batch, from 1 to `size`, and
        0 of none; float32 [], or [S].
      statistics: sums over the batch that `Quantizer.update` learns from, () if it
        learns nothing. Those of the parts of a batch add up to those of the batch.
    """

    codes: Array
    indices: Array
    losses: dict[str, Array]
    perplexity: Array
    statistics: Any


class Quantizer(NamedTuple):
    """A bottleneck of codes: vectors go in, the nearest of a finite set come out.

    All of its functions are pure. Arrays split over devices need nothing under `jit`;
    under `shard_map` and `pmap`, `axis_name` sums over the devices' parts, and `key` is
    the same on all of them.

    Attributes:
      init: `(key, z, *, mask=None, axis_name=None) -> params`, a dict of arrays, {} if
        there are none. `z` is a batch as it arrives: codebooks may be fitted to it.
        What lies below the names "statistics" and "frozen" is float32, and not for an
        optimizer: see `trainable`.
      quantize: `(params, z, *, mask=None, key=None, axis_name=None) -> Quantized`, for
        `z` [..., D] and `mask` bool [...], False for padding. Without `key` it is
        deterministic: nothing is drawn, dropped or proposed as a new code.
      lookup: `(params, indices) -> codes`: the inverse of codes to indices, [..., D] of
        [...] or [..., S], without a gradient in `z`; 0 of the index -1.
      update: `(params, statistics) -> params` after a batch, by its statistics: moving
        averages of codebooks, dead codes reset. The identity if there are none.
      size: how many values an index can have.

    >>> from genlib import quantize
    >>> signs = quantize.Quantizer(  # -1 and 1, of one number each
    ...     init=lambda key, z, mask=None, axis_name=None: {},
    ...     quantize=lambda params, z, mask=None, key=None, axis_name=None: Quantized(
    ...         codes=quantize.straight_through(z, jnp.sign(z)),
    ...         indices=(z[..., 0] > 0).astype(jnp.int32),
    ...         losses={},
    ...         perplexity=jnp.float32(2.0),
    ...         statistics=(),
    ...     ),
    ...     lookup=lambda params, indices: 2.0 * indices[..., None] - 1,
    ...     update=lambda params, statistics: params,
    ...     size=2,
    ... )
    >>> signs.quantize({}, jnp.array([[0.3], [-2.0]])).indices.tolist()
    [1, 0]
    """

    init: Callable[..., Params]
    quantize: Callable[..., Quantized]
    lookup: Callable[..., Array]
    update: Callable[..., Params]
    size: int


def trainable(path: str, leaf: Any = None) -> bool:
    """Tell whether a parameter is for an optimizer, by its path.

    Moving averages of codebooks and codebooks that stay as they were drawn are not:
    give this function to `train.init` and `train.make_step` as `trainable`, or a weight
    decay would shrink them.

    Args:
      path: of the leaf, such as "quantizer/statistics/n".
      leaf: not looked at.

    >>> trainable("decoder/kernel"), trainable("quantizer/statistics/n")
    (True, False)
    """
    return not set(UNTRAINED) & set(path.split("/"))


def check_vectors(z: ArrayLike, features: int | None = None) -> Array:
    """Return a batch of vectors as an array.

    Raises:
      ValueError: if it is not floating point [..., D], with at least one axis before
        the last, or D is not `features`.

    >>> check_vectors(jnp.ones((2, 3)), 4)
    Traceback (most recent call last):
    ValueError: z must be [..., D] with D = 4, the width of the codes; it is [2, 3]
    """
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating) or z.ndim < 2 or z.shape[-1] == 0:
        raise ValueError(
            f"z must be floating point vectors [..., D]; it is {z.dtype}{list(z.shape)}"
        )
    if features is not None and z.shape[-1] != features:
        raise ValueError(
            f"z must be [..., D] with D = {features}, the width of the codes; it is "
            f"{list(z.shape)}"
        )
    return z


def check_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Return a mask of vectors as an array, or None.

    Raises:
      ValueError: if it is not bool of the shape of the vectors without their last axis.

    >>> check_mask(jnp.ones((2, 1), bool), (2, 3))
    Traceback (most recent call last):
    ValueError: mask must be bool[2, 3], one for each vector; it is bool[2, 1]
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != bool or mask.shape != shape:
        raise ValueError(
            f"mask must be bool{list(shape)}, one for each vector; it is "
            f"{mask.dtype}{list(mask.shape)}"
        )
    return mask


def check_indices(indices: ArrayLike, size: int) -> Array:
    """Return indices as int32.

    Raises:
      ValueError: if they are no integers, or known to be outside of -1 .. size - 1.

    >>> check_indices(jnp.array([0, 4]), 4)
    Traceback (most recent call last):
    ValueError: indices must be within 0 .. 3, or -1 for no code; one is 4
    """
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"indices must be integers; they are {indices.dtype}")
    values = concrete(indices)
    if values is not None and ((values < -1) | (values >= size)).any():
        wrong = values[(values < -1) | (values >= size)][0]
        raise ValueError(
            f"indices must be within 0 .. {size - 1}, or -1 for no code; one is {wrong}"
        )
    return indices.astype(jnp.int32)


def rows_of(codebook: Array, indices: Array) -> Array:
    """Return rows of a codebook [K, D]: 0 of index -1, NaN of one that it lacks.

    >>> rows_of(jnp.array([[1.0], [2.0]]), jnp.array([1, -1, 2])).tolist()
    [[2.0], [0.0], [nan]]
    """
    # A negative index would wrap around to another row.
    absent = indices == -1
    index = jnp.where(indices < 0, len(codebook), indices)
    rows = jnp.asarray(codebook).at[index].get(mode="fill", fill_value=jnp.nan)
    return jnp.where(absent[..., None], 0, rows)


def without_masked(z: Array, mask: Array | None) -> Array:
    """Return vectors in at least float32, with 0 for the masked, whatever they hold."""
    z = z.astype(compute_dtype(z.dtype))
    return z if mask is None else jnp.where(mask[..., None], z, 0)


def mean_square(x: Array, mask: Array | None) -> Array:
    """Return the mean over the last axis of squares, 0 for masked vectors: [...].

    >>> mean_square(jnp.array([[1.0, 3.0], [5.0, 5.0]]), jnp.array([True, False]))
    Array([5., 0.], dtype=float32)
    """
    squares = jnp.square(x).mean(-1)
    return squares if mask is None else jnp.where(mask, squares, 0)
