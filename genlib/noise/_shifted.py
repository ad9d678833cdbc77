"""Paths shifted in log-SNR: for other resolutions and sequence lengths."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp

from genlib.noise._path import Marginal, Path
from genlib.tree import register_dataclass
from genlib.types import Array, ArrayLike, Scalar, concrete, float_array


@dataclasses.dataclass(frozen=True)
class _Shift(Path):
    """A path with sigma / alpha multiplied, in the family of the path it shifts."""

    base: Path

    def __post_init__(self):
        # Tree transformations construct paths from placeholders that are no paths.
        if isinstance(self.base, Path) and self.norm is None:
            raise ValueError(
                "base must be a path with a norm, which says how to stay in its "
                f"family; it is {self.base}"
            )

    @property
    def t_min(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The data end of the base."""
        return self.base.t_min

    @property
    def t_max(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The noise end of the base."""
        return self.base.t_max

    @property
    def norm(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The norm of the base."""
        return self.base.norm

    @abc.abstractmethod
    def _log_shift(self, t: Array) -> Array:
        """Return the logarithm of what multiplies sigma / alpha at times."""

    def __call__(self, t: ArrayLike) -> Marginal:
        alpha, sigma = self.base(t)
        sigma = jnp.exp(self._log_shift(float_array(t))) * sigma
        # The point of the family with this ratio: as time in the base would, but
        # without the rounding of that time, and past the ends of the base too.
        scale = self.norm(alpha, sigma)
        return Marginal(alpha / scale, sigma / scale)

    def log_snr(self, t: ArrayLike) -> Array:
        return self.base.log_snr(t) - 2.0 * self._log_shift(float_array(t))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Shifted(_Shift):
    """A path whose log-SNR is that of another less 2 ln shift, at every time.

    sigma / alpha is multiplied by the shift, and the marginal stays in the family of
    the base (variance preserving, straight, exploding): the base at another time where
    it has that noise level. `Shifted(Rectified(), s)` has sigma = s t / (1 + (s - 1) t)
    (arXiv:2403.03206), and `Cosine` shifted by width / 64 is simple diffusion's for
    images of that width (arXiv:2301.11093). `exp(dynamic_mu(tokens))` is a shift.

    Attributes:
      base: a path that has a `norm`.
      shift: > 0; above 1 there is more noise at every time.

    Raises:
      ValueError: if the base has no `norm`, or a Python number is not positive.

    >>> from genlib import noise
    >>> path = Shifted(noise.Rectified(), 3.0)
    >>> path(0.5)
    Marginal(alpha=Array(0.25, dtype=float32), sigma=Array(0.75, dtype=float32))
    """

    shift: Scalar

    def __post_init__(self):
        super().__post_init__()
        _check_positive("shift", self.shift)

    def _log_shift(self, t: Array) -> Array:
        return jnp.log(self.shift)

    def time_at(self, log_snr: ArrayLike) -> Array:
        """Return the time at which the base has the log-SNR before the shift."""
        return self.base.time_at(float_array(log_snr) + 2.0 * jnp.log(self.shift))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class InterpolatedShift(_Shift):
    """A path with one shift at the data and another at the noise.

    The log-SNR is less 2 ln s(t), with ln s(t) linear from `at_data` at t_min to
    `at_noise` at t_max. On `Cosine`, at_data = width / high and at_noise = width / low
    is the interpolated cosine of simple diffusion (arXiv:2301.11093), with the noise of
    a low resolution where shapes form and of a high one where details do.

    Attributes:
      base: a path that has a `norm`.
      at_data: shift at the data end, > 0.
      at_noise: shift at the noise end, >= at_data, so that the log-SNR decreases.

    Raises:
      ValueError: if the base has no `norm`, or Python numbers are not such shifts.

    >>> from genlib import noise
    >>> path = InterpolatedShift(noise.Cosine(), 1.0, 16.0)
    >>> round(path.log_snr(0.5).item(), 5)
    -2.77259
    """

    at_data: Scalar
    at_noise: Scalar

    def __post_init__(self):
        super().__post_init__()
        _check_positive("at_data", self.at_data)
        _check_positive("at_noise", self.at_noise)
        numbers = isinstance(self.at_data, int | float) and isinstance(
            self.at_noise, int | float
        )
        if numbers and self.at_noise < self.at_data:
            raise ValueError(
                f"at_noise must not be less than at_data, {self.at_data}; "
                f"it is {self.at_noise}"
            )

    def _log_shift(self, t: Array) -> Array:
        u = (t - self.t_min) / (self.t_max - self.t_min)
        return (1 - u) * jnp.log(self.at_data) + u * jnp.log(self.at_noise)


def dynamic_mu(
    tokens: ArrayLike,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_mu: float = 0.5,
    max_mu: float = 1.15,
) -> Array:
    """Return mu for a sequence length: linear through two known lengths.

    mu = base_mu + (max_mu - base_mu) u, u = (tokens - base_tokens) / (max_tokens -
    base_tokens), and exp(mu) is the shift of `Shifted` (models with a linear time shift
    take mu itself). The defaults are those of FLUX.1.

    Args:
      tokens: length of the sequence that the network sees, of any shape.
      base_tokens: length at which mu is `base_mu`.
      max_tokens: length at which mu is `max_mu`; longer ones are extrapolated.
      base_mu: ln shift at `base_tokens`.
      max_mu: ln shift at `max_tokens`.

    Returns:
      ln shift, with the shape of `tokens`.

    Raises:
      ValueError: if the two lengths are the same, or concrete tokens are not positive.

    >>> from genlib import noise
    >>> mu = dynamic_mu(4096)
    >>> round(noise.Shifted(noise.Rectified(), jnp.exp(mu))(0.8).sigma.item(), 6)
    0.926647
    """
    if base_tokens == max_tokens:
        raise ValueError(
            f"max_tokens must differ from base_tokens; both are {max_tokens}"
        )
    values = concrete(tokens)
    if values is not None and not (values > 0).all():
        raise ValueError(f"tokens must be positive; they are {tokens}")
    slope = (max_mu - base_mu) / (max_tokens - base_tokens)
    return base_mu + slope * (float_array(tokens) - base_tokens)


def _check_positive(name: str, value: Any) -> None:
    # Arrays may be placeholders of a tree transformation, or gradients.
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name} must be positive; it is {value}")
