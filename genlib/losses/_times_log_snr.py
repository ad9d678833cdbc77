"""Distributions of training times that are given as distributions of the log-SNR.

Each is truncated to the noise levels that the path has.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.nn import sigmoid
from jax.scipy.special import logit, ndtr, ndtri

from genlib.losses._times import TimeSampler, open_interval, uniform, unit_draws
from genlib.noise import Path
from genlib.types import Array, Key, Scalar, compute_dtype, concrete


def log_normal_sigma(
    mean: Scalar = -1.2, std: Scalar = 1.2, *, draw: TimeSampler = uniform
) -> TimeSampler:
    """Draw ln(sigma / alpha) from a normal (arXiv:2206.00364, Table 1).

    The normal is truncated to the noise levels that the path has.

    Args:
      mean: mean of ln(sigma / alpha).
      std: its standard deviation.
      draw: how the uniform numbers underneath are drawn: `uniform`, `stratified` or
        `low_discrepancy`.

    Returns:
      A time sampler for any path.

    >>> import jax
    >>> from genlib import noise
    >>> t = log_normal_sigma()(jax.random.key(0), noise.EDM(), 1000)
    >>> round(jnp.log(t).mean().item(), 1)
    -1.2
    """
    return _log_sigma(ndtr, ndtri, mean, std, draw)


def log_logistic_sigma(
    mean: Scalar = 0.0, scale: Scalar = 1.0, *, draw: TimeSampler = uniform
) -> TimeSampler:
    """Draw ln(sigma / alpha) from a logistic distribution, as k-diffusion does.

    P(sigma / alpha < s) = 1 / (1 + exp((mean - ln s) / scale)): more of the largest and
    the smallest noise levels than a normal has. It is truncated to those of the path.

    Args:
      mean: mean of ln(sigma / alpha).
      scale: its standard deviation is pi / sqrt(3) times as large.
      draw: how the uniform numbers underneath are drawn, see `log_normal_sigma`.

    Returns:
      A time sampler for any path.

    >>> import jax
    >>> from genlib import losses, noise
    >>> times = log_logistic_sigma(-0.7, draw=losses.stratified)
    >>> t = times(jax.random.key(0), noise.EDM(), 1000)
    >>> round(jnp.median(jnp.log(t)).item(), 1)
    -0.7
    """
    return _log_sigma(sigmoid, logit, mean, scale, draw)


def uniform_log_snr(
    low: Scalar = -10.0, high: Scalar = 10.0, *, draw: TimeSampler = uniform
) -> TimeSampler:
    """Draw the log-SNR uniformly, as far as the path has it.

    Args:
      low: smallest log-SNR in nats.
      high: largest log-SNR.
      draw: how the uniform numbers underneath are drawn, see `log_normal_sigma`.

    Returns:
      A time sampler for any path.

    Raises:
      ValueError: unless `low` < `high`, where both are concrete.

    >>> import jax
    >>> from genlib import noise
    >>> path = noise.Cosine()
    >>> t = uniform_log_snr(-2.0, 4.0)(jax.random.key(0), path, 1000)
    >>> noise.log_snr(path, t).mean().round().item()
    1.0
    """
    check_range(low, high)

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        u = unit_draws(draw, key, n, dtype)
        bottom, top = jnp.clip(log_snr_range(path, u.dtype), low, high)
        return time_within(path, top + u * (bottom - top))

    return sample


def uniform_on(other: Path, *, draw: TimeSampler = uniform) -> TimeSampler:
    """Draw times that are uniform on another path, at the same log-SNR.

    On `noise.EDM`, `uniform_on(noise.Cosine())` is uniform in arctan(sigma): the noise
    levels of v-diffusion (arXiv:2202.00512). Levels that only the other path has are
    left out.

    Args:
      other: the path on which the times are uniform.
      draw: how they are drawn there, see `log_normal_sigma`.

    Returns:
      A time sampler for any path.

    >>> import jax
    >>> from genlib import losses, noise
    >>> times = uniform_on(noise.Cosine(), draw=losses.stratified)
    >>> t = times(jax.random.key(0), noise.EDM(), 1000)
    >>> round(jnp.median(t).item(), 1)
    1.0
    """

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        u = unit_draws(draw, key, n, dtype)
        last, first = other.time_at(log_snr_range(path, u.dtype))
        first = jnp.clip(first, other.t_min, other.t_max)
        last = jnp.clip(last, other.t_min, other.t_max)
        return time_within(path, other.log_snr(first + u * (last - first)))

    return sample


def log_snr_range(path: Path, dtype: Any) -> Array:
    """Return [2], the log-SNR of the noise end and of the data end."""
    ends = [jnp.asarray(end, dtype) for end in (path.t_max, path.t_min)]
    return path.log_snr(jnp.stack(ends))


def time_within(path: Path, log_snr: Array) -> Array:
    """Return the times of log-SNRs that the path has, but for rounding at the ends."""
    return jnp.clip(path.time_at(log_snr), path.t_min, path.t_max)


def check_range(low: Scalar, high: Scalar) -> None:
    """Raise a ValueError unless low < high, where both are concrete."""
    ends = concrete(low), concrete(high)
    if ends[0] is not None and ends[1] is not None and not ends[0] < ends[1]:
        raise ValueError(
            f"low must be less than high; low is {ends[0]} and high is {ends[1]}"
        )


def _log_sigma(
    distribution: Callable[[Array], Array],
    quantile: Callable[[Array], Array],
    mean: Scalar,
    scale: Scalar,
    draw: TimeSampler,
) -> TimeSampler:
    """Draw (ln(sigma / alpha) - mean) / scale from a distribution on the whole line."""

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        u = unit_draws(draw, key, n, dtype)
        high, low = distribution(
            (-0.5 * log_snr_range(path, compute_dtype(dtype)) - mean) / scale
        )
        z = quantile(open_interval(low + (high - low) * u))
        return time_within(path, -2.0 * (mean + scale * z))

    return sample
