"""Steps back whose variance the network chooses between two bounds."""

import jax.numpy as jnp

from genlib.noise import Normal, Path, posterior, transition
from genlib.prediction._convert import convert
from genlib.prediction._kinds import X0, Prediction
from genlib.types import (
    Array,
    ArrayLike,
    Scalar,
    compute_dtype,
    concrete,
    expand_like,
)


def learned_range(
    path: Path,
    value: Array,
    x_t: Array,
    s: ArrayLike,
    t: ArrayLike,
    kind: Prediction,
    *,
    final_std: Scalar | Array = 0.0,
) -> Normal:
    """Return p(x_s | x_t) of a network that also predicts the variance (iDDPM).

    The mean is that of q(x_s | x_t, x_0) at the predicted x_0, and
    log std = f log std_upper + (1 - f) log std_lower with f = (v + 1) / 2: between the
    standard deviation of q(x_s | x_t, x_0) at v = -1 and that of q(x_t | x_s) at v = 1
    (arXiv:2102.09672, eq. 15). v is not clipped.

    Args:
      path: the forward process.
      value: the network's output [B, ..., 2 C]; its last axis holds the prediction of
        kind `kind`, then v. A denoiser is made from the first half alone.
      x_t: what it was predicted from, [B, ..., C].
      s: earlier time, a scalar or [B].
      t: later time, a scalar or [B].
      kind: what the first half means.
      final_std: stands in for the lower bound where that is 0, at a data end without
        noise; iDDPM takes the one of the second step.

    Returns:
      Mean with the dtype of `x_t`, and standard deviation (at least float32), both with
      its shape. Where the lower bound is 0 the standard deviation is 0 if traced.

    Raises:
      ValueError: if shapes disagree, `kind` is not a `Prediction`, a concrete time is
        outside the path, s > t, or the lower bound is concretely 0.

    >>> from genlib import noise, prediction
    >>> path, x_t = noise.EDM(), jnp.ones((1, 2))
    >>> value = jnp.array([[0.1, -0.3, -1.0, 1.0]])
    >>> learned_range(path, value, x_t, 3.0, 5.0, prediction.EPS).std  # 4 * 3 / 5 and 4
    Array([[2.4, 4. ]], dtype=float32)
    """
    if value.shape != (*x_t.shape[:-1], 2 * x_t.shape[-1]):
        raise ValueError(
            f"value must have the shape {x_t.shape} of x_t with twice the last axis; "
            f"it is {value.shape}"
        )
    dtype = compute_dtype(x_t.dtype)
    predicted, v = jnp.split(value.astype(dtype), 2, axis=-1)
    wide = x_t.astype(dtype)
    mean, lower = posterior(
        path, convert(path, predicted, wide, t, kind, X0), wide, s, t
    )
    lower = jnp.where(lower == 0, jnp.asarray(final_std, dtype), lower)
    zero = lower <= 0
    if (value_of := concrete(zero)) is not None and value_of.any():
        raise ValueError(
            f"final_std must be positive where the posterior has no variance, s = {s}; "
            f"it is {final_std}"
        )
    upper = expand_like(transition(path, s, t).sigma, x_t)
    log_lower = jnp.log(jnp.where(zero, 1.0, lower))
    log_std = log_lower + 0.5 * (v + 1) * (jnp.log(upper) - log_lower)
    return Normal(mean.astype(x_t.dtype), jnp.where(zero, 0.0, jnp.exp(log_std)))
