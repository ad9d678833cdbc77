"""Codes of a low-dimensional space."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_mask,
    check_vectors,
    without_masked,
)
from genlib.types import Array, ArrayLike, Key


def projected(quantizer: Quantizer, width: int) -> Quantizer:
    """Return a quantizer of linear projections: down to few numbers, and up again.

    codes = q(z down) up. Nearest codes mean more in a space of few dimensions: of 32
    numbers or fewer almost all codes are used (arXiv:2110.04627). Losses are those in
    that space.

    Args:
      quantizer: of vectors `width` wide.
      width: of the space of codes.

    Returns:
      A `Quantizer` with parameters {"down" [D, width], "up" [width, D], "inner"}. At
      the start `down` is a random matrix with orthonormal columns (rows, if width > D)
      and `up` its transpose: z down up is z where width >= D, and its part in a random
      subspace otherwise.

    Raises:
      ValueError: if `width` is less than 1.

    >>> from genlib import quantize
    >>> z = jnp.eye(4)
    >>> quantizer = quantize.projected(quantize.gumbel(8), 2)
    >>> quantizer.quantize(quantizer.init(jax.random.key(0), z), z).codes.shape
    (4, 4)
    """
    if width < 1:
        raise ValueError(f"width must be at least 1; it is {width}")

    def init(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        z = check_vectors(z)
        mask = check_mask(mask, z.shape[:-1])
        x = without_masked(z, mask)
        own_key, inner_key = jax.random.split(key)
        down = jax.random.orthogonal(own_key, x.shape[-1], (), x.dtype, width)
        inner = quantizer.init(
            inner_key, _matmul(x, down), mask=mask, axis_name=axis_name
        )
        return {"down": down, "up": down.T, "inner": inner}

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        z = check_vectors(z, len(params["down"]))
        mask = check_mask(mask, z.shape[:-1])
        low = _matmul(without_masked(z, mask), params["down"])
        made = quantizer.quantize(
            params["inner"], low, mask=mask, key=key, axis_name=axis_name
        )
        return made._replace(codes=_matmul(made.codes, params["up"]).astype(z.dtype))

    def lookup(params: Params, indices: ArrayLike) -> Array:
        return _matmul(quantizer.lookup(params["inner"], indices), params["up"])

    def update(params: Params, statistics: Any) -> Params:
        return {**params, "inner": quantizer.update(params["inner"], statistics)}

    return Quantizer(init, quantize, lookup, update, quantizer.size)


def _matmul(x: Array, matrix: Array) -> Array:
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)
