"""The variational bound of a diffusion model, term by term, in nats per example."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from genlib.losses._denoising import denoising
from genlib.losses._parts import Predict, floating_batch
from genlib.losses._times import TimeSampler, low_discrepancy, unit_draws
from genlib.losses._weights import likelihood, on_x0
from genlib.noise import Path, check_time
from genlib.prediction import Prediction, denoiser
from genlib.types import (
    Array,
    ArrayLike,
    Key,
    check_start,
    compute_dtype,
    float_array,
    is_concrete,
)


def vdm(
    key: Key,
    predict: Predict,
    path: Path,
    x_0: Array,
    *,
    kind: Prediction,
    steps: int | None = None,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    prior_std: ArrayLike | None = None,
    draw: TimeSampler = low_discrepancy,
) -> Array:
    """Return an estimate of -log p(x_0)'s bound: diffusion, prior and reconstruction.

    The sum of `vdm_diffusion`, `vdm_prior` and `vdm_reconstruction`, see there
    (arXiv:2107.00630). Minimised, it is the negative log-likelihood; bits per
    dimension are its mean over (dimensions ln 2), plus the offset of the data's scale.

    Args:
      key: typed PRNG key, for times and noise.
      predict: the network, `predict(x, t)` with x [B, ...] and t [B].
      path: the forward process.
      x_0: data [B, ...].
      kind: what the network predicts.
      steps: of a discrete chain; None is the limit of many.
      start: see `vdm_diffusion`.
      end: see `vdm_diffusion`.
      prior_std: see `vdm_prior`.
      draw: see `vdm_diffusion`.

    Returns:
      Nats [B], float32 (float64 for float64 data).

    Raises:
      ValueError: as its terms do.

    >>> from genlib import noise, prediction
    >>> zero, path = lambda x_t, t: 0 * x_t, noise.VE(0.1, 10.0)
    >>> x_0, key = jnp.zeros((4, 2)), jax.random.key(0)  # zero is then exact
    >>> round(vdm(key, zero, path, x_0, kind=prediction.X0)[0].item(), 3)
    -1.767
    """
    diffusion = vdm_diffusion(
        key, predict, path, x_0, kind=kind, steps=steps, start=start, end=end, draw=draw
    )
    prior = vdm_prior(path, x_0, end=end, prior_std=prior_std)
    return diffusion + prior + vdm_reconstruction(path, x_0, start=start)


def vdm_diffusion(
    key: Key,
    predict: Predict,
    path: Path,
    x_0: Array,
    *,
    kind: Prediction,
    steps: int | None = None,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    draw: TimeSampler = low_discrepancy,
) -> Array:
    """Return an unbiased estimate of the diffusion loss of VDM, in nats per example.

    L_inf = -1/2 (end - start) E_t[SNR'(t) |x_0_hat - x_0|^2], t uniform between start
    and end, summed over dimensions; of T steps, with s = t - (end - start) / T,
    L_T = T/2 E_t[(SNR(s) - SNR(t)) |x_0_hat - x_0|^2] (arXiv:2107.00630).
    L_inf depends on the path only through the SNR at both ends. Settings of the path
    can be learned: gradients of the loss reach them.

    Args:
      key: typed PRNG key, for times and noise.
      predict: the network, `predict(x, t)` with x [B, ...] and t [B].
      path: the forward process.
      x_0: data [B, ...].
      kind: what the network predicts.
      steps: T; None is the limit of many.
      start: time at which the chain begins, with sigma > 0; by default `path.t_min`.
      end: time at which it ends; by default `path.t_max`.
      draw: how times are drawn, in law uniformly: `uniform`, `stratified` or
        `low_discrepancy`.

    Returns:
      Nats [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `steps` is less than 1, `start` and `end` are concretely not
        increasing times of the path, sigma is 0 at `start`, x_0 is not determined at
        the end of T steps (eps at alpha = 0), or as `denoising` does.

    >>> from genlib import noise, prediction
    >>> perfect = lambda x_t, t: 0 * x_t
    >>> path, x_0 = noise.Cosine(), jnp.zeros((4, 2))
    >>> key, kind = jax.random.key(0), prediction.X0
    >>> vdm_diffusion(key, perfect, path, x_0, kind=kind, start=0.01)
    Array([0., 0., 0., 0.], dtype=float32)
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, or None; it is {steps}")
    first, last = _interval(path, start, end)
    width = last - first
    if steps is not None:  # one of them starts at the very end
        check_start(denoiser(predict, path, kind), last)

    def times(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
        u = unit_draws(draw, key, n, dtype)
        return first + width * (u if steps is None else jnp.ceil(u * steps) / steps)

    def weight(path: Path, kind: Prediction, t: ArrayLike) -> Array:
        if steps is None:
            return 0.5 * width * likelihood(path, kind, t)
        t = float_array(t)
        earlier = path.log_snr(jnp.maximum(t - width / steps, first))  # rounding
        fall = -jnp.expm1(path.log_snr(t) - earlier) * jnp.exp(earlier)
        return 0.5 * steps * fall * on_x0(jnp.ones_like)(path, kind, t)

    error = denoising(key, predict, path, x_0, kind=kind, weight=weight, times=times)
    return math.prod(x_0.shape[1:]) * error


def vdm_prior(
    path: Path,
    x_0: Array,
    *,
    end: ArrayLike | None = None,
    prior_std: ArrayLike | None = None,
) -> Array:
    """Return KL(q(x_T | x_0), p(x_T)), the prior loss of VDM, in nats per example.

    KL = 1/2 sum(r^2 - 1 - ln r^2 + (alpha x_0 / prior_std)^2), r = sigma / prior_std,
    of q = N(alpha x_0, sigma^2 I) and p = N(0, prior_std^2 I) (arXiv:2107.00630).

    Args:
      path: the forward process.
      x_0: data [B, ...].
      end: the time T; by default `path.t_max`.
      prior_std: of the distribution that sampling starts from; by default sigma(T), as
        `noise.prior` draws.

    Returns:
      Nats [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `x_0` is not a floating batch, or a concrete `end` is outside the
        path.

    >>> from genlib import noise
    >>> vdm_prior(noise.VE(0.1, 10.0), jnp.full((1, 2), 10.0))
    Array([1.], dtype=float32)
    """
    x_0 = floating_batch(x_0)
    end = path.t_max if end is None else end
    check_time(path, end, "end")
    dtype = compute_dtype(x_0.dtype)
    alpha, sigma = path(jnp.asarray(end, dtype))
    scale = sigma if prior_std is None else jnp.asarray(prior_std, dtype)
    log_ratio = 2.0 * (jnp.log(sigma) - jnp.log(scale))
    spread = math.prod(x_0.shape[1:]) * (jnp.expm1(log_ratio) - log_ratio)
    shift = jnp.square(alpha / scale * x_0.astype(dtype))
    return 0.5 * (spread + jnp.sum(shift, axis=tuple(range(1, x_0.ndim))))


def vdm_reconstruction(
    path: Path, x_0: Array, *, start: ArrayLike | None = None
) -> Array:
    """Return -E log p(x_0 | x_start), the reconstruction loss, in nats per example.

    p(x_0 | x_t) = N(x_t / alpha, (sigma / alpha)^2 I), whose expectation over
    q(x_t | x_0) is D/2 (ln(2 pi e) - log_snr(start)) for any x_0 (arXiv:2107.00630, for
    continuous data: dequantise discrete ones).

    Args:
      path: the forward process.
      x_0: data [B, ...], for its shape and dtype.
      start: time at which the chain begins, with sigma > 0; by default `path.t_min`.

    Returns:
      Nats [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `x_0` is not a floating batch, or `start` is concretely outside the
        path or without noise.

    >>> from genlib import noise
    >>> round(vdm_reconstruction(noise.VE(0.1, 10.0), jnp.zeros((1, 2))).item(), 3)
    -1.767
    """
    x_0 = floating_batch(x_0)
    first, _ = _interval(path, start, None)
    log_snr = path.log_snr(jnp.asarray(first, compute_dtype(x_0.dtype)))
    nats = 0.5 * math.prod(x_0.shape[1:]) * (math.log(2 * math.pi) + 1 - log_snr)
    return jnp.broadcast_to(nats, x_0.shape[:1])


def _interval(path: Path, start: ArrayLike | None, end: ArrayLike | None) -> Any:
    """Return start and end, by default those of the path, where the bound is finite."""
    first = path.t_min if start is None else start
    last = path.t_max if end is None else end
    check_time(path, first, "start")
    check_time(path, last, "end")
    if is_concrete(path, first, last):
        with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
            noiseless = bool(path(first).sigma == 0)
            ordered = bool(jnp.asarray(first) < last)
        if not ordered:
            raise ValueError(f"start must be before end; they are {first} and {last}")
        if noiseless:
            raise ValueError(
                "start must be a time with sigma > 0, for the bound is infinite "
                f"without noise; it is {first}"
            )
    return first, last
