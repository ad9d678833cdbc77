"""Linear maps of the channels, the same at every position: 1x1 convolutions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genlib.flows._actnorm import position_log_det
from genlib.flows._bijector import (
    Bijector,
    Params,
    check_features,
    wide,
    zero_log_det,
)
from genlib.types import Array, Key, compute_dtype, concrete


def plu_conv(rotation: ArrayLike | None = None) -> Bijector:
    """Mix the channels by an invertible matrix, a 1x1 convolution of images.

        y = W x,  W = R L (U + diag(exp(s)))          (arXiv:1807.03039, eq. 10).

    R is a fixed orthogonal matrix, L lower triangular with ones on its diagonal and U
    strictly upper triangular. At the start L = I, U = 0 and s = 0, so W = R, which is
    why signs need no place in W. The log-determinant is sum(s) for each position: no
    determinant is computed. The inverse is two triangular solves, C^2 operations for
    each position as forward, and no inverse matrix.

    Args:
      rotation: R [C, C], orthogonal: a row of `rotations`, a permutation matrix, or
        I. It may be traced, as a constant of `scan_chain` is. By default
        `rotations(0, 1, C)[0]` for the C that arrives.

    Returns:
      A `Bijector` for x [B, ..., C] with parameters {"lu": [C, C]}: L below the
      diagonal, s on it and U above.

    Raises:
      ValueError: if `rotation` is not orthogonal, or x has another C.

    >>> layer = plu_conv(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    >>> params = {"lu": jnp.array([[0.5, 1.0], [2.0, 0.0]])}
    >>> y, log_det = layer.forward(params, jnp.array([[1.0, 1.0]]))
    >>> log_det.item()
    0.5
    """
    _check_rotation(rotation)

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        channels = _rotation(rotation, x).shape[0]
        return {"lu": jnp.zeros((channels, channels), compute_dtype(x.dtype))}

    def factors(params: Params, x: Array) -> tuple[Array, Array, Array, Array]:
        lu = params["lu"].astype(compute_dtype(x.dtype))
        log_scale = jnp.diagonal(lu)
        lower = jnp.tril(lu, -1) + jnp.eye(lu.shape[0], dtype=lu.dtype)
        upper = jnp.triu(lu, 1) + jnp.diag(jnp.exp(log_scale))
        return _rotation(rotation, x), lower, upper, log_scale.sum()

    def forward(params: Params, x: Array, cond: Any = None) -> tuple[Array, Array]:
        turn, lower, upper, log_det = factors(params, x)
        matrix = _dot(turn, _dot(lower, upper))
        return _dot(wide(x), matrix.T).astype(x.dtype), position_log_det(x, log_det)

    def inverse(params: Params, y: Array, cond: Any = None) -> tuple[Array, Array]:
        turn, lower, upper, log_det = factors(params, y)
        rows = _dot(wide(y), turn).reshape(-1, y.shape[-1])
        solve = jax.lax.linalg.triangular_solve
        rows = solve(lower, rows, lower=True, transpose_a=True, unit_diagonal=True)
        rows = solve(upper, rows, lower=False, transpose_a=True)
        return rows.reshape(y.shape).astype(y.dtype), position_log_det(y, -log_det)

    return Bijector(init, forward, inverse)


def orthogonal_conv(rotation: ArrayLike | None = None) -> Bijector:
    """Mix the channels by a trained rotation, a 1x1 convolution of images.

        y = W x,  W = R (I + A)^-1 (I - A),  A = -A^T   (Cayley's transform of A),

    orthogonal for every A: log_det is 0 and the inverse is W^T. Each direction solves
    one system of C equations, C^3 operations, whatever the size of the batch.

    Args:
      rotation: R [C, C], see `plu_conv`; W = R at the start.

    Returns:
      A `Bijector` for x [B, ..., C] with parameters {"skew": [C, C]}, of which A takes
      what is below the diagonal.

    Raises:
      ValueError: if `rotation` is not orthogonal, or x has another C.

    >>> layer = orthogonal_conv(jnp.eye(2))
    >>> params = {"skew": jnp.array([[0.0, 0.0], [-1.0, 0.0]])}  # a quarter turn
    >>> layer.forward(params, jnp.array([[1.0, 0.0]]))[0].round(6).tolist()
    [[0.0, 1.0]]
    """
    _check_rotation(rotation)

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        channels = _rotation(rotation, x).shape[0]
        return {"skew": jnp.zeros((channels, channels), compute_dtype(x.dtype))}

    def matrix(params: Params, x: Array) -> Array:
        lower = jnp.tril(params["skew"].astype(compute_dtype(x.dtype)), -1)
        skew, identity = lower - lower.T, jnp.eye(lower.shape[0], dtype=lower.dtype)
        cayley = jnp.linalg.solve(identity + skew, identity - skew)
        # A step of Newton's iteration takes the rounding errors of the solve away.
        cayley = 1.5 * cayley - 0.5 * _dot(cayley, _dot(cayley.T, cayley))
        return _dot(_rotation(rotation, x), cayley)

    def forward(params: Params, x: Array, cond: Any = None) -> tuple[Array, Array]:
        return _dot(wide(x), matrix(params, x).T).astype(x.dtype), zero_log_det(x)

    def inverse(params: Params, y: Array, cond: Any = None) -> tuple[Array, Array]:
        return _dot(wide(y), matrix(params, y)).astype(y.dtype), zero_log_det(y)

    return Bijector(init, forward, inverse)


def rotations(seed: int, depth: int, dimension: int) -> np.ndarray:
    """Draw the rotations of a stack of layers, as constants of `scan_chain`.

    Orthogonal matrices from the uniform (Haar) distribution: the Q of a QR
    decomposition of Gaussian numbers, with the signs of R's diagonal
    (arXiv:math-ph/0609050).

    Args:
      seed: of the draws.
      depth: how many.
      dimension: D.

    Returns:
      float64 [depth, D, D] on the host.

    Raises:
      ValueError: if `depth` or `dimension` is not positive.

    >>> r = rotations(0, depth=2, dimension=3)
    >>> np.allclose(r @ r.swapaxes(1, 2), np.eye(3))
    True
    """
    if depth < 1 or dimension < 1:
        raise ValueError(
            f"depth and dimension must be positive; they are {depth}, {dimension}"
        )
    normal = np.random.default_rng(seed).standard_normal((depth, dimension, dimension))
    q, r = np.linalg.qr(normal)
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]


def _dot(a: Array, b: Array) -> Array:
    """Multiply matrices without the short formats of accelerators, which no inverse
    would undo."""
    return jnp.matmul(a, b, precision="highest")


def _check_rotation(rotation: ArrayLike | None) -> None:
    values = None if rotation is None else concrete(rotation)
    if values is None:
        return
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(
            f"rotation must be a square matrix; its shape is {values.shape}"
        )
    error = np.abs(values.T @ values - np.eye(len(values))).max()
    if not error < 1e-4:
        raise ValueError(
            f"rotation must be orthogonal, R^T R = I; it is so up to {error:.2g}"
        )


def _rotation(rotation: ArrayLike | None, x: Array) -> Array:
    """Return the fixed matrix for a batch, in the dtype of the computation."""
    channels = check_features("x", x).shape[-1]
    chosen = rotations(0, 1, channels)[0] if rotation is None else jnp.asarray(rotation)
    if chosen.shape != (channels, channels):
        raise ValueError(
            f"x must have {chosen.shape[0]} channels, as rotation; its shape is "
            f"{x.shape}"
        )
    return jnp.asarray(chosen, compute_dtype(x.dtype))
