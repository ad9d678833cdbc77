"""Continuous paths in closed form, accurate in float32 at both ends."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genlib.noise._path import Marginal, Path, safe_log
from genlib.tree import register_dataclass
from genlib.types import (
    Array,
    ArrayLike,
    Scalar,
    float_array,
    safe_sqrt,
)


def _alpha(alpha: Array, sigma: Array) -> Array:
    return alpha


@dataclasses.dataclass(frozen=True)
class _LinearBeta:
    """The alpha of beta(t) = beta_min + t (beta_max - beta_min): exp(-B(t) / 2)."""

    beta_min: Scalar = 0.1
    beta_max: Scalar = 20.0

    def _integrated_beta(self, t: ArrayLike) -> Array:
        t = float_array(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of(self, decay: Array) -> Array:
        """Return the time at which the integrated beta is `decay`."""
        slope = self.beta_max - self.beta_min
        root = safe_sqrt(self.beta_min**2 + 2.0 * slope * decay)
        speed = self.beta_min + root
        t = 2.0 * decay / jnp.where(speed > 0, speed, 1.0)
        return jnp.where(jnp.isposinf(decay), jnp.inf, t)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VPLinear(_LinearBeta, Path):
    """Variance-preserving diffusion with beta(t) = beta_min + t (beta_max - beta_min).

    log alpha = -B(t) / 2, sigma^2 = -expm1(-B(t)), with
    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 (arXiv:2011.13456, eq. 33).

    >>> alpha, sigma = VPLinear()(0.5)
    >>> round(alpha.item(), 6), round(sigma.item(), 6)
    (0.281183, 0.959654)
    """

    norm = staticmethod(jnp.hypot)

    def __call__(self, t: ArrayLike) -> Marginal:
        decay = self._integrated_beta(t)
        # 1 - alpha**2 would lose every digit near t = 0 in float32.
        return Marginal(jnp.exp(-0.5 * decay), safe_sqrt(-jnp.expm1(-decay)))

    def log_snr(self, t: ArrayLike) -> Array:
        decay = self._integrated_beta(t)
        return -decay - safe_log(-jnp.expm1(-decay))

    def time_at(self, log_snr: ArrayLike) -> Array:
        return self._time_of(jax.nn.softplus(-float_array(log_snr)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SubVP(_LinearBeta, Path):
    """Sub-variance-preserving diffusion: the alpha of `VPLinear`, sigma = 1 - alpha^2.

    sigma = -expm1(-B(t)), below that of `VPLinear` at every time (arXiv:2011.13456,
    eq. 34); alpha^2 + sigma^2 < 1 in between.

    >>> round(SubVP()(0.5).sigma.item(), 6)
    0.920936
    """

    @staticmethod
    def norm(alpha: Array, sigma: Array) -> Array:
        """Return c such that sigma / c = 1 - (alpha / c)^2."""
        return 0.5 * (sigma + jnp.hypot(sigma, 2.0 * alpha))

    def __call__(self, t: ArrayLike) -> Marginal:
        decay = self._integrated_beta(t)
        return Marginal(jnp.exp(-0.5 * decay), -jnp.expm1(-decay))

    def log_snr(self, t: ArrayLike) -> Array:
        decay = self._integrated_beta(t)
        return -decay - 2.0 * safe_log(-jnp.expm1(-decay))

    def time_at(self, log_snr: ArrayLike) -> Array:
        # SNR = alpha^2 / (1 - alpha^2)^2 is 1 / (2 sinh(B / 2))^2.
        ratio = jnp.exp(-0.5 * float_array(log_snr))
        return self._time_of(2.0 * jnp.arcsinh(0.5 * ratio))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosine(Path):
    """Variance-preserving path alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    alpha(1) is exactly 0: the path ends in pure noise (arXiv:2202.00512, sec. 4).

    >>> alpha, sigma = Cosine()(1.0)
    >>> alpha.item(), sigma.item()
    (0.0, 1.0)
    """

    norm = staticmethod(jnp.hypot)

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        # cos(pi t / 2) is -4e-8 at t = 1 in float32; the sine of 1 - t is exactly 0.
        return Marginal(jnp.sin(0.5 * math.pi * (1 - t)), jnp.sin(0.5 * math.pi * t))

    def time_at(self, log_snr: ArrayLike) -> Array:
        return 2.0 / math.pi * jnp.arctan(jnp.exp(-0.5 * float_array(log_snr)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Rectified(Path):
    """The straight path of rectified flow and flow matching: alpha = 1 - t, sigma = t.

    (arXiv:2209.03003, arXiv:2210.02747; there time may run the other way.)

    >>> alpha, sigma = Rectified()(0.25)
    >>> alpha.item(), sigma.item()
    (0.75, 0.25)
    """

    norm = staticmethod(jnp.add)

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        return Marginal(1 - t, t)

    def log_snr(self, t: ArrayLike) -> Array:
        t = float_array(t)
        return 2.0 * (safe_log(1 - t) - safe_log(t))

    def time_at(self, log_snr: ArrayLike) -> Array:
        return jax.nn.sigmoid(-0.5 * float_array(log_snr))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearVP(Path):
    """Variance-preserving path of linear alpha: 1 - t, sqrt(t (2 - t)).

    The `LinearVPScheduler` of flow_matching, whose time runs the other way.

    >>> alpha, sigma = LinearVP()(0.5)
    >>> alpha.item(), round(sigma.item(), 6)
    (0.5, 0.866025)
    """

    norm = staticmethod(jnp.hypot)

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        return Marginal(1 - t, safe_sqrt(t * (2 - t)))

    def log_snr(self, t: ArrayLike) -> Array:
        t = float_array(t)
        return 2.0 * safe_log(1 - t) - safe_log(t) - jnp.log(2 - t)

    def time_at(self, log_snr: ArrayLike) -> Array:
        log_snr = float_array(log_snr)
        alpha = jnp.sqrt(jax.nn.sigmoid(log_snr))
        return jax.nn.sigmoid(-log_snr) / (1 + alpha)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Polynomial(Path):
    """The convex path alpha = (1 - t)^power, sigma = 1 - (1 - t)^power.

    `Rectified` at power 1; above it, noise comes sooner. The
    `PolynomialConvexScheduler` of flow_matching, whose time runs the other way.

    Attributes:
      power: > 0. Below 1 the rates at t = 1 are infinite.

    Raises:
      ValueError: if a concrete `power` is not positive.

    >>> alpha, sigma = Polynomial(3.0)(0.5)
    >>> alpha.item(), sigma.item()
    (0.125, 0.875)
    """

    power: Scalar

    norm = staticmethod(jnp.add)

    def __post_init__(self):
        if isinstance(self.power, int | float) and not self.power > 0:
            raise ValueError(f"power must be positive; it is {self.power}")

    def _log_alpha(self, t: ArrayLike) -> tuple[Array, Array]:
        """Return where alpha > 0, and log alpha there."""
        t = float_array(t)
        inside = t < 1
        return inside, self.power * jnp.log1p(-jnp.where(inside, t, 0.0))

    def __call__(self, t: ArrayLike) -> Marginal:
        inside, log_alpha = self._log_alpha(t)
        alpha = jnp.where(inside, jnp.exp(log_alpha), 0.0)
        # Near the noise the slope of expm1 would cancel.
        return Marginal(alpha, jnp.where(alpha > 0.5, -jnp.expm1(log_alpha), 1 - alpha))

    def log_snr(self, t: ArrayLike) -> Array:
        inside, log_alpha = self._log_alpha(t)
        log_snr = 2.0 * (log_alpha - safe_log(-jnp.expm1(log_alpha)))
        return jnp.where(inside, log_snr, -jnp.inf)

    def time_at(self, log_snr: ArrayLike) -> Array:
        log_alpha = jax.nn.log_sigmoid(0.5 * float_array(log_snr))
        return -jnp.expm1(log_alpha / self.power)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VE(Path):
    """Variance-exploding path: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    (arXiv:2011.13456, eq. 31.) sigma(0) is sigma_min, not 0.

    >>> round(VE(0.01, 50.0)(0.5).sigma.item(), 6)
    0.707107
    """

    sigma_min: Scalar = 0.01
    sigma_max: Scalar = 50.0

    norm = staticmethod(_alpha)

    def _log_sigma(self, t: Array) -> Array:
        low, high = jnp.log(self.sigma_min), jnp.log(self.sigma_max)
        return low + t * (high - low)

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        return Marginal(jnp.ones_like(t), jnp.exp(self._log_sigma(t)))

    def log_snr(self, t: ArrayLike) -> Array:
        return -2.0 * self._log_sigma(float_array(t))

    def time_at(self, log_snr: ArrayLike) -> Array:
        low, high = jnp.log(self.sigma_min), jnp.log(self.sigma_max)
        return (-0.5 * float_array(log_snr) - low) / (high - low)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EDM(Path):
    """The path whose time is its noise level: alpha = 1, sigma = t <= sigma_max.

    Solvers that integrate in the path's own time are EDM's on this path
    (arXiv:2206.00364, Table 1).

    >>> EDM().t_max, EDM()(2.0).sigma.item()
    (80.0, 2.0)
    """

    sigma_max: Scalar = 80.0

    norm = staticmethod(_alpha)

    @property
    def t_max(self) -> Scalar:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The largest noise level."""
        return self.sigma_max

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        return Marginal(jnp.ones_like(t), t)

    def log_snr(self, t: ArrayLike) -> Array:
        return -2.0 * safe_log(float_array(t))

    def time_at(self, log_snr: ArrayLike) -> Array:
        return jnp.exp(-0.5 * float_array(log_snr))
