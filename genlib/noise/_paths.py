"""Continuous paths in closed form, accurate in float32 at both ends."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genlib.noise._path import Marginal, Path, safe_log, safe_sqrt
from genlib.types import Array, ArrayLike, Scalar, float_array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VPLinear(Path):
    """Variance-preserving diffusion with beta(t) = beta_min + t (beta_max - beta_min).

    log alpha = -B(t) / 2, sigma^2 = -expm1(-B(t)), with
    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 (arXiv:2011.13456, eq. 33).

    >>> alpha, sigma = VPLinear()(0.5)
    >>> round(alpha.item(), 6), round(sigma.item(), 6)
    (0.281183, 0.959654)
    """

    beta_min: Scalar = 0.1
    beta_max: Scalar = 20.0

    def _integrated_beta(self, t: Array) -> Array:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def __call__(self, t: ArrayLike) -> Marginal:
        decay = self._integrated_beta(float_array(t))
        # 1 - alpha**2 would lose every digit near t = 0 in float32.
        return Marginal(jnp.exp(-0.5 * decay), safe_sqrt(-jnp.expm1(-decay)))

    def log_snr(self, t: ArrayLike) -> Array:
        decay = self._integrated_beta(float_array(t))
        return -decay - safe_log(-jnp.expm1(-decay))

    def time_at(self, log_snr: ArrayLike) -> Array:
        decay = jax.nn.softplus(-float_array(log_snr))
        slope = self.beta_max - self.beta_min
        root = safe_sqrt(self.beta_min**2 + 2.0 * slope * decay)
        speed = self.beta_min + root
        t = 2.0 * decay / jnp.where(speed > 0, speed, 1.0)
        return jnp.where(jnp.isposinf(decay), jnp.inf, t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosine(Path):
    """Variance-preserving path alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    alpha(1) is exactly 0: the path ends in pure noise (arXiv:2202.00512, sec. 4).

    >>> alpha, sigma = Cosine()(1.0)
    >>> alpha.item(), sigma.item()
    (0.0, 1.0)
    """

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        # cos(pi t / 2) is -4e-8 at t = 1 in float32; the sine of 1 - t is exactly 0.
        return Marginal(jnp.sin(0.5 * math.pi * (1 - t)), jnp.sin(0.5 * math.pi * t))

    def time_at(self, log_snr: ArrayLike) -> Array:
        return 2.0 / math.pi * jnp.arctan(jnp.exp(-0.5 * float_array(log_snr)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rectified(Path):
    """The straight path of rectified flow and flow matching: alpha = 1 - t, sigma = t.

    (arXiv:2209.03003, arXiv:2210.02747; there time may run the other way.)

    >>> alpha, sigma = Rectified()(0.25)
    >>> alpha.item(), sigma.item()
    (0.75, 0.25)
    """

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        return Marginal(1 - t, t)

    def log_snr(self, t: ArrayLike) -> Array:
        t = float_array(t)
        return 2.0 * (safe_log(1 - t) - safe_log(t))

    def time_at(self, log_snr: ArrayLike) -> Array:
        return jax.nn.sigmoid(-0.5 * float_array(log_snr))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VE(Path):
    """Variance-exploding path: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    (arXiv:2011.13456, eq. 31.) sigma(0) is sigma_min, not 0.

    >>> round(VE(0.01, 50.0)(0.5).sigma.item(), 6)
    0.707107
    """

    sigma_min: Scalar = 0.01
    sigma_max: Scalar = 50.0

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EDM(Path):
    """The path whose time is its noise level: alpha = 1, sigma = t <= sigma_max.

    Solvers that integrate in the path's own time are EDM's on this path
    (arXiv:2206.00364, Table 1).

    >>> EDM().t_max, EDM()(2.0).sigma.item()
    (80.0, 2.0)
    """

    sigma_max: Scalar = 80.0

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
