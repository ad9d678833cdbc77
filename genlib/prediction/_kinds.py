"""The kinds of prediction, each a linear form in (x_0, eps)."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from genlib.noise import Marginal
from genlib.tree import register_dataclass
from genlib.types import Array, Scalar, expand_like


class Linear(NamedTuple):
    """The linear form `scale * target = x_0 * x_0_ + eps * eps_` of a kind.

    `scale` is there so that nothing divides by alpha or sigma: the score is
    `Linear(0, -1, sigma)`, that is sigma * score = -eps.
    """

    x_0: Array | float
    eps: Array | float
    scale: Array | float = 1.0

    def determinant(self, marginal: Marginal) -> Array:
        """Return alpha eps - sigma x_0, 0 where the form says the same as x_t."""
        return marginal.alpha * self.eps - marginal.sigma * self.x_0


class Prediction(abc.ABC):
    """A kind of prediction, called with (alpha, sigma) and their rates.

    A new kind is a class with `__call__`, and with `inputs` if the network is to see
    something else than (x_t, t):

    >>> class Noisy(Prediction):
    ...     def __call__(self, marginal, rate):
    ...         return Linear(marginal.sigma, marginal.alpha)  # sigma x_0 + alpha eps
    >>> from genlib import noise, prediction
    >>> prediction.target(noise.Rectified(), jnp.ones(1), jnp.ones(1), 0.25, Noisy())
    Array([1.], dtype=float32)
    """

    @abc.abstractmethod
    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        """Return the linear form at (alpha, sigma) with the rates (alpha', sigma')."""

    def inputs(self, marginal: Marginal, x_t: Array, t: Array) -> tuple[Array, Array]:
        """Return what the network sees in place of (x_t, t)."""
        return x_t, t

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return type(self).__name__.removeprefix("_").upper()


class _X0(Prediction):
    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        return Linear(1.0, 0.0)


class _Eps(Prediction):
    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        return Linear(0.0, 1.0)


class _V(Prediction):
    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        return Linear(-marginal.sigma, marginal.alpha)


class _Score(Prediction):
    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        return Linear(0.0, -1.0, marginal.sigma)


class _Velocity(Prediction):
    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        return Linear(rate.alpha, rate.sigma)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EDM(Prediction):
    """EDM's preconditioned network F, for any path (arXiv:2206.00364, Table 1).

    In s = sigma / alpha and y = x_t / alpha: x_0 = c_skip y + c_out F(c_in y, c_noise),
    c_skip = sigma_data^2 / (s^2 + sigma_data^2), c_in = (s^2 + sigma_data^2)^-1/2,
    c_out = s sigma_data c_in and c_noise = ln(s) / 4. The target has unit variance at
    every noise level if the data has variance sigma_data^2.

    c_noise is held within +-5 (log-SNR within +-40), so that it is finite at both ends.

    Attributes:
      sigma_data: standard deviation of the data.

    >>> from genlib import noise
    >>> kind, path = EDM(sigma_data=0.5), noise.EDM()
    >>> round(kind.inputs(path(0.5), jnp.ones((1, 2)), jnp.float32(0.5))[1].item(), 4)
    -0.1733
    """

    sigma_data: Scalar = 0.5

    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        alpha, sigma = marginal
        norm = self._norm(marginal)
        return Linear(sigma / (self.sigma_data * norm), -self.sigma_data * alpha / norm)

    def inputs(self, marginal: Marginal, x_t: Array, t: Array) -> tuple[Array, Array]:
        alpha, sigma = marginal
        log_noise = jnp.log(sigma) - jnp.log(alpha)
        norm = expand_like(self._norm(marginal), x_t)
        return (x_t / norm).astype(x_t.dtype), jnp.clip(log_noise, -20, 20) / 4

    def __eq__(self, other: object) -> bool:
        return self is other  # settings may be traced, and have no truth value

    __hash__ = Prediction.__hash__

    def _norm(self, marginal: Marginal) -> Array:
        return jnp.hypot(marginal.sigma, marginal.alpha * self.sigma_data)

    def __repr__(self) -> str:
        return f"EDM(sigma_data={self.sigma_data})"


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Consistency(EDM):
    """A consistency model's network F, for any path (arXiv:2303.01469, app. C).

    In s = sigma / alpha and y = x_t / alpha: x_0 = c_skip y + c_out F(c_in y, c_noise),
    c_skip = sigma_data^2 / ((s - sigma_min)^2 + sigma_data^2) and
    c_out = sigma_data (s - sigma_min) / (s^2 + sigma_data^2)^1/2. At s = sigma_min, and
    below, c_skip is exactly 1 and c_out exactly 0: whatever the network says, its
    `denoiser` returns y, and only there is no target that it should have.

    `denoiser(predict, path, Consistency())` is the consistency function. c_in and
    c_noise are those of `EDM`.

    Attributes:
      sigma_data: standard deviation of the data.
      sigma_min: the sigma / alpha at which the function is the identity.

    >>> from genlib import noise, prediction
    >>> f = prediction.denoiser(lambda x, t: 7 + x, noise.EDM(), Consistency())
    >>> f(jnp.full((1, 1), 0.3), 0.002), f(jnp.full((1, 1), 0.3), 0.0)
    (Array([[0.3]], dtype=float32), Array([[0.3]], dtype=float32))
    """

    sigma_min: Scalar = 0.002

    def __call__(self, marginal: Marginal, rate: Marginal) -> Linear:
        alpha, sigma = marginal
        gap = jnp.maximum(sigma - alpha * self.sigma_min, 0.0)
        norm = jnp.hypot(gap, alpha * self.sigma_data)
        skip = alpha * jnp.square(self.sigma_data / norm)
        # Divided by sigma, so that the determinant is -1 from end to end.
        inverse = jnp.where(gap > 0, 1.0 / jnp.where(gap > 0, sigma, 1.0), 0.0)
        scale = self.sigma_data * gap * inverse / self._norm(marginal)
        return Linear(jnp.square(gap / norm) * inverse, -skip, scale)

    def __repr__(self) -> str:
        return f"Consistency({self.sigma_data}, sigma_min={self.sigma_min})"


X0 = _X0()
EPS = _Eps()
V = _V()
SCORE = _Score()
VELOCITY = _Velocity()

KINDS: dict[str, Prediction] = {
    "x0": X0,
    "eps": EPS,
    "v": V,
    "score": SCORE,
    "velocity": VELOCITY,
    "edm": EDM(),
    "consistency": Consistency(),
}
"""The kinds by name, for configs; the last two have EDM's own sigma_data of 0.5."""


def check_kind(kind: Any, name: str = "kind") -> None:
    """Raise a ValueError unless `kind` is a `Prediction`.

    >>> check_kind("v")
    Traceback (most recent call last):
    ValueError: kind must be a genlib.prediction.Prediction such as prediction.V; \
it is 'v' (by name: prediction.KINDS['v'])
    """
    if isinstance(kind, Prediction):
        return
    named = isinstance(kind, str) and kind in KINDS
    hint = f" (by name: prediction.KINDS[{kind!r}])" if named else ""
    raise ValueError(
        f"{name} must be a genlib.prediction.Prediction such as prediction.V; "
        f"it is {kind!r}{hint}"
    )
