"""Increasing functions of one variable, the pieces of couplings and of AR flows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genlib.types import Array, Scalar, check_positive


class Univariate(NamedTuple):
    """A family of increasing functions R -> R, each given by `size` raw numbers.

    Raw numbers are unconstrained, straight from a network; zeros are the identity.

    Attributes:
      size: raw numbers for each variable, P.
      forward: `(raw [..., P], x [...]) -> (y [...], log dy/dx [...])`.
      inverse: `(raw [..., P], y [...]) -> (x [...], log dx/dy [...])`.

    >>> shift = Univariate(
    ...     size=1,
    ...     forward=lambda raw, x: (x + raw[..., 0], jnp.zeros_like(x)),
    ...     inverse=lambda raw, y: (y - raw[..., 0], jnp.zeros_like(y)),
    ... )
    >>> shift.inverse(jnp.ones((1, 1)), jnp.ones(1))[0].item()
    0.0
    """

    size: int
    forward: Callable[[Array, Array], tuple[Array, Array]]
    inverse: Callable[[Array, Array], tuple[Array, Array]]


def additive() -> Univariate:
    """Shift: y = x + b (NICE, arXiv:1410.8516).

    >>> additive().forward(jnp.full((1, 1), 2.0), jnp.ones(1))
    (Array([3.], dtype=float32), Array([0.], dtype=float32))
    """
    return Univariate(
        size=1,
        forward=lambda raw, x: (x + raw[..., 0], jnp.zeros_like(x)),
        inverse=lambda raw, y: (y - raw[..., 0], jnp.zeros_like(y)),
    )


def affine(scale: str = "tanh", *, bound: Scalar = 2.0) -> Univariate:
    """Shift and scale: y = exp(s) x + b (RealNVP, arXiv:1605.08803).

    The scale is bounded, as an unbounded exponential is the way to overflow:

    - "tanh": s = bound tanh(a / bound), so |s| < bound, and s = 0 at a = 0;
    - "sigmoid": exp(s) = .001 + .999 sigmoid(a + bound) < 1, Glow's but for the floor
      (arXiv:1807.03039, its code has bound 2). Not the identity at a = 0.

    Args:
      scale: "tanh" or "sigmoid".
      bound: positive.

    Returns:
      A `Univariate` of size 2: raw shift b, raw scale a.

    Raises:
      ValueError: for another scale, or a bound that is not positive.

    >>> y, log_det = affine().forward(jnp.array([[1.0, 0.0]]), jnp.array([3.0]))
    >>> y.item(), log_det.item()
    (4.0, 0.0)
    """
    check_positive("bound", bound)
    if scale not in ("tanh", "sigmoid"):
        raise ValueError(f'scale must be "tanh" or "sigmoid"; it is {scale!r}')

    def log_scale(raw: Array) -> Array:
        if scale == "tanh":
            return bound * jnp.tanh(raw[..., 1] / bound)
        return jnp.log(1e-3 + 0.999 * jax.nn.sigmoid(raw[..., 1] + bound))

    def forward(raw: Array, x: Array) -> tuple[Array, Array]:
        s = log_scale(raw)
        return x * jnp.exp(s) + raw[..., 0], s

    def inverse(raw: Array, y: Array) -> tuple[Array, Array]:
        s = log_scale(raw)
        return (y - raw[..., 0]) * jnp.exp(-s), -s

    return Univariate(2, forward, inverse)
