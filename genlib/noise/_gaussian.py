"""What one does with a path: perturb, step forward, step back, start."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.noise._path import (
    Marginal,
    Path,
    check_time,
    inside,
    marginal_and_rate,
)
from genlib.types import (
    Array,
    ArrayLike,
    Key,
    compute_dtype,
    concrete,
    expand_like,
    float_array,
)


class Normal(NamedTuple):
    """A normal distribution with independent components, N(mean, std^2 I)."""

    mean: Array
    std: Array


def perturb(path: Path, x_0: Array, eps: Array, t: ArrayLike) -> Array:
    """Return x_t = alpha_t x_0 + sigma_t eps.

    Args:
      path: the forward process.
      x_0: data [B, ...].
      eps: standard normal noise with the shape of `x_0`.
      t: time, a scalar or [B].

    Returns:
      x_t with the shape and dtype of `x_0`.

    Raises:
      ValueError: if shapes disagree or a concrete `t` is outside the path.

    >>> from genlib import noise
    >>> noise.perturb(noise.Rectified(), jnp.ones((1, 2)), jnp.zeros((1, 2)), 0.25)
    Array([[0.75, 0.75]], dtype=float32)
    """
    if eps.shape != x_0.shape:
        raise ValueError(
            f"eps must have the shape {x_0.shape} of x_0; it is {eps.shape}"
        )
    check_time(path, t)
    alpha, sigma = (expand_like(c, x_0) for c in path(t))
    return (alpha * x_0 + sigma * eps).astype(x_0.dtype)


def transition(path: Path, s: ArrayLike, t: ArrayLike) -> Marginal:
    """Return (alpha_ts, sigma_ts) of q(x_t | x_s) = N(alpha_ts x_s, sigma_ts^2 I).

    alpha_ts = alpha_t / alpha_s and sigma_ts^2 = sigma_t^2 (1 - SNR_t / SNR_s)
    (arXiv:2107.00630, app. A.1).

    Args:
      path: the forward process.
      s: earlier time, any shape, alpha_s > 0.
      t: later time, s <= t.

    Returns:
      A `Marginal` with the broadcast shape of `s` and `t`.

    Raises:
      ValueError: if a concrete time is outside the path, or s > t.

    >>> from genlib import noise
    >>> noise.transition(noise.EDM(), 3.0, 5.0).sigma.item()
    4.0
    """
    early, late, ratio = _pair(path, s, t)
    return Marginal(late.alpha / early.alpha, late.sigma * jnp.sqrt(-jnp.expm1(ratio)))


def posterior(path: Path, x_0: Array, x_t: Array, s: ArrayLike, t: ArrayLike) -> Normal:
    """Return q(x_s | x_t, x_0) for s <= t.

    With r = SNR_t / SNR_s: mean = (sigma_s / sigma_t) sqrt(r) x_t + alpha_s (1 - r) x_0
    and variance sigma_s^2 (1 - r) (arXiv:2006.11239, eq. 6-7, for any path).

    Args:
      path: the forward process.
      x_0: data [B, ...], or an estimate of it.
      x_t: noisy data [B, ...].
      s: earlier time, a scalar or [B].
      t: later time, a scalar or [B].

    Returns:
      Mean [B, ...] with the dtype of `x_t`, and standard deviation that broadcasts
      against it.

    Raises:
      ValueError: if a concrete time is outside the path, or s > t.

    >>> from genlib import noise
    >>> x = jnp.ones((1, 2))
    >>> mean, std = noise.posterior(noise.EDM(), 0 * x, x, 3.0, 5.0)
    >>> mean.shape, round(mean[0, 0].item(), 3), round(std.item(), 3)
    ((1, 2), 0.36, 2.4)
    """
    early, late, ratio = _pair(path, s, t)
    shrink = jnp.where(ratio == 0, 1.0, early.sigma / late.sigma) * jnp.exp(0.5 * ratio)
    pull = -early.alpha * jnp.expm1(ratio)
    mean = expand_like(shrink, x_t) * x_t + expand_like(pull, x_t) * x_0
    std = early.sigma * jnp.sqrt(-jnp.expm1(ratio))
    return Normal(mean.astype(x_t.dtype), expand_like(std, x_t))


def _pair(path: Path, s: ArrayLike, t: ArrayLike) -> tuple[Marginal, Marginal, Array]:
    """Return both marginals and log(SNR_t / SNR_s), which is 0 where s = t."""
    check_time(path, s, "s")
    check_time(path, t)
    s, t = float_array(s), float_array(t)
    ordered = concrete(jnp.all(s <= t))
    if ordered is not None and not ordered:
        raise ValueError(f"s must not be later than t; s is {s} and t is {t}")
    same = s == t
    # Infinite at the ends, where inf - inf must read as "no time has passed".
    log_ratio = jnp.where(same, 0.0, path.log_snr(t) - path.log_snr(s))
    return path(s), path(t), log_ratio


def drift_diffusion(path: Path, t: ArrayLike) -> tuple[Array, Array]:
    """Return f and g of the forward equation dx = f(t) x dt + g(t) dw.

    f = alpha' / alpha and g^2 = (sigma^2)' - 2 f sigma^2 (arXiv:2107.00630, app. A).
    At the ends both are one-sided limits; where alpha goes to 0 they are huge.

    Args:
      path: the forward process.
      t: times of any shape.

    Returns:
      f and g with the shape of `t`, per unit of the path's time.

    Raises:
      ValueError: if a concrete `t` is outside the path.

    >>> from genlib import noise
    >>> f, g = noise.drift_diffusion(noise.VPLinear(), 0.0)
    >>> round(f.item(), 4), round(g.item() ** 2, 4)
    (-0.05, 0.1)
    """
    check_time(path, t)
    (alpha, sigma), rate = marginal_and_rate(path, inside(path, t))
    f = rate.alpha / alpha
    g_squared = 2.0 * sigma * (rate.sigma - f * sigma)
    return f, jnp.sqrt(jnp.maximum(g_squared, 0.0))


def prior(
    key: Key,
    path: Path,
    shape: Sequence[int],
    dtype: Any = jnp.float32,
    *,
    t: ArrayLike | None = None,
) -> Array:
    """Draw x_T ~ N(0, sigma_T^2 I), where sampling starts.

    Args:
      key: typed PRNG key.
      path: the forward process.
      shape: [B, ...].
      dtype: dtype of the result.
      t: a scalar start time before `path.t_max`, where a grid begins there.

    Returns:
      Noise of standard deviation sigma(t).

    Raises:
      ValueError: if a concrete `t` is outside the path.

    >>> from genlib import noise
    >>> x = noise.prior(jax.random.key(0), noise.VE(0.01, 50.0), (1000,))
    >>> 45 < x.std() < 55
    Array(True, dtype=bool)
    """
    start = path.t_max if t is None else t
    check_time(path, start)
    sigma = path(jnp.asarray(start, compute_dtype(dtype))).sigma
    return (sigma * jax.random.normal(key, shape, sigma.dtype)).astype(dtype)
