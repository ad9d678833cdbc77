"""Increasing functions of one variable that are small networks."""

import jax
import jax.numpy as jnp
import numpy as np

from genlib.flows._root import increasing_root
from genlib.flows._spline import soft_limit
from genlib.flows._univariate import Univariate, affine
from genlib.types import Array

# y is at most exp(2) / sigmoid(-5), about 1100, times as steep as x, and as flat.
_MAX_LOG_SLOPE = 2.0
_MAX_OFFSET = 5.0


def sigmoidal(hidden: int = 8) -> Univariate:
    """Send x through a layer of sigmoids (neural autoregressive flow).

        y = logit(sum_j w_j sigmoid(a_j x + b_j)),  sum_j w_j = 1   (arXiv:1804.00779).

    Far out y is a line, and everything is computed in log space from the side of x, so
    that both directions are finite and the tails invertible at any x. So that float32
    can invert the middle too, log a_j is bounded by 2 and b_j by 5, softly: dy/dx is
    between 1/1100 and 1100.

    Only equal units are the identity, and conditioners that start at zero would keep
    them equal for ever. So each learns at its own speed: its raw slope and offset are
    multiplied by a constant, from 8 for the first unit to 1/8 for the last.

    The inverse is iterative, but elementwise and parallel: 32 evaluations of f and its
    derivative in float32, 61 in float64, see `increasing_root`.

    Args:
      hidden: units H, at least 2.

    Returns:
      A `Univariate` of size 3 H: raw weights, slopes, offsets.

    Raises:
      ValueError: if there are fewer.

    >>> network = sigmoidal(4)
    >>> raw = jnp.linspace(-1.0, 1.0, 12)
    >>> y, log_det = network.forward(raw, jnp.float32(0.5))
    >>> round(network.inverse(raw, y)[0].item(), 5)
    0.5
    """
    if hidden < 2:
        raise ValueError(f"hidden must be at least 2; it is {hidden}")

    def inverse(raw: Array, y: Array) -> tuple[Array, Array]:
        _, log_slope, offset = _units(raw, hidden)
        # The logit of an average of sigmoids is between the least and the greatest.
        ends = (y[..., None] - offset) * jnp.exp(-log_slope)
        x = increasing_root(
            lambda x: _sigmoids(raw, x, hidden)[0], y, ends.min(-1), ends.max(-1)
        )
        return x, -_sigmoids(raw, x, hidden)[1]

    return Univariate(3 * hidden, lambda raw, x: _sigmoids(raw, x, hidden), inverse)


def logistic_mixture(components: int = 8) -> Univariate:
    """Send x through the distribution function of a mixture of logistics (Flow++).

        y = exp(s) logit(sum_j w_j sigmoid((x - mu_j) / s_j)) + t   (arXiv:1902.00275).

    This is `affine()` after `sigmoidal`, whose bounds, learning speeds and cost of the
    iterative inverse it shares: the scales are s_j = 1 / a_j, the means -b_j / a_j.

    Args:
      components: of the mixture, K, at least 2.

    Returns:
      A `Univariate` of size 3 K + 2: the numbers of `sigmoidal`, then of `affine`.

    Raises:
      ValueError: if there are fewer.

    >>> mixture = logistic_mixture(4)
    >>> y, log_det = mixture.forward(jnp.zeros((1, 14)), jnp.array([-3.0]))
    >>> round(y.item(), 5), round(log_det.item(), 5)
    (-3.0, 0.0)
    """
    if components < 2:
        raise ValueError(f"components must be at least 2; it is {components}")
    first, second = sigmoidal(components), affine()

    def forward(raw: Array, x: Array) -> tuple[Array, Array]:
        y, log_det = first.forward(raw[..., : first.size], x)
        y, more = second.forward(raw[..., first.size :], y)
        return y, log_det + more

    def inverse(raw: Array, y: Array) -> tuple[Array, Array]:
        x, log_det = second.inverse(raw[..., first.size :], y)
        x, more = first.inverse(raw[..., : first.size], x)
        return x, log_det + more

    return Univariate(first.size + second.size, forward, inverse)


def _units(raw: Array, hidden: int) -> tuple[Array, Array, Array]:
    """Return log w, log a and b of the units, [..., H] each."""
    speed = 8.0 ** np.linspace(1, -1, hidden)
    speed = jnp.broadcast_to(speed.astype(raw.dtype), (*raw.shape[:-1], hidden))
    weight, slope, offset = jnp.split(raw, 3, -1)
    return (
        jax.nn.log_softmax(weight),
        soft_limit(speed * slope, _MAX_LOG_SLOPE),
        soft_limit(speed * offset, _MAX_OFFSET),
    )


def _sigmoids(raw: Array, x: Array, hidden: int) -> tuple[Array, Array]:
    """Return y and log dy/dx of the layer of sigmoids."""
    log_weight, log_slope, offset = _units(raw, hidden)
    # f(x) = -g(-x), where g has the offsets -b: on the side of positive x the sum of
    # sigmoids F is far from 0, and only 1 - F is small and needs its logarithm.
    sign = jnp.where(x < 0, -jnp.ones_like(x), jnp.ones_like(x))
    z = jnp.exp(log_slope) * (sign * x)[..., None] + sign[..., None] * offset
    log_rest = log_weight + jax.nn.log_sigmoid(-z)
    log_one_minus = jax.nn.logsumexp(log_rest, -1)
    sigmoid = jax.nn.sigmoid(z)
    log_f = jnp.log((jnp.exp(log_weight) * sigmoid).sum(-1))
    slope = (jax.nn.softmax(log_rest) * sigmoid * jnp.exp(log_slope)).sum(-1)
    return sign * (log_f - log_one_minus), jnp.log(slope) - log_f
