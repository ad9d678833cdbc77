"""Loss weights that know the kind of prediction they weigh.

A network's output errs by d; the x_0 it implies errs by sigma scale / det times d (see
`prediction.convert`). So a weight of the x_0 error, which is a function of the log-SNR
alone, is a weight of any output error, and one definition serves every kind.
"""

import math
from collections.abc import Callable
from typing import Protocol

import jax
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
    infinite, it is evaluated 1e-9 of the path inside.

    A weight w of the eps error is `on_x0(lambda l: jnp.exp(l) * w(l))`, as eps errs by
    alpha / sigma times as much.

    Args:
      weight: maps the log-SNR to the weight of |x_0_hat - x_0|^2, both of any shape;
        not negative.

    Returns:
      A `Weight`.

    >>> from genlib import noise, prediction
    >>> flat = on_x0(jnp.ones_like)  # plain x_0 error, whatever the network predicts
    >>> round(flat(noise.Cosine(), prediction.V, jnp.float32(0.5)).item(), 4)  # sigma^2
    0.5
    """

    def output_weight(path: Path, kind: Prediction, t: ArrayLike) -> Array:
        check_kind(kind)
        t = _inside(path, t)
        marginal, rate = marginal_and_rate(path, t)
        form = kind(marginal, rate)
        x_0_error = marginal.sigma * form.scale / form.determinant(marginal)
        # By roots, as one factor can overflow where the other underflows.
        of_x_0 = weight(path.log_snr(t))
        root = jnp.where(
            of_x_0 == 0, 0.0, jnp.sqrt(jnp.where(of_x_0 == 0, 1.0, of_x_0))
        )
        return jnp.square(root * x_0_error)

    return output_weight


def per_log_snr(weight: Weight) -> Weight:
    """Multiply a weight by -d log_snr / dt, as for times uniform in log-SNR.

    E_t[-log_snr'(t) w L] (t_max - t_min) = int w L d log_snr, which depends on the path
    only through its two ends (arXiv:2107.00630; arXiv:2303.00848). At the very ends of
    the path the rate is evaluated 1e-9 of the path inside, where it is finite.

    Args:
      weight: any weight.

    Returns:
      A `Weight`.

    >>> from genlib import noise, prediction
    >>> weight = per_log_snr(sigmoid(-3.0))  # the loss of VDM++ and SiD2, for any path
    >>> weight(noise.Cosine(), prediction.V, jnp.zeros(2)).shape
    (2,)
    """

    def rated(path: Path, kind: Prediction, t: ArrayLike) -> Array:
        inner = _inside(path, t)
        (alpha, sigma), rate = marginal_and_rate(path, inner)
        return weight(path, kind, t) * 2 * (rate.sigma / sigma - rate.alpha / alpha)

    return rated


def _inside(path: Path, t: ArrayLike) -> Array:
    return inside(path, t, 1e-9 * (path.t_max - path.t_min))


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


def soft_min_snr(gamma: Scalar = 4.0) -> Weight:
    """Weigh the x_0 error by SNR gamma / (SNR + gamma), a smooth min(SNR, gamma).

    With gamma = 1 / sigma_data^2 this is 1 / (sigma^2 + sigma_data^2) in EDM's terms,
    as in k-diffusion (arXiv:2401.11605).

    Args:
      gamma: the largest weight; 4 belongs to a sigma_data of 0.5.

    >>> from genlib import noise, prediction
    >>> round(soft_min_snr(4.0)(noise.EDM(), prediction.X0, jnp.float32(0.5)).item(), 4)
    2.0
    """
    return on_x0(lambda log_snr: gamma * jax.nn.sigmoid(log_snr - jnp.log(gamma)))


def sigmoid(bias: Scalar = 2.0) -> Weight:
    """Weigh the eps error by sigmoid(bias - log_snr) (arXiv:2303.00848).

    The weight of the x_0 error is SNR times as much: that of `soft_min_snr(e^bias)`.
    VDM++ and SiD2 integrate it over the log-SNR: draw times with `uniform_log_snr`, or
    use `per_log_snr(sigmoid(bias))` with uniform times.

    Args:
      bias: the log-SNR above which the weight falls.

    >>> from genlib import noise, prediction
    >>> sigmoid(0.0)(noise.Cosine(), prediction.EPS, jnp.float32(0.5)).round(4).item()
    0.5
    """
    return on_x0(lambda log_snr: jnp.exp(bias) * jax.nn.sigmoid(log_snr - bias))


def p2(gamma: Scalar = 1.0, k: Scalar = 1.0) -> Weight:
    """Weigh the eps error by (k + SNR)^-gamma (P2, arXiv:2204.00227).

    Args:
      gamma: how much the steps that only clean up are held back; 0 is `snr`.
      k: bounds the weight where there is only noise.

    >>> from genlib import noise, prediction
    >>> round(p2()(noise.Cosine(), prediction.EPS, jnp.float32(0.5)).item(), 4)
    0.5
    """

    def weight(log_snr: Array) -> Array:
        log_k = jnp.log(jnp.asarray(k, log_snr.dtype))
        return jnp.exp(log_snr - gamma * jnp.logaddexp(log_snr, log_k))

    return on_x0(weight)


def sigma_sqrt(path: Path, kind: Prediction, t: ArrayLike) -> Array:
    """Weigh the velocity error on `Rectified` by sigma^-2 (arXiv:2403.03206, SD3).

    There the velocity errs by 1 / sigma times as much as x_0, so the weight of the x_0
    error is sigma^-4. On any other path sigma stands for sigma / (alpha + sigma): the
    x_0 error of one noise level has one weight.

    >>> from genlib import noise, prediction
    >>> path, t = noise.Rectified(), jnp.float32(0.5)
    >>> round(sigma_sqrt(path, prediction.VELOCITY, t).item(), 4)
    4.0
    """
    return _on_straight_velocity(lambda sigma: sigma**-2)(path, kind, t)


def cosmap(path: Path, kind: Prediction, t: ArrayLike) -> Array:
    """Weigh the velocity error on `Rectified` by 2 / (pi (1 - 2 sigma + 2 sigma^2)).

    It is the density of times that gives `Rectified` the log-SNR of `Cosine` under
    uniform times (arXiv:2403.03206, SD3). There the velocity errs by 1 / sigma times as
    much as x_0; on any other path sigma stands for sigma / (alpha + sigma), so that the
    x_0 error of one noise level has one weight.

    >>> from genlib import noise, prediction
    >>> path, t = noise.Rectified(), jnp.float32(0.5)
    >>> round(cosmap(path, prediction.VELOCITY, t).item(), 4)
    1.2732
    """
    weight = lambda sigma: 2.0 / (math.pi * (1.0 - 2.0 * sigma + 2.0 * sigma**2))
    return _on_straight_velocity(weight)(path, kind, t)


def _on_straight_velocity(weight: Callable[[Array], Array]) -> Weight:
    """Make a loss weight from a weight of the velocity error on `Rectified`."""

    def on_x0_error(log_snr: Array) -> Array:
        sigma = jax.nn.sigmoid(-0.5 * log_snr)
        return weight(sigma) / jnp.square(sigma)

    return on_x0(on_x0_error)


def likelihood(path: Path, kind: Prediction, t: ArrayLike) -> Array:
    """Weigh the score error by g(t)^2, the eps error by -d log_snr / dt.

    With uniform times the loss is twice the diffusion loss of the variational bound, up
    to a constant factor (arXiv:2101.09258; arXiv:2107.00630): it trains for likelihood.
    g is the diffusion coefficient of `noise.drift_diffusion`.

    >>> from genlib import noise, prediction
    >>> path, t = noise.VPLinear(), jnp.float32(0.5)
    >>> round(likelihood(path, prediction.SCORE, t).item(), 3)  # beta(t)
    10.05
    """
    return per_log_snr(snr)(path, kind, t)
