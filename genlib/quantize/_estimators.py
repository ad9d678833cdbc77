"""Gradients through a quantisation, which has none of its own."""

import jax
import jax.numpy as jnp

from genlib.quantize._codebook import unit
from genlib.types import Array, compute_dtype


@jax.custom_jvp
def straight_through(z: Array, codes: Array) -> Array:
    """Return `codes`, with the gradient as if they were `z`.

    d result/d z = I, d result/d codes = 0 (arXiv:1308.3432, arXiv:1711.00937). The
    values are those of `codes` to the last bit, which z + (codes - z) is not.

    Args:
      z: vectors [..., D].
      codes: what they were quantised to, [..., D].

    Returns:
      [..., D] in the dtype of `z`.

    Raises:
      ValueError: if the shapes differ.

    >>> z, codes = jnp.array([0.3, 0.7]), jnp.array([0.0, 1.0])
    >>> jax.grad(lambda z: straight_through(z, codes) @ jnp.array([2.0, 5.0]))(z)
    Array([2., 5.], dtype=float32)
    """
    return _codes(z, codes)


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return straight_through(*primals), tangents[0]


@jax.custom_jvp
def rotate(z: Array, codes: Array) -> Array:
    """Return `codes`, with the gradient of the rotation and scaling from z to them.

    d result/d z = |q| / |z| R with q the code and R the rotation in the plane of both
    that carries z/|z| to q/|q|, held constant:

        R t = t - 2 <r, t> r + 2 <z/|z|, t> q/|q|,

    with r the unit vector along z/|z| + q/|q| (arXiv:2410.06424). Gradients keep their
    angle to the codes, so that they differ within a cell. d result/d codes = 0. Where
    the two point in opposite ways it is the reflection, r = 0; where one is shorter
    than 1e-6 there is no rotation, and the gradient is the straight-through one.

    Args:
      z: vectors [..., D].
      codes: what they were quantised to, [..., D].

    Returns:
      [..., D] in the dtype of `z`; the values are those of `codes`.

    Raises:
      ValueError: if the shapes differ.

    >>> z, codes = jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])
    >>> jax.grad(lambda z: rotate(z, codes)[0])(z).round(4)
    Array([0.12, 0.16], dtype=float32)
    """
    return _codes(z, codes)


@rotate.defjvp
def _rotate_jvp(primals, tangents):
    codes = rotate(*primals)
    wide = compute_dtype(codes.dtype)
    # A rotation held constant has no derivative of its own.
    z, q = jax.lax.stop_gradient(tuple(x.astype(wide) for x in primals))
    tangent = tangents[0].astype(wide)
    dot = lambda x, y: (x * y).sum(-1, keepdims=True)
    z_unit, q_unit = unit(z), unit(q)
    z_norm, q_norm = dot(z, z_unit), dot(q, q_unit)
    between = z_unit + q_unit
    # What rounding leaves of opposite vectors points anywhere.
    opposite = dot(between, between) < (8 * jnp.finfo(wide).eps) ** 2
    r = jnp.where(opposite, 0, unit(between))
    turned = tangent - 2 * dot(r, tangent) * r + 2 * dot(z_unit, tangent) * q_unit
    defined = (z_norm > 1e-6) & (q_norm > 1e-6)
    scale = q_norm / jnp.where(defined, z_norm, 1)
    turned = jnp.where(defined, scale * turned, tangent)
    return codes, turned.astype(tangents[0].dtype)


def _codes(z: Array, codes: Array) -> Array:
    if z.shape != codes.shape:
        raise ValueError(
            f"codes must have the shape of z {list(z.shape)}; it is {list(codes.shape)}"
        )
    return codes.astype(z.dtype)
