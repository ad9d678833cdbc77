"""Quantizers side by side: product quantisation, and heads of one codebook."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._entropy import index_perplexity
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_indices,
    check_mask,
    check_vectors,
)
from genlib.types import Array, ArrayLike, Key


def grouped(quantizer: Quantizer, groups: int, *, shared: bool = False) -> Quantizer:
    """Return a quantizer of vectors cut into pieces, each with a code of its own.

    z = (z_1, .., z_G), codes = (q_1(z_1), .., q_G(z_G)): product quantisation, size^G
    codes at the cost of G codebooks. The losses are means over the groups.

    Args:
      quantizer: of a piece, D / G wide.
      groups: how many, G.
      shared: whether one codebook serves all groups (heads), with the sum of their
        statistics; else parameters are stacked on axis 0.

    Returns:
      A `Quantizer` with indices [..., G] and perplexity [G]. Where composites are made
      of composites, the axis of the outermost is the last: [..., S, G] of groups of S
      residual stages.

    Raises:
      ValueError: if `groups` is less than 1 or, when called, does not divide D.

    >>> from genlib import quantize
    >>> z = jnp.eye(4)
    >>> quantizer = quantize.grouped(quantize.gumbel(8), 2)
    >>> quantizer.quantize(quantizer.init(jax.random.key(0), z), z).indices.shape
    (4, 2)
    """
    if groups < 1:
        raise ValueError(f"groups must be at least 1; it is {groups}")

    def pieces(z: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array | None]:
        z = check_vectors(z)
        if z.shape[-1] % groups:
            raise ValueError(f"groups must divide D = {z.shape[-1]}; it is {groups}")
        mask = check_mask(mask, z.shape[:-1])
        z = z.reshape(*z.shape[:-1], groups, -1)
        if shared and mask is not None:
            mask = jnp.broadcast_to(mask[..., None], z.shape[:-1])
        return z, mask

    def init(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        z, mask = pieces(z, mask)
        fit = lambda key, z: quantizer.init(key, z, mask=mask, axis_name=axis_name)
        if shared:
            return fit(key, z)
        return jax.vmap(fit, (0, -2))(jax.random.split(key, groups), z)

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        z, mask = pieces(z, mask)
        call = lambda params, z, key: quantizer.quantize(
            params, z, mask=mask, key=key, axis_name=axis_name
        )
        if shared:
            made = call(params, z, key)
            indices = jnp.moveaxis(made.indices, z.ndim - 2, -1)
            evenness = _perplexities(indices, z.ndim - 2, quantizer.size, axis_name)
            made = made._replace(indices=indices, perplexity=evenness)
        else:
            keys = None if key is None else jax.random.split(key, groups)
            axes: Any = Quantized(-2, -1, -1, -1, 0)  # pyright: ignore
            made = jax.vmap(call, (0, -2, 0), axes)(params, z, keys)
        return made._replace(
            codes=made.codes.reshape(*z.shape[:-2], -1),
            losses={name: loss.mean(-1) for name, loss in made.losses.items()},
        )

    def lookup(params: Params, indices: ArrayLike) -> Array:
        indices = check_axis("groups", groups, check_indices(indices, quantizer.size))
        each = jax.vmap(quantizer.lookup, (None if shared else 0, -1), -2)
        codes = each(params, indices)
        return codes.reshape(*codes.shape[:-2], -1)

    def update(params: Params, statistics: Any) -> Params:
        return update_stack(quantizer, params, statistics, shared)

    return Quantizer(init, quantize, lookup, update, quantizer.size)


def check_axis(name: str, length: int, indices: Array) -> Array:
    """Raise a ValueError unless the last axis of indices has a length.

    >>> check_axis("groups", 2, jnp.zeros((5, 3), int))
    Traceback (most recent call last):
    ValueError: indices must be [..., 2], one for each of groups = 2; they are [5, 3]
    """
    if indices.shape[-1:] != (length,):
        raise ValueError(
            f"indices must be [..., {length}], one for each of {name} = {length}; "
            f"they are {list(indices.shape)}"
        )
    return indices


def update_stack(
    quantizer: Quantizer, params: Params, statistics: Any, shared: bool
) -> Params:
    """Update parameters stacked on axis 0, or the one set of all."""
    if not jax.tree.leaves(statistics):
        return params
    update = quantizer.update if shared else jax.vmap(quantizer.update)
    return update(params, statistics)


def _perplexities(indices: Array, leading: int, size: int, axis_name: Any) -> Array:
    """Return the perplexity of each entry of the axes of indices after the leading."""
    rows = indices.reshape(math.prod(indices.shape[:leading]), -1)
    each = jax.vmap(lambda row: index_perplexity(row, size, axis_name), 1)(rows)
    return each.reshape(indices.shape[leading:])
