"""Progressive distillation: one step of the student for two of the teacher."""

import jax
import jax.numpy as jnp

from genlib.losses._parts import (
    Predict,
    floating_batch,
    prediction_error,
    returned,
    source,
)
from genlib.losses._steps import StepSampler
from genlib.losses._weights import Weight, unit
from genlib.noise import Path, perturb
from genlib.prediction import Prediction, check_kind
from genlib.types import Array, Denoiser, Key, expand_like


def progressive_distillation(
    key: Key,
    predict: Predict,
    teacher: Denoiser,
    path: Path,
    x_0: Array,
    *,
    kind: Prediction,
    steps: StepSampler,
    weight: Weight = unit,
) -> Array:
    """Return the error of a student whose DDIM step is to equal two of the teacher's.

    The teacher goes from t to m = (s + t) / 2 and on to s. In r = alpha / sigma, the
    one x_0 with which DDIM goes from x_t to the same x_s is

        x = c D(x_t, t) + (1 - c) D(x_m, m), c = (r_m - r_t) / (r_s - r_t),

    a weighted mean, finite at alpha_t = 0 and at sigma_s = 0 (where c = 0). Loss and
    weight are those of `denoising` with x in place of the data (arXiv:2202.00512, which
    weighs the x_0 error by max(SNR, 1) or SNR + 1: `on_x0` makes such weights).

    Args:
      key: typed PRNG key, for steps and noise.
      predict: the student, `predict(x, t)` with x [B, ...] and t [B].
      teacher: the denoiser to distil.
      path: the forward process of both.
      x_0: data [B, ...].
      kind: what the student predicts.
      steps: draws s < t, usually `uniform_steps(n)` for a student of n steps.
      weight: `(path, kind, t) -> [B]`, see the table of this room.

    Returns:
      Losses [B], float32 (float64 for float64 data). No gradient flows to the teacher.

    Raises:
      ValueError: if `x_0` is not a floating batch, `kind` is not a `Prediction`, or a
        network returns another shape than it was given.

    >>> from genlib import losses, noise, prediction
    >>> x_0, path, key = jnp.zeros((2, 3)), noise.Cosine(), jax.random.key(0)
    >>> settings = dict(kind=prediction.X0, steps=losses.uniform_steps(4))
    >>> zero = lambda x, t: 0 * x
    >>> progressive_distillation(key, zero, zero, path, x_0, **settings)
    Array([0., 0.], dtype=float32)
    """
    check_kind(kind)
    x_0 = floating_batch(x_0)
    key_time, key_noise = jax.random.split(key)
    eps = source(key_noise, x_0, None)
    s, t = steps(key_time, path, x_0.shape[0], eps.dtype)
    x_t = perturb(path, x_0.astype(eps.dtype), eps, t)
    x = jax.lax.stop_gradient(_two_steps(teacher, path, x_t, s, t, x_0.dtype))
    alpha, sigma = (expand_like(c, x) for c in path(t))
    implied = (x_t - alpha * x) / sigma
    error = prediction_error(predict, path, kind, t, x_t, x, implied, x_0.dtype)
    return weight(path, kind, t) * error


def _two_steps(
    teacher: Denoiser, path: Path, x_t: Array, s: Array, t: Array, dtype: jnp.dtype
) -> Array:
    """Return the x_0 whose one DDIM step from t to s is two steps of the teacher."""

    def denoise(x: Array, t: Array) -> Array:
        x = x.astype(dtype)
        return returned(teacher(x, t), x, "teacher")

    m = 0.5 * (s + t)
    start, middle, end = path(t), path(m), path(s)
    r_t, r_m = start.alpha / start.sigma, middle.alpha / middle.sigma
    # r_s is infinite at sigma_s = 0: the fraction is expanded by sigma_s.
    whole = end.alpha - end.sigma * r_t
    same = s >= t  # a step of no length: the teacher itself
    share = end.sigma * (r_m - r_t) / jnp.where(same, 1.0, whole)
    share = jnp.where(same, 0.0, share)

    first = denoise(x_t, t)
    keep = middle.sigma / start.sigma
    add = middle.alpha - keep * start.alpha
    x_m = expand_like(keep, x_t) * x_t + expand_like(add, x_t) * first
    second = denoise(x_m, m)
    return second + expand_like(share, x_t) * (first - second)
