"""Training of a network that also predicts the variance of its steps back."""

import math

import jax
import jax.numpy as jnp

from genlib.losses._parts import Predict, floating_batch, mean_square
from genlib.losses._times import TimeSampler, across, uniform, unit_draws
from genlib.noise import Normal, Path, perturb, posterior
from genlib.prediction import (
    Prediction,
    check_kind,
    denoiser,
    learned_range,
    target,
)
from genlib.types import Array, Key, Scalar, check_start, compute_dtype


def hybrid(
    key: Key,
    predict: Predict,
    path: Path,
    x_0: Array,
    *,
    kind: Prediction,
    steps: int,
    vlb: Scalar = 1e-3,
    draw: TimeSampler = uniform,
) -> Array:
    """Return iDDPM's hybrid loss of a chain of steps, per example.

    loss = mean((predicted - target)^2) + vlb T L_t, where L_t is the term of a step in
    the variational bound, in bits per dimension: KL(q(x_s | x_t, x_0), p(x_s | x_t)),
    and -log p(x_0 | x_t) of the step to a data end without noise (arXiv:2102.09672,
    eq. 16). p is `prediction.learned_range`, and L_t moves only its variance: gradients
    do not pass through its mean. Data are continuous: dequantise discrete ones.

    Args:
      key: typed PRNG key, for times and noise.
      predict: the network, `predict(x, t)` with x [B, ..., C] and t [B], whose output
        [B, ..., 2 C] holds the prediction and v, see `learned_range`.
      path: the forward process, `noise.DiscreteBetas(betas)` in the paper.
      x_0: data [B, ..., C].
      kind: what the network predicts.
      steps: T, the equal steps of the chain in the path's time, at least 2.
      vlb: weight of the bound.
      draw: how times are drawn, see `vdm_diffusion`.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `x_0` is not a floating batch, `kind` is not a `Prediction`,
        `steps` is less than 2, the network returns another shape, or says nothing
        about x_0 at the noise end (eps at alpha = 0).

    >>> from genlib import noise, prediction
    >>> path = noise.DiscreteBetas(jnp.linspace(1e-3, 0.2, 100))
    >>> predict = lambda x_t, t: jnp.concatenate([x_t, 0 * x_t], axis=-1)
    >>> key, x_0 = jax.random.key(0), jnp.zeros((4, 2))
    >>> hybrid(key, predict, path, x_0, kind=prediction.EPS, steps=100).shape
    (4,)
    """
    check_kind(kind)
    x_0 = floating_batch(x_0)
    if x_0.ndim < 2:
        raise ValueError(f"x_0 must be [B, ..., C]; its shape is {x_0.shape}")
    check_start(denoiser(predict, path, kind), path.t_max)
    if steps < 2:
        raise ValueError(f"steps must be at least 2; it is {steps}")
    key_time, key_noise = jax.random.split(key)
    dtype = compute_dtype(x_0.dtype)
    step = jnp.ceil(unit_draws(draw, key_time, x_0.shape[0], dtype) * steps)
    s, t = (across(path, k / steps) for k in (step - 1, step))
    wide, eps = x_0.astype(dtype), jax.random.normal(key_noise, x_0.shape, dtype)
    x_t = perturb(path, wide, eps, t)
    x_in, t_in = kind.inputs(path(t), x_t, t)
    value = predict(x_in.astype(x_0.dtype), t_in)
    if value.shape != (*x_0.shape[:-1], 2 * x_0.shape[-1]):
        raise ValueError(
            f"predict must return the shape {x_0.shape} of its input with twice the "
            f"last axis; it returned {value.shape}"
        )
    predicted, v = jnp.split(value.astype(dtype), 2, axis=-1)
    simple = mean_square(predicted - target(path, wide, eps, t, kind))

    fixed = jnp.concatenate([jax.lax.stop_gradient(predicted), v], axis=-1)
    early = across(path, jnp.arange(1, 3, dtype=dtype) / steps)
    second = posterior(path, wide, x_t, early[0], early[1])
    model = learned_range(path, fixed, x_t, s, t, kind, final_std=second.std)
    bits = _bound(posterior(path, wide, x_t, s, t), model, wide) / math.log(2)
    return simple + vlb * steps * jnp.mean(bits, axis=tuple(range(1, x_0.ndim)))


def _bound(true: Normal, model: Normal, x_0: Array) -> Array:
    """Return KL(true, model) of each component; -log model(x_0) where true is x_0."""
    exact = true.std == 0
    ratio = jnp.where(exact, 1.0, true.std) / model.std
    spread = 0.5 * jnp.square(ratio) - jnp.log(ratio) - 0.5
    point = 0.5 * math.log(2 * math.pi) + jnp.log(model.std)
    miss = jnp.where(exact, x_0, true.mean) - model.mean
    return jnp.where(exact, point, spread) + 0.5 * jnp.square(miss / model.std)
