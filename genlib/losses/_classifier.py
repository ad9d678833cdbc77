"""The loss of a classifier that sees noisy data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genlib.losses._parts import floating_batch, source
from genlib.losses._times import TimeSampler, uniform
from genlib.noise import Path, perturb
from genlib.types import Array, Key, concrete


def classification(
    key: Key,
    logits: Callable[[Array, Array], Array],
    path: Path,
    x_0: Array,
    labels: Array,
    *,
    times: TimeSampler = uniform,
) -> Array:
    """Return the cross-entropy of a classifier of noisy data, per example.

    loss = -log softmax(logits(x_t, t))[label] with x_t = alpha x_0 + sigma eps. Its
    minimum is p(label | x_t), whose gradient in x_t guides a sampler
    (arXiv:2105.05233, arXiv:2011.13456).

    Args:
      key: typed PRNG key, for times and noise.
      logits: the classifier, `logits(x, t)` with x [B, ...] and t [B], gives [B, K].
      path: the forward process.
      x_0: data [B, ...].
      labels: integers [B] in 0 .. K - 1.
      times: `(key, path, n, dtype) -> [n]`, see the table of this room.

    Returns:
      Losses [B] in nats, float32 (float64 for float64 data); NaN for a traced label
      that is no class.

    Raises:
      ValueError: if `x_0` is not a floating batch, `labels` are not one class for each
        example, or the classifier does not return [B, K].

    >>> from genlib import noise
    >>> x_0, labels = jnp.zeros((2, 3)), jnp.array([0, 1])
    >>> even = lambda x, t: jnp.zeros((2, 4))
    >>> loss = classification(jax.random.key(0), even, noise.Cosine(), x_0, labels)
    >>> jnp.exp(-loss)
    Array([0.25, 0.25], dtype=float32)
    """
    x_0 = floating_batch(x_0)
    labels = jnp.asarray(labels)
    if labels.shape != x_0.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be {x_0.shape[0]} integers, one for each example; they are "
            f"{labels.dtype}{list(labels.shape)}"
        )
    key_time, key_noise = jax.random.split(key)
    eps = source(key_noise, x_0, None)
    t = times(key_time, path, x_0.shape[0], eps.dtype)
    x_t = perturb(path, x_0.astype(eps.dtype), eps, t)
    scores = logits(x_t.astype(x_0.dtype), t)
    if scores.ndim != 2 or scores.shape[0] != x_0.shape[0]:
        raise ValueError(
            f"logits must return [B, K] with B = {x_0.shape[0]}; it returned "
            f"{list(scores.shape)}"
        )
    classes = scores.shape[1]
    values = concrete(labels)
    if values is not None and ((values < 0) | (values >= classes)).any():
        wrong = values[(values < 0) | (values >= classes)][0]
        raise ValueError(f"labels must be within 0 .. {classes - 1}; one is {wrong}")
    log_p = jax.nn.log_softmax(scores.astype(eps.dtype))
    # A negative index would wrap around to another class.
    index = jnp.where(labels < 0, classes, labels)[:, None]
    chosen = jnp.take_along_axis(log_p, index, axis=1, mode="fill", fill_value=jnp.nan)
    return -chosen[:, 0]
