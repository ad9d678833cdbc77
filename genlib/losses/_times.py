"""Distributions of training times, counted from 0 at the data to 1 at the noise end."""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from genlib.noise import Path, Rectified
from genlib.types import Array, Key, Scalar, compute_dtype, concrete


class TimeSampler(Protocol):
    """Draws training times: `(key, path, n, dtype) -> [n]`."""

    def __call__(
        self, key: Key, path: Path, n: int, dtype: Any = jnp.float32, /
    ) -> Array: ...


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
    return across(path, _unit_interval(key, (n,), dtype))


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
    return across(path, (bins + _unit_interval(key_offset, (n,), dtype)) / n)


def low_discrepancy(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
    """Draw n equally spaced times with one random offset, in random order.

    Each time alone is uniform (arXiv:2107.00630, app. I.1). `stratified` has less
    variance still for smooth losses; here the distances are equal.

    Args:
      key: typed PRNG key.
      path: the forward process.
      n: how many.
      dtype: of the data; times are at least float32.

    Returns:
      Times [n] in (t_min, t_max], one in each n-th of it.

    >>> from genlib import noise
    >>> t = low_discrepancy(jax.random.key(0), noise.Cosine(), 4)
    >>> (jnp.diff(jnp.sort(t)) * 4).round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    key_offset, key_order = jax.random.split(key)
    bins = jax.random.permutation(key_order, n)
    return across(path, (bins + _unit_interval(key_offset, (), dtype)) / n)


def logit_normal(
    mean: Scalar = 0.0, std: Scalar = 1.0, *, draw: TimeSampler = uniform
) -> TimeSampler:
    """Draw the logit of the time from a normal (arXiv:2403.03206, sec. 3.1).

    Args:
      mean: mean of ln(t / (1 - t)); above 0 favours noise.
      std: its standard deviation.
      draw: how the uniform numbers underneath are drawn: `uniform`, `stratified` or
        `low_discrepancy`.

    Returns:
      A time sampler for any path.

    >>> from genlib import noise
    >>> t = logit_normal()(jax.random.key(0), noise.Rectified(), 1000)
    >>> round(jnp.median(t).item(), 1)
    0.5
    """

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        z = ndtri(open_interval(unit_draws(draw, key, n, dtype)))
        return across(path, jax.nn.sigmoid(mean + std * z))

    return sample


def mode(scale: Scalar = 1.29, *, draw: TimeSampler = uniform) -> TimeSampler:
    """Draw times whose density has its mode in the middle (arXiv:2403.03206, SD3).

    t = 1 - u - scale (cos^2(pi u / 2) - 1 + u) of a uniform u.

    Args:
      scale: above 0 favours the middle, below 0 the ends; in [-1, 2 / (pi - 2)].
      draw: how u is drawn, see `logit_normal`.

    Returns:
      A time sampler for any path.

    Raises:
      ValueError: if `scale` is concretely outside its range.

    >>> from genlib import noise
    >>> quarter = lambda key, path, n, dtype: jnp.full(n, 0.25)
    >>> t = mode(draw=quarter)(jax.random.key(0), noise.Rectified(), 1)
    >>> round(t.item(), 4)
    0.3836
    """

    value = concrete(scale)
    if value is not None and not -1 <= value <= 2 / (math.pi - 2):
        raise ValueError(f"scale must be within [-1, 2 / (pi - 2)]; it is {scale}")

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        # The paper's map of 1 - u, so that times grow with u and t = 0 is left out.
        u = unit_draws(draw, key, n, dtype)
        bend = jnp.square(jnp.sin(0.5 * math.pi * u)) - u
        return across(path, jnp.clip(u - scale * bend, 0.0, 1.0))  # rounding

    return sample


def beta(a: Scalar, b: Scalar) -> TimeSampler:
    """Draw times from a beta distribution, with density t^(a - 1) (1 - t)^(b - 1).

    (a, b) = (1, 1) is uniform, a > b favours noise, and a = b < 1 favours both ends.

    Args:
      a: positive.
      b: positive.

    Returns:
      A time sampler for any path.

    Raises:
      ValueError: if `a` or `b` is concretely not positive.

    >>> from genlib import noise
    >>> t = beta(3.0, 1.0)(jax.random.key(0), noise.Rectified(), 1000)
    >>> round(t.mean().item(), 2)
    0.75
    """

    for name, value in (("a", concrete(a)), ("b", concrete(b))):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive; it is {value}")

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        return across(path, jax.random.beta(key, a, b, (n,), compute_dtype(dtype)))

    return sample


def across(path: Path, u: Array) -> Array:
    """Return the times at fractions u of a path."""
    return path.t_min + u * (path.t_max - path.t_min)


def unit_draws(draw: TimeSampler, key: Key, n: int, dtype: Any) -> Array:
    """Return n numbers in (0, 1] as a time sampler draws them on a path of length 1."""
    return draw(key, Rectified(), n, compute_dtype(dtype))


def open_interval(u: Array) -> Array:
    """Keep numbers off 0 and 1, where quantiles are infinite.

    u rounds to 1 once in 2^24 draws.
    """
    limits = jnp.finfo(u.dtype)
    return jnp.clip(u, limits.tiny, 1 - limits.epsneg)


def _unit_interval(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform draws in (0, 1]: never exactly the data end."""
    return 1 - jax.random.uniform(key, shape, compute_dtype(dtype))
