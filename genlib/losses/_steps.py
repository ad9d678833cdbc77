"""Distributions of pairs of training times s <= t, between which a loss steps."""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from genlib.losses._times import TimeSampler, uniform
from genlib.noise import Path
from genlib.types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    compute_dtype,
    concrete,
    float_array,
    is_concrete,
)


class StepSampler(Protocol):
    """Draws steps between two times, s <= t: `(key, path, n, dtype) -> (s, t)`."""

    def __call__(
        self, key: Key, path: Path, n: int, dtype: Any = jnp.float32, /
    ) -> tuple[Array, Array]: ...


def uniform_steps(steps: ArrayLike) -> StepSampler:
    """Draw one of equal steps in the path's own time, each as often.

    Args:
      steps: how many steps the path is cut into; may be traced, so that a curriculum
        compiles once.

    Returns:
      A step sampler for any path.

    Raises:
      ValueError: if `steps` is concretely less than 1.

    >>> from genlib import noise
    >>> s, t = uniform_steps(4)(jax.random.key(0), noise.Cosine(), 3)
    >>> (t - s).tolist()
    [0.25, 0.25, 0.25]
    """
    _check_steps(steps)

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32):
        low, dtype = jax.random.randint(key, (n,), 0, steps), compute_dtype(dtype)
        width = path.t_max - path.t_min
        at = lambda i: path.t_min + i.astype(dtype) / steps * width
        return at(low), at(low + 1)

    return sample


def karras_steps(
    steps: ArrayLike,
    *,
    rho: Scalar = 7.0,
    sigma_min: Scalar = 0.002,
    sigma_max: Scalar = 80.0,
) -> StepSampler:
    """Draw one of the steps of a Karras grid, each as often (arXiv:2303.01469).

    (sigma / alpha)_i = (a + i / steps (b - a))^rho, where a and b are the rho-th roots
    of sigma_min and sigma_max.

    Args:
      steps: how many steps the grid has, N - 1 in the paper; may be traced.
      rho: 7 makes the steps short near the data.
      sigma_min: sigma / alpha at the data end of the grid.
      sigma_max: sigma / alpha at its noise end.

    Returns:
      A step sampler for paths that have these noise levels.

    Raises:
      ValueError: if `steps` is concretely less than 1; when called, if the grid
        concretely leaves the path.

    >>> from genlib import noise
    >>> s, t = karras_steps(1)(jax.random.key(0), noise.EDM(), 1)
    >>> round(s.item(), 6), round(t.item(), 4)
    (0.002, 80.0)
    """
    _check_steps(steps)

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32):
        low = jax.random.randint(key, (n,), 0, steps).astype(compute_dtype(dtype))
        return _karras(path, low, steps, rho, sigma_min, sigma_max)

    return sample


def log_normal_steps(
    steps: ArrayLike,
    mean: Scalar = -1.1,
    std: Scalar = 2.0,
    *,
    rho: Scalar = 7.0,
    sigma_min: Scalar = 0.002,
    sigma_max: Scalar = 80.0,
) -> StepSampler:
    """Draw a step of a Karras grid as often as a log-normal sigma falls in it.

    p(s, t) ~ Phi((ln sigma_t - mean) / std) - Phi((ln sigma_s - mean) / std), where
    sigma stands for sigma / alpha (improved consistency training, arXiv:2310.14189).

    Args:
      steps: how many steps the grid has; may be traced, see `step_curriculum`.
      mean: mean of ln(sigma / alpha).
      std: its standard deviation.
      rho: see `karras_steps`.
      sigma_min: sigma / alpha at the data end of the grid.
      sigma_max: sigma / alpha at its noise end.

    Returns:
      A step sampler for paths that have these noise levels.

    Raises:
      ValueError: if `steps` is concretely less than 1; when called, if the grid
        concretely leaves the path.

    >>> from genlib import noise
    >>> s, t = log_normal_steps(18)(jax.random.key(0), noise.EDM(), 1000)
    >>> bool((s < t).all()), 0.1 < jnp.median(t).item() < 1
    (True, True)
    """
    _check_steps(steps)

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32):
        # Whatever sigma falls in a step draws it: no table of the steps is needed.
        u = jax.random.uniform(key, (n,), compute_dtype(dtype))
        ends = jnp.log(jnp.stack([float_array(s) for s in (sigma_min, sigma_max)]))
        first, last = ndtr(((ends - mean) / std).astype(u.dtype))
        sigma = jnp.exp(mean + std * ndtri(first + (last - first) * u))
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        place = (sigma ** (1 / rho) - low) / (high - low) * steps
        place = jnp.clip(jnp.floor(place), 0, steps - 1)  # rounding at the ends
        return _karras(path, place, steps, rho, sigma_min, sigma_max)

    return sample


