"""Fixed maps of every number alike: what data needs before a flow."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genlib.flows._bijector import Bijector, log_det_like, no_params, wide
from genlib.types import Array, Scalar, compute_dtype, concrete


def shift_and_scale(shift: ArrayLike, scale: ArrayLike = 1.0) -> Bijector:
    """Shift and scale by constants: y = scale x + shift.

    Args:
      shift: broadcast to one example.
      scale: not zero, broadcast to one example.

    Returns:
      A `Bijector` for x [B, ...] without parameters.

    Raises:
      ValueError: if `scale` holds a zero, or one of them does not fit x.

    >>> y, log_det = shift_and_scale(-1.0, 2.0).forward({}, jnp.array([[0.5, 1.0]]))
    >>> y.tolist(), round(log_det.item(), 4)  # 2 ln 2
    ([[0.0, 1.0]], 1.3863)
    """
    values = concrete(scale)
    if values is not None and not (values != 0).all():
        raise ValueError(f"scale must not be zero; it is {scale}")

    def forward(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
        a, b = _fit("scale", scale, x), _fit("shift", shift, x)
        return (a * wide(x) + b).astype(x.dtype), log_det_like(x, jnp.log(jnp.abs(a)))

    def inverse(params: Any, y: Array, cond: Any = None) -> tuple[Array, Array]:
        a, b = _fit("scale", scale, y), _fit("shift", shift, y)
        x = ((wide(y) - b) / a).astype(y.dtype)
        return x, log_det_like(y, -jnp.log(jnp.abs(a)))

    return Bijector(no_params, forward, inverse)


def sigmoid() -> Bijector:
    """Map the real line to (0, 1): y = 1 / (1 + exp(-x)).

    Its log-determinant is exact at any x. The inverse is infinite at 0 and 1, which
    float32 reaches at x < -88 and x > 17.

    Returns:
      A `Bijector` for x [B, ...] without parameters.

    >>> sigmoid().forward({}, jnp.array([[0.0, 100.0]]))[0].tolist()
    [[0.5, 1.0]]
    """

    def forward(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
        log_y, log_rest = jax.nn.log_sigmoid(wide(x)), jax.nn.log_sigmoid(-wide(x))
        return jax.nn.sigmoid(wide(x)).astype(x.dtype), log_det_like(
            x, log_y + log_rest
        )

    def inverse(params: Any, y: Array, cond: Any = None) -> tuple[Array, Array]:
        log_y, log_rest = jnp.log(wide(y)), jnp.log1p(-wide(y))
        return (log_y - log_rest).astype(y.dtype), log_det_like(y, -log_y - log_rest)

    return Bijector(no_params, forward, inverse)


def logit(alpha: Scalar = 0.05) -> Bijector:
    """Map [0, 1] to the real line, with a margin that keeps both ends finite.

        y = log p - log(1 - p),  p = alpha + (1 - 2 alpha) x
                                                             (arXiv:1705.07057).

    The inverse is the whole line's, so samples may lie up to alpha / (1 - 2 alpha)
    outside of [0, 1], and an x further out has no y: the result is NaN.

    Args:
      alpha: the margin, in (0, 1/2); `invert(sigmoid())` has none.

    Returns:
      A `Bijector` for x [B, ...] without parameters.

    Raises:
      ValueError: for another `alpha`.

    >>> logit().forward({}, jnp.array([[0.1, 0.5, 0.9]]))[0].round(4).tolist()
    [[-1.8152999877929688, 0.0, 1.8152999877929688]]
    """
    values = concrete(alpha)
    if values is not None and not 0 < values < 0.5:
        raise ValueError(f"alpha must be in (0, 1/2); it is {alpha}")

    def scale(x: Array) -> Array:
        return 1 - 2 * jnp.asarray(alpha, compute_dtype(x.dtype))

    def forward(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
        # Each from its own end, so that neither is a difference of near numbers.
        log_p = jnp.log(alpha + scale(x) * wide(x))
        log_rest = jnp.log(alpha + scale(x) * (1 - wide(x)))
        log_det = jnp.log(scale(x)) - log_p - log_rest
        return (log_p - log_rest).astype(x.dtype), log_det_like(x, log_det)

    def inverse(params: Any, y: Array, cond: Any = None) -> tuple[Array, Array]:
        x = ((jax.nn.sigmoid(wide(y)) - alpha) / scale(y)).astype(y.dtype)
        log_p, log_rest = jax.nn.log_sigmoid(wide(y)), jax.nn.log_sigmoid(-wide(y))
        return x, log_det_like(y, log_p + log_rest - jnp.log(scale(y)))

    return Bijector(no_params, forward, inverse)


def _fit(name: str, value: ArrayLike, x: Array) -> Array:
    """Return a constant in the rank and width of a batch.

    Raises:
      ValueError: if it does not broadcast to one example.
    """
    value = jnp.asarray(value, compute_dtype(x.dtype))
    try:
        ones = (1,) * (x.ndim - value.ndim)
        return jnp.broadcast_to(value.reshape(ones + value.shape), (1, *x.shape[1:]))
    except ValueError as error:
        raise ValueError(
            f"{name} must broadcast to one example of x {x.shape}; its shape is "
            f"{value.shape}"
        ) from error
