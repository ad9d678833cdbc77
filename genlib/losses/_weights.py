"""Loss weights that know the kind of prediction they weigh.

A network's output errs by d; the x_0 it implies errs by sigma scale / det times d (see
`prediction.convert`). So a weight of the x_0 error, which is a function of the log-SNR
alone, is a weight of any output error, and one definition serves every kind.
"""

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp

from genlib.noise import Path, inside, marginal_and_rate
from genlib.prediction import Prediction, check_kind
from genlib.types import Array, ArrayLike, Scalar, float_array


class Weight(Protocol):
    """A loss weight, `(path, kind, t) -> [B]`, of the network's squared error."""

    def __call__(self, path: Path, kind: Prediction, t: ArrayLike, /) -> Array: ...


def on_x0(weight: Callable[[Array], Array]) -> Weight:
    """Make a loss weight from a weight of the squared x_0 error.

    weight_output = weight(log_snr) (sigma scale / det)^2 for the linear form of the
    kind. At the very ends of the path, where one factor can be 0 and the other
    infinite, it is evaluated 1e-12 of the path inside.

    A weight w of the eps error is `on_x0(lambda l: jnp.exp(l) * w(l))`, as eps errs by
    alpha / sigma times as much.

    Args:
      weight: maps the log-SNR to the weight of |x_0_hat - x_0|^2, both of any shape.

    Returns:
      A `Weight`.

    >>> from genlib import noise, prediction
    >>> flat = on_x0(jnp.ones_like)  # plain x_0 error, whatever the network predicts
    >>> round(flat(noise.Cosine(), prediction.V, jnp.float32(0.5)).item(), 4)  # sigma^2
    0.5
    """

    def output_weight(path: Path, kind: Prediction, t: ArrayLike) -> Array:
        check_kind(kind)
        t = inside(path, t, 1e-12 * (path.t_max - path.t_min))
        marginal, rate = marginal_and_rate(path, t)
        form = kind(marginal, rate)
        x_0_error = marginal.sigma * form.scale / form.determinant(marginal)
        return weight(path.log_snr(t)) * jnp.square(x_0_error)

    return output_weight


def unit(path: Path, kind: Prediction, t: ArrayLike) -> Array:
    """Weigh nothing: the plain squared error of whatever the network predicts.

    >>> from genlib import noise, prediction
    >>> unit(noise.Cosine(), prediction.V, jnp.zeros(2))
    Array([1., 1.], dtype=float32)
    """
    return jnp.ones_like(float_array(t))


def snr(path: Path, kind: Prediction, t: ArrayLike) -> Array:
    """Weigh the x_0 error by the SNR: the plain eps error, for any kind.

    This is DDPM's simple loss (arXiv:2006.11239, eq. 14).

    >>> from genlib import noise, prediction
    >>> round(snr(noise.Cosine(), prediction.EPS, jnp.float32(0.3)).item(), 4)
    1.0
    """
    return on_x0(jnp.exp)(path, kind, t)


def edm(sigma_data: Scalar = 0.5) -> Weight:
    """Weigh the x_0 error by SNR + 1 / sigma_data^2 (arXiv:2206.00364, Table 1).

    In EDM's terms, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2:
    the weight of the output of `prediction.EDM(sigma_data)` is 1 at every noise level.

    Args:
      sigma_data: standard deviation of the data.

    >>> from genlib import noise, prediction
    >>> round(edm(0.5)(noise.EDM(), prediction.X0, jnp.float32(0.5)).item(), 4)
    8.0
    """
    return on_x0(lambda log_snr: jnp.exp(log_snr) + 1.0 / sigma_data**2)


def min_snr(gamma: Scalar = 5.0) -> Weight:
    """Weigh the x_0 error by min(SNR, gamma) (arXiv:2303.09556, sec. 3.4).

    For eps this is min(SNR, gamma) / SNR, and for v min(SNR, gamma) / (SNR + 1).

    Args:
      gamma: the largest weight.

    >>> from genlib import noise, prediction
    >>> round(min_snr(5.0)(noise.Cosine(), prediction.X0, jnp.float32(0.1)).item(), 4)
    5.0
    """
    return on_x0(lambda log_snr: jnp.minimum(jnp.exp(log_snr), gamma))