def random_steps(times: TimeSampler = uniform, share: Scalar = 0.25) -> StepSampler:
    """Draw two times and step between them, or with s = t, as MeanFlow does.

    t is the later of two draws, and s the earlier for a share of the examples, else t
    (arXiv:2505.13447).

    Args:
      times: draws both times; the paper's choice for images is
        `logit_normal(-0.4, 1.0)`.
      share: probability of s < t.

    Returns:
      A step sampler for any path.

    Raises:
      ValueError: if `share` is concretely outside [0, 1].

    >>> from genlib import noise
    >>> s, t = random_steps(share=0.5)(jax.random.key(0), noise.Rectified(), 8)
    >>> bool((s <= t).all()), bool((s == t).any())
    (True, True)
    """
    _check_share(share)

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32):
        key_one, key_two, key_share = jax.random.split(key, 3)
        one, two = times(key_one, path, n, dtype), times(key_two, path, n, dtype)
        t = jnp.maximum(one, two)
        apart = jax.random.bernoulli(key_share, share, (n,))
        return jnp.where(apart, jnp.minimum(one, two), t), t

    return sample


def dyadic_steps(
    levels: int = 7, share: Scalar = 0.25, times: TimeSampler = uniform
) -> StepSampler:
    """Draw a step of length 2^-k on its own grid, or s = t, as shortcut models do.

    k is uniform over 0 .. levels - 1 and s a multiple of 2^-k, for a share of the
    examples; the others have s = t (arXiv:2410.12557). Lengths count the whole path
    as 1.

    Args:
      levels: the shortest half of a step is 2^-levels.
      share: probability of s < t.
      times: draws t where s = t.

    Returns:
      A step sampler for any path.

    Raises:
      ValueError: if `levels` is not 1 to 23 or `share` concretely outside [0, 1].

    >>> from genlib import noise
    >>> s, t = dyadic_steps(1, share=1.0)(jax.random.key(0), noise.Rectified(), 2)
    >>> s.tolist(), t.tolist()
    ([0.0, 0.0], [1.0, 1.0])
    """
    if not 1 <= levels <= 23:  # what float32 resolves
        raise ValueError(f"levels must be 1 to 23; it is {levels}")
    _check_share(share)

    def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32):
        key_level, key_place, key_share, key_time = jax.random.split(key, 4)
        same = times(key_time, path, n, dtype)
        count = 2 ** jax.random.randint(key_level, (n,), 0, levels)
        place = jax.random.randint(key_place, (n,), 0, count).astype(same.dtype)
        width = path.t_max - path.t_min
        s, t = (path.t_min + (place + i) / count * width for i in (0, 1))
        apart = jax.random.bernoulli(key_share, share, (n,))
        return jnp.where(apart, s, same), jnp.where(apart, t, same)

    return sample


def step_curriculum(
    step: ArrayLike, total: int, *, start: int = 10, end: int = 1280
) -> Array:
    """Return how many steps the grid of consistency training has at a training step.

    N(k) = min(start 2^floor(k / K'), end), K' = floor(K / (log2 floor(end / start) +
    1)): the number doubles at equal distances (arXiv:2310.14189, whose N counts the
    ends of the steps and is larger by 1).

    Args:
      step: training step k, an integer; may be traced.
      total: training steps K.
      start: steps of the grid at first.
      end: steps of the grid at last.

    Returns:
      An int32 scalar.

    Raises:
      ValueError: unless 1 <= start <= end and `total` allows for all doublings.

    >>> [int(step_curriculum(k, 800)) for k in (0, 99, 100, 799, 10_000)]
    [10, 10, 20, 1280, 1280]
    """
    if not 1 <= start <= end:
        raise ValueError(
            f"start and end must be 1 <= start <= end; they are {start} and {end}"
        )
    doublings = math.log2(end // start)
    length = int(total // (doublings + 1))
    if length < 1:
        raise ValueError(
            f"total must be at least {math.ceil(doublings) + 1}, a step for each "
            f"number of steps; it is {total}"
        )
    most = math.ceil(math.log2(end / start))  # more would overflow
    doubled = jnp.left_shift(start, jnp.minimum(jnp.asarray(step) // length, most))
    return jnp.minimum(doubled, end).astype(jnp.int32)


def _karras(
    path: Path, place: Array, steps: Any, rho: Any, sigma_min: Any, sigma_max: Any
) -> tuple[Array, Array]:
    """Return the times of places and of the places after them on a Karras grid."""
    if is_concrete(path, rho, sigma_min, sigma_max):
        _check_levels(path, sigma_min, sigma_max)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def at(place: Array) -> Array:
        root = low + place / steps * (high - low)
        t = path.time_at(-2.0 * rho * jnp.log(root))
        return jnp.clip(t, path.t_min, path.t_max)  # rounding at the ends

    return at(place), at(place + 1)


def _check_levels(path: Path, sigma_min: Any, sigma_max: Any) -> None:
    with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
        ends = jnp.stack([float_array(t) for t in (path.t_min, path.t_max)])
        low, high = (float(s) for s in jnp.exp(-0.5 * path.log_snr(ends)))
    slack = 1e-4  # of rounding at the ends
    if not (low * (1 - slack) <= sigma_min < sigma_max <= high * (1 + slack)):
        raise ValueError(
            "sigma_min < sigma_max must be noise levels sigma / alpha of the path, "
            f"within [{low:.6g}, {high:.6g}]; they are {sigma_min} and {sigma_max}"
        )


def _check_steps(steps: ArrayLike) -> None:
    value = concrete(steps)
    if value is not None and (value.dtype.kind not in "iu" or value < 1):
        raise ValueError(f"steps must be an integer of at least 1; it is {steps}")


def _check_share(share: Scalar) -> None:
    value = concrete(share)
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"share must be within [0, 1]; it is {share}")
