"""What a path is, and its time derivative."""

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.types import Array, ArrayLike, Scalar, concrete, float_array


def safe_log(x: Array) -> Array:
    """Logarithm, -inf with derivative 0 at 0, so that gradients stay finite there."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)


class Marginal(NamedTuple):
    """Scale and noise level of q(x_t | x_0) = N(alpha x_0, sigma^2 I)."""

    alpha: Array
    sigma: Array


class Process:
    """What runs from the data at t_min to noise, or other data, at t_max."""

    t_min: ClassVar[float] = 0.0
    t_max: Scalar = 1.0


class Path(Process, abc.ABC):
    """A Gaussian forward process, called with a time.

    Write one as a frozen dataclass with `__call__`, under `tree.register_dataclass` so
    that its settings can be swept under one trace; give `t_min`, `t_max` if the domain
    is not [0, 1], and closed forms of `log_snr` and `time_at` if there are any.

    Start with `types.float_array(t)`, and write sigma without 1 - alpha^2, which
    cancels near the data (sin beside cos, `sqrt(-expm1(x))` beside `exp(x / 2)`). Both
    must be differentiable just inside the ends: velocities and `euler` use their rates.
    `norm`, where given, is homogeneous in (alpha, sigma) and 1 on the path (hypot where
    variance is preserved, the sum on straight paths): `Shifted` stays on its family.

    >>> import dataclasses
    >>> from genlib import tree
    >>> @tree.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Power(Path):
    ...     power: Scalar = 2.0
    ...
    ...     def __call__(self, t):
    ...         t = float_array(t)
    ...         return Marginal(1 - t, t**self.power)
    >>> Power()(0.5)
    Marginal(alpha=Array(0.5, dtype=float32), sigma=Array(0.25, dtype=float32))
    >>> round(time_at(Power(), log_snr(Power(), 0.3)).item(), 5)
    0.3
    """

    norm: ClassVar[Callable[[Array, Array], Array] | None] = None

    @abc.abstractmethod
    def __call__(self, t: ArrayLike) -> Marginal:
        """Return alpha and sigma at times `t` of any shape, finite at both ends."""

    def log_snr(self, t: ArrayLike) -> Array:
        """Return log(alpha^2 / sigma^2); +inf where sigma = 0, -inf where alpha = 0."""
        alpha, sigma = self(t)
        return 2.0 * (safe_log(alpha) - safe_log(sigma))

    def time_at(self, log_snr: ArrayLike) -> Array:
        """Return the time of a log-SNR, by bisection to the last bit."""
        log_snr = float_array(log_snr)
        low = jnp.full_like(log_snr, self.t_min)
        high = jnp.full_like(log_snr, self.t_max)

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            early = self.log_snr(middle) > log_snr
            return jnp.where(early, middle, low), jnp.where(early, high, middle)

        low, high = jax.lax.fori_loop(0, 80, halve, (low, high))
        t = jax.lax.stop_gradient(0.5 * (low + high))
        # Bisection has no derivative. This Newton step has the right one and no value.
        _, slope = jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))
        miss = self.log_snr(t) - log_snr
        step = (miss - jax.lax.stop_gradient(miss)) / jax.lax.stop_gradient(slope)
        t = jnp.where(jnp.isfinite(miss), t - step, t)
        return jnp.where(jnp.isnan(log_snr), jnp.nan, t)


def log_snr(path: Path, t: ArrayLike) -> Array:
    """Return log(alpha_t^2 / sigma_t^2), infinite at noiseless and dataless ends.

    Args:
      path: the forward process.
      t: times of any shape.

    Returns:
      Log signal-to-noise ratio in nats, with the shape of `t`, decreasing in `t`.

    >>> from genlib import noise
    >>> round(noise.log_snr(noise.Cosine(), 0.5).item(), 5)
    0.0
    """
    return path.log_snr(float_array(t))


def time_at(path: Path, log_snr: ArrayLike) -> Array:
    """Return the time at which a path has the given log-SNR, the inverse of `log_snr`.

    Closed forms continue past the ends of the path where the formula does. It computes
    in the ambient dtype; plans of solvers use `samplers.times_at`.

    Args:
      path: the forward process.
      log_snr: log(alpha^2 / sigma^2) in nats, of any shape.

    Returns:
      Times with the shape of `log_snr`.

    >>> from genlib import noise
    >>> noise.time_at(noise.Rectified(), 0.0).item()
    0.5
    """
    return path.time_at(float_array(log_snr))


def marginal_and_rate(path: Path, t: ArrayLike) -> tuple[Marginal, Marginal]:
    """Return (alpha, sigma) at t, and (d alpha / dt, d sigma / dt) by forward mode.

    At the two ends the rate is the one-sided limit, taken the smallest step inside: it
    is finite (though huge where the true limit is infinite, as sigma' of `VPLinear` at
    t = 0), and exact wherever the limit exists.

    Args:
      path: the forward process.
      t: times of any shape.

    Returns:
      The marginal at `t` and its rate, per unit of the path's time.

    >>> from genlib import noise
    >>> _, rate = marginal_and_rate(noise.Rectified(), 0.25)
    >>> rate.alpha.item(), rate.sigma.item()
    (-1.0, 1.0)
    """
    t = float_array(t)
    within = inside(path, t)
    _, rate = jax.jvp(path, (within,), (jnp.ones_like(within),))
    return path(t), rate


def inside(path: Process, t: ArrayLike, step: Scalar = 1e-30) -> Array:
    """Move times at the ends of a path inside, where limits can be evaluated.

    Args:
      path: the forward process.
      t: times of any shape.
      step: how far from t_min; from t_max it is the smallest step of the dtype.

    Returns:
      Times with the shape of `t`, the same where they are inside already.

    >>> from genlib import noise
    >>> inside(noise.Cosine(), jnp.array([0.0, 0.5])).tolist() == [0.0, 0.5]
    False
    """
    t = float_array(t)
    return jnp.clip(t, path.t_min + step, path.t_max * (1 - jnp.finfo(t.dtype).eps))


def check_time(path: Process, t: ArrayLike, name: str = "t") -> None:
    """Raise a ValueError if a concrete time is outside the path, or not a number.

    Traced times cannot be checked and pass.

    >>> from genlib import noise
    >>> check_time(noise.Cosine(), 1.5)
    Traceback (most recent call last):
    ValueError: t must be within [0.0, 1.0] of Cosine; it is 1.5
    """
    times, end = concrete(t), concrete(path.t_max)
    if times is None or end is None:
        return
    # An end that is not a float32 number may have been rounded to one.
    rounded = max(end, np.float32(end))
    wrong = ~((times >= path.t_min) & (times <= rounded))
    if wrong.any():
        raise ValueError(
            f"{name} must be within [{path.t_min}, {end}] of {type(path).__name__}; "
            f"it is {times[wrong].flat[0]}"
        )
