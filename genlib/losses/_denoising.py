"""The denoising loss, which trains every kind of prediction on every path."""

from collections.abc import Callable

import jax

from genlib.losses._parts import floating_batch, prediction_error, source
from genlib.losses._times import TimeSampler, uniform
from genlib.losses._weights import Weight, unit
from genlib.noise import Path, perturb
from genlib.prediction import Prediction, check_kind
from genlib.types import Array, Key, compute_dtype


def denoising(
    key: Key,
    predict: Callable[[Array, Array], Array],
    path: Path,
    x_0: Array,
    *,
    kind: Prediction,
    weight: Weight = unit,
    times: TimeSampler = uniform,
) -> Array:
    """Return the weighted squared error of a network's prediction, per example.

    loss = w(t) mean((predict(x_t, t) - target)^2) with x_t = alpha x_0 + sigma eps, the
    mean over every axis but the batch. With `VELOCITY` on `Rectified` it is flow
    matching, with `EDM` on `EDM` and `weight=edm(...)` it is EDM's loss
    (arXiv:2006.11239, arXiv:2206.00364, arXiv:2210.02747).

    Args:
      key: typed PRNG key, for times and noise.
      predict: the network, `predict(x, t)` with x [B, ...] and t [B].
      path: the forward process.
      x_0: data [B, ...].
      kind: what the network predicts.
      weight: `(path, kind, t) -> [B]`, see the table of this room.
      times: `(key, path, n, dtype) -> [n]`, see the table of this room.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `x_0` is not a floating batch, `kind` is not a `Prediction`, or
        the network returns another shape than it was given.

    >>> import jax.numpy as jnp
    >>> from genlib import noise, prediction
    >>> x_0 = jnp.zeros((4, 2))
    >>> perfect = lambda x_t, t: x_t / t[:, None]  # eps, since x_0 = 0
    >>> key = jax.random.key(0)
    >>> denoising(key, perfect, noise.Rectified(), x_0, kind=prediction.EPS).shape
    (4,)
    """
    check_kind(kind)
    x_0 = floating_batch(x_0)
    key_time, key_noise = jax.random.split(key)
    dtype = compute_dtype(x_0.dtype)
    t = times(key_time, path, x_0.shape[0], dtype)
    # The noise keeps full precision: only what the network sees is rounded to bfloat16.
    wide, eps = x_0.astype(dtype), source(key_noise, x_0, None)
    x_t = perturb(path, wide, eps, t)
    error = prediction_error(predict, path, kind, t, x_t, wide, eps, x_0.dtype)
    return weight(path, kind, t) * error
