"""Distributions of training times."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from genlib.noise import Path
from genlib.types import Array, Key, Scalar, compute_dtype


class TimeSampler(Protocol):
    """Draws training times: `(key, path, n, dtype) -> [n]`."""

    def __call__(
        self, key: Key, path: Path, n: int, dtype: Any = jnp.float32, /
    ) -> Array: ...


def _unit_interval(key: Key, n: int, dtype: Any) -> Array:
    """Uniform draws in (0, 1]: never exactly the data end."""
    return 1 - jax.random.uniform(key, (n,), compute_dtype(dtype))


def _across(path: Path, u: Array) -> Array:
    return path.t_min + u * (path.t_max - path.t_min)


def uniform(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
    """Draw times uniformly over the path, the data end excluded.

    Args:
      key: typed PRNG key.
      path: the forward process.
      n: how many.
      dtype: of the data; times are at least float32.

    Returns:
      Times [n] in (t_min, t_max].

    >>> from genlib import noise
    >>> uniform(jax.random.key(0), noise.Cosine(), 4).shape
    (4,)
    """
    return _across(path, _unit_interval(key, n, dtype))


def stratified(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
    """Draw one time in each of n equal bins, in random order.

    Each time alone is uniform; the batch mean of a loss has far less variance
    (arXiv:2107.00630, app. I.1, with an offset of its own for each bin).

    Args:
      key: typed PRNG key.
      path: the forward process.
      n: how many.
      dtype: of the data; times are at least float32.

    Returns:
      Times [n] in (t_min, t_max], one in each n-th of it.

    >>> from genlib import noise
    >>> t = stratified(jax.random.key(0), noise.Cosine(), 4)
    >>> sorted(jnp.ceil(t * 4).tolist())
    [1.0, 2.0, 3.0, 4.0]
    """
    key_offset, key_order = jax.random.split(key)
    bins = jax.random.permutation(key_order, n)
    return _across(path, (bins + _unit_interval(key_offset, n, dtype)) / n)


def log_normal_sigma(mean: Scalar = -1.2, std: Scalar = 1.2) -> TimeSampler:
    """Draw ln(sigma / alpha) from a normal (arXiv:2206.00364, Table 1).

    The normal is truncated to the noise levels that the path has.

    Args:
      mean: mean of ln(sigma / alpha).
      std: its standard deviation.

    Returns:
      A time sampler for any path.

    >>> from genlib import noise
    >>> t = log_normal_sigma()(jax.random.key(0), noise.EDM(), 1000)
    >>> round(jnp.log(t).mean().item(), 1)
    -1.2
    """

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        dtype = compute_dtype(dtype)
        ends = jnp.stack([jnp.asarray(e, dtype) for e in (path.t_min, path.t_max)])
        low, high = ndtr((-0.5 * path.log_snr(ends) - mean) / std)
        u = low + (high - low) * _unit_interval(key, n, dtype)
        # u rounds to 1 once in 2^24 draws, whose quantile would be infinite.
        z = ndtri(jnp.clip(u, jnp.finfo(dtype).tiny, 1 - jnp.finfo(dtype).epsneg))
        t = path.time_at(-2.0 * (mean + std * z))
        return jnp.clip(t, path.t_min, path.t_max)  # rounding at the ends

    return sample


def logit_normal(mean: Scalar = 0.0, std: Scalar = 1.0) -> TimeSampler:
    """Draw the logit of the time from a normal (arXiv:2403.03206, sec. 3.1).

    The time is counted from 0 at the data to 1 at the noise end of the path.

    Args:
      mean: mean of ln(t / (1 - t)); above 0 favours noise.
      std: its standard deviation.

    Returns:
      A time sampler for any path.

    >>> from genlib import noise
    >>> t = logit_normal()(jax.random.key(0), noise.Rectified(), 1000)
    >>> round(jnp.median(t).item(), 1)
    0.5
    """

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        z = jax.random.normal(key, (n,), compute_dtype(dtype))
        return _across(path, jax.nn.sigmoid(mean + std * z))

    return sample
