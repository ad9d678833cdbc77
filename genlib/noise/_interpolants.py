"""Stochastic interpolants: a path of samples between two distributions."""

import abc
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genlib.noise._path import Path, Process, check_time, inside
from genlib.tree import register_dataclass
from genlib.types import (
    Array,
    ArrayLike,
    Scalar,
    expand_like,
    float_array,
    safe_sqrt,
)


class Coefficients(NamedTuple):
    """Weights of x_t = alpha x_0 + beta x_1 + gamma z; gamma is None without noise."""

    alpha: Array
    beta: Array
    gamma: Array | None = None


class Interpolant(Process, abc.ABC):
    """A process between data x_0 at t = 0 and a source, or other data, x_1 at t = 1.

    x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z with z ~ N(0, I) (arXiv:2303.08797).
    Write one as a frozen dataclass with `__call__`, under `tree.register_dataclass`.
    Where a paper runs time from the source to the data, its t is 1 - t and its velocity
    is -u_t.

    Every `Path` is an interpolant too, whose x_1 is standard normal noise.

    >>> class Quadratic(Interpolant):
    ...     def __call__(self, t):
    ...         return Coefficients(1 - t**2, t**2)
    >>> interpolate(Quadratic(), jnp.zeros((1, 2)), jnp.ones((1, 2)), 0.5)
    Array([[0.25, 0.25]], dtype=float32)
    """

    @abc.abstractmethod
    def __call__(self, t: ArrayLike) -> Coefficients:
        """Return the three weights at times `t` of any shape, finite at both ends."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearInterpolant(Interpolant):
    """The straight line x_t = (1 - t) x_0 + t x_1, or a tube of width sigma around it.

    Without sigma this is rectified flow (arXiv:2209.03003); with it gamma = sigma at
    every time: conditional flow matching between any two distributions
    (arXiv:2302.00482).

    >>> LinearInterpolant(0.1)(0.25)[:2]
    (Array(0.75, dtype=float32), Array(0.25, dtype=float32))
    """

    sigma: Scalar | None = None

    def __call__(self, t: ArrayLike) -> Coefficients:
        t = float_array(t)
        return Coefficients(1 - t, t, _constant(self.sigma, t))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrigonometricInterpolant(Interpolant):
    """The arc x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1, or a tube around it.

    It keeps the variance of independent ends (arXiv:2303.08797; VP-CFM in
    arXiv:2302.00482); gamma = sigma at every time, where sigma is given.

    >>> TrigonometricInterpolant()(1.0)[:2]
    (Array(0., dtype=float32), Array(1., dtype=float32))
    """

    sigma: Scalar | None = None

    def __call__(self, t: ArrayLike) -> Coefficients:
        t = float_array(t)
        return Coefficients(_sine(1 - t), _sine(t), _constant(self.sigma, t))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BridgeInterpolant(Interpolant):
    """The Brownian bridge: the straight line with gamma = sigma sqrt(t (1 - t)).

    Between pairs of a Schroedinger-bridge coupling of the same sigma it has the
    marginals of the Schroedinger bridge (arXiv:2307.03672). gamma' is infinite at both
    ends: draw training times inside.

    >>> BridgeInterpolant(0.5)(0.5).gamma.item()
    0.25
    """

    sigma: Scalar

    def __call__(self, t: ArrayLike) -> Coefficients:
        t = float_array(t)
        return Coefficients(1 - t, t, self.sigma * safe_sqrt(t * (1 - t)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EncodingDecodingInterpolant(Interpolant):
    """Data to pure noise to other data: cos^2, cos^2 and gamma = sin^2(pi t).

    alpha = cos^2(pi t) before t = 1/2 and 0 after it, beta the other way round: x_t is
    standard normal noise at t = 1/2 (arXiv:2303.08797).

    >>> alpha, beta, gamma = EncodingDecodingInterpolant()(0.25)
    >>> round(alpha.item(), 6), beta.item(), round(gamma.item(), 6)
    (0.5, 0.0, 0.5)
    """

    def __call__(self, t: ArrayLike) -> Coefficients:
        t = float_array(t)
        gamma = (2.0 * _sine(t) * _sine(1 - t)) ** 2  # exactly 0 at both ends
        cosine = _sine(1 - 2.0 * t) ** 2
        early = t < 0.5
        return Coefficients(
            jnp.where(early, cosine, 0.0), jnp.where(early, 0.0, cosine), gamma
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TargetInterpolant(Interpolant):
    """The path of target-conditional flow matching, from noise to blurred data.

    alpha = 1 - t and beta = sigma + (1 - sigma) t, and x_1 is standard normal noise:
    each data point is blurred by sigma at t = 0 (arXiv:2210.02747; time runs the other
    way there).

    >>> TargetInterpolant(0.1)(0.0).beta.item() == jnp.float32(0.1)
    Array(True, dtype=bool)
    """

    sigma: Scalar

    def __call__(self, t: ArrayLike) -> Coefficients:
        t = float_array(t)
        return Coefficients(1 - t, self.sigma * (1 - t) + t)


def is_stochastic(interpolant: Interpolant | Path) -> bool:
    """Tell whether an interpolant has a gamma, and so takes noise z.

    >>> is_stochastic(BridgeInterpolant(0.5)), is_stochastic(LinearInterpolant())
    (True, False)
    """
    weights = jax.eval_shape(lambda t: interpolant(t), jnp.float32(0.5))
    return len(jax.tree.leaves(weights)) == 3


def interpolate(
    interpolant: Interpolant | Path,
    x_0: Array,
    x_1: Array,
    t: ArrayLike,
    z: Array | None = None,
) -> Array:
    """Return x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z.

    Args:
      interpolant: the process between the ends; of a `Path` x_1 is its noise.
      x_0: data [B, ...].
      x_1: source, or other data, with the shape of `x_0`.
      t: time, a scalar or [B].
      z: standard normal noise with the shape of `x_0`, if the interpolant takes any.

    Returns:
      x_t with the shape and dtype of `x_0`.

    Raises:
      ValueError: if shapes disagree, `z` is missing or not taken, or a concrete `t` is
        outside the interpolant.

    >>> interpolate(LinearInterpolant(), jnp.zeros((1, 2)), jnp.ones((1, 2)), 0.25)
    Array([[0.25, 0.25]], dtype=float32)
    """
    check_time(interpolant, t)
    return _combine(interpolant, interpolant(t), x_0, x_1, z)


def conditional_velocity(
    interpolant: Interpolant | Path,
    x_0: Array,
    x_1: Array,
    t: ArrayLike,
    z: Array | None = None,
) -> Array:
    """Return u_t = dx_t / dt = alpha' x_0 + beta' x_1 + gamma' z, towards the source.

    The mean of u_t given x_t is the velocity that carries the distribution of x_t
    (arXiv:2303.08797). At the ends the rates are one-sided limits taken the smallest
    step inside: finite, though huge where the limit is infinite.

    Args:
      interpolant: the process between the ends; of a `Path` x_1 is its noise.
      x_0: data [B, ...].
      x_1: source, or other data, with the shape of `x_0`.
      t: time, a scalar or [B].
      z: standard normal noise with the shape of `x_0`, if the interpolant takes any.

    Returns:
      u_t with the shape and dtype of `x_0`, per unit of time.

    Raises:
      ValueError: if shapes disagree, `z` is missing or not taken, or a concrete `t` is
        outside the interpolant.

    >>> x_0, x_1 = jnp.zeros((1, 2)), jnp.ones((1, 2))
    >>> conditional_velocity(LinearInterpolant(), x_0, x_1, 0.25)
    Array([[1., 1.]], dtype=float32)
    """
    check_time(interpolant, t)
    within = inside(interpolant, t)
    _, rates = jax.jvp(lambda t: interpolant(t), (within,), (jnp.ones_like(within),))
    return _combine(interpolant, rates, x_0, x_1, z)


def _combine(
    interpolant: Interpolant | Path,
    weights: tuple,
    x_0: Array,
    x_1: Array,
    z: Array | None,
) -> Array:
    parts = {"x_0": x_0, "x_1": x_1, "z": z}
    weighted = len(jax.tree.leaves(weights)) == 3
    if weighted != (z is not None):
        need = "noise with the shape of x_0" if weighted else "None"
        raise ValueError(
            f"z must be {need} for {type(interpolant).__name__}; it is {z!r:.80}"
        )
    for name, part in parts.items():
        if part is not None and part.shape != x_0.shape:
            raise ValueError(
                f"{name} must have the shape {x_0.shape} of x_0; it is {part.shape}"
            )
    terms = [
        expand_like(weight, x_0) * part
        for weight, part in zip(weights, parts.values(), strict=False)
        if part is not None
    ]
    return sum(terms[1:], terms[0]).astype(x_0.dtype)


def _sine(t: Array) -> Array:
    return jnp.sin(0.5 * math.pi * t)


def _constant(sigma: Scalar | None, t: Array) -> Array | None:
    return None if sigma is None else sigma * jnp.ones_like(t)
