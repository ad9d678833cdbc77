"""The DDPM chain: any array of betas as a path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genlib.noise._path import Marginal, Path
from genlib.tree import register_dataclass
from genlib.types import (
    Array,
    ArrayLike,
    float_array,
    safe_sqrt,
)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteBetas(Path):
    """The chain q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k I), k = 1..steps.

    alpha(k)^2 = prod_{j <= k} (1 - beta_j) and sigma^2 = 1 - alpha^2 at integer times
    (arXiv:2006.11239, eq. 4); alpha is linear in between. Time counts steps, so t = 0
    is the data and `diffusers`' timestep i is t = i + 1. A last beta of 1 (zero
    terminal SNR) is fine: alpha is then exactly 0.

    Attributes:
      betas: [steps], each in (0, 1], only the last may be 1.

    Raises:
      ValueError: if `betas` is a NumPy array but not a vector of such numbers.

    >>> path = DiscreteBetas(np.linspace(1e-4, 0.02, 1000))
    >>> path.t_max, round(path(1).sigma.item(), 6)
    (1000, 0.01)
    """

    betas: ArrayLike

    norm = staticmethod(jnp.hypot)

    def __post_init__(self):
        betas = self.betas
        if isinstance(betas, list | tuple | float | int):
            raise ValueError(f"betas must be an array; it is {betas!r}")
        # A tree transformation (a gradient, say) constructs paths from other arrays,
        # whose values are not betas: only NumPy arrays, which users pass, are checked.
        if not isinstance(betas, np.ndarray):
            return
        if betas.ndim != 1 or betas.size == 0 or betas.dtype.kind != "f":
            raise ValueError(
                "betas must be a non-empty float vector; "
                f"its shape is {betas.shape} and its dtype {betas.dtype}"
            )
        wrong = ~((betas > 0) & (betas <= 1)) | (betas == 1) & (
            np.arange(betas.size) < betas.size - 1
        )
        if wrong.any():
            k = int(np.argmax(wrong))
            raise ValueError(
                "betas must be in (0, 1], with 1 only as the last; "
                f"betas[{k}] is {betas[k]}"
            )

    @property
    def t_max(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of steps."""
        return np.shape(self.betas)[0]

    def _knots(self) -> tuple[Array, Array]:
        """Return alpha and 1 - alpha at t = 0..steps, both precise where small."""
        betas = float_array(self.betas)
        alpha_squared = jnp.cumprod(1 - betas)
        alpha_squared = jnp.concatenate([jnp.ones(1, betas.dtype), alpha_squared])
        # A sum of positive terms, where 1 - alpha^2 would cancel near the data.
        sigma_squared = jnp.cumsum(betas * alpha_squared[:-1])
        sigma_squared = jnp.concatenate([jnp.zeros(1, betas.dtype), sigma_squared])
        alpha = safe_sqrt(alpha_squared)
        return alpha, sigma_squared / (1 + alpha)

    def __call__(self, t: ArrayLike) -> Marginal:
        t = float_array(t)
        knots = jnp.arange(self.t_max + 1, dtype=t.dtype)
        alpha, gap = (jnp.interp(t, knots, c) for c in self._knots())
        return Marginal(alpha, safe_sqrt(gap * (1 + alpha)))

    def time_at(self, log_snr: ArrayLike) -> Array:
        log_snr = float_array(log_snr)
        alpha = safe_sqrt(jax.nn.sigmoid(log_snr))
        gap = jax.nn.sigmoid(-log_snr) / (1 + alpha)
        knots = jnp.arange(self.t_max + 1, dtype=log_snr.dtype)
        alphas, gaps = self._knots()
        # Each is interpolated on the side where it is small, hence precise.
        early, late = jnp.interp(gap, gaps, knots), jnp.interp(-alpha, -alphas, knots)
        return jnp.where(log_snr > 0, early, late)
