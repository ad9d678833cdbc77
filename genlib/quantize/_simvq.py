"""A codebook that moves as a whole."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._estimators import straight_through
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_mask,
    check_vectors,
    mean_square,
    without_masked,
)
from genlib.quantize._vector import Estimator, vq
from genlib.types import Array, ArrayLike, Key


def simvq(size: int, *, estimator: Estimator = straight_through) -> Quantizer:
    """Return a quantizer whose codes are a trained linear map of frozen random vectors.

    codebook = basis projection, with the basis drawn once from N(0, I)
    (arXiv:2411.02038). Every vector moves all of the codes, also those that it does not
    choose, so that none is left behind.

    Args:
      size: how many codes, K.
      estimator: of the gradient in z, `straight_through` or `rotate`.

    Returns:
      A `Quantizer` with parameters {"frozen": {"basis" [K, D]}, "projection" [D, D]}
      and the losses "commitment" and "codebook". At the start the projection is the
      identity times the root mean square of z.

    Raises:
      ValueError: if `size` is less than 1.

    >>> quantizer = simvq(8)
    >>> params = quantizer.init(jax.random.key(0), 2 * jnp.ones((3, 4)))
    >>> params["projection"][0].tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    nearest = vq(size, estimator=estimator)

    def init(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        z = check_vectors(z)
        mask = check_mask(mask, z.shape[:-1])
        x = without_masked(z, mask)
        squares = mean_square(x, mask).sum()
        count = jnp.sum(jnp.ones(x.shape[:-1], x.dtype), where=mask)
        if axis_name is not None:
            squares, count = jax.lax.psum((squares, count), axis_name)
        scale = jnp.sqrt(squares / jnp.maximum(count, 1))
        width = x.shape[-1]
        return {
            "frozen": {"basis": jax.random.normal(key, (size, width), x.dtype)},
            "projection": jnp.where(scale > 0, scale, 1)
            * jnp.eye(width, dtype=x.dtype),
        }

    def codebook(params: Params) -> Array:
        basis = jax.lax.stop_gradient(params["frozen"]["basis"])
        projection = params["projection"]
        return jnp.matmul(basis, projection, precision=jax.lax.Precision.HIGHEST)

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        own = {"codebook": codebook(params)}
        return nearest.quantize(own, z, mask=mask, key=key, axis_name=axis_name)

    def lookup(params: Params, indices: ArrayLike) -> Array:
        return nearest.lookup({"codebook": codebook(params)}, indices)

    return Quantizer(init, quantize, lookup, lambda params, statistics: params, size)
