"""Log-likelihoods of data given what a decoder says, in nats per example."""

import math

import jax
import jax.numpy as jnp

from genlib.types import Array, ArrayLike, compute_dtype, concrete


def gaussian(x: ArrayLike, mean: ArrayLike, log_std: ArrayLike = 0.0) -> Array:
    """Return log N(x; mean, std^2) of each example.

    -1/2 sum(((x - mean) / std)^2 + 2 ln std + ln(2 pi)).

    Args:
      x: data [B, ...].
      mean: like `x`.
      log_std: log of the standard deviations, a scalar or an array that broadcasts to
        the shape of `x`.

    Returns:
      Nats [B], float32 (float64 for float64 arguments).

    Raises:
      ValueError: if shapes do not fit.

    >>> round(gaussian(jnp.zeros((1, 2)), jnp.zeros((1, 2))).item(), 4)  # -ln(2 pi)
    -1.8379
    """
    x, mean, log_std = aligned(x, mean=mean, log_std=log_std)
    squares = jnp.square((x - mean) * jnp.exp(-log_std))
    return per_example(-0.5 * (squares + math.log(2 * math.pi)) - log_std)


def bernoulli(x: ArrayLike, logits: ArrayLike) -> Array:
    """Return the log-probability of bits with p(1) = sigmoid(logits), of each example.

    sum(x ln sigmoid(logits) + (1 - x) ln sigmoid(-logits)). For x between 0 and 1 it is
    the mean over random bits with these means, as often used for grey images; it is
    not a log-density of x itself.

    Args:
      x: bits, or their means in [0, 1], [B, ...] of any dtype.
      logits: like `x`; -inf and inf are bits that are certain.

    Returns:
      Nats [B], float32 (float64 for float64 arguments).

    Raises:
      ValueError: if shapes differ, or `x` is known not to be within [0, 1].

    >>> bernoulli(jnp.array([[0, 1]]), jnp.zeros((1, 2))).round(4)  # 2 ln 1/2
    Array([-1.3863], dtype=float32)
    """
    x, logits = aligned(x, logits=logits)
    values = concrete(x)
    if values is not None and not ((values >= 0) & (values <= 1)).all():
        wrong = values[~((values >= 0) & (values <= 1))][0]
        raise ValueError(f"x must be within [0, 1]; it holds {wrong}")
    one = jnp.where(x > 0, x * jax.nn.log_sigmoid(logits), 0.0)
    zero = jnp.where(x < 1, (1 - x) * jax.nn.log_sigmoid(-logits), 0.0)
    return per_example(one + zero)


def aligned(x: ArrayLike, **parameters: ArrayLike) -> list[Array]:
    """Return a batch and the parameters of its distribution, wide, in its shape."""
    shape = jnp.shape(x)
    if not shape:
        raise ValueError("x must be a batch [B, ...]; it is a scalar")
    dtype = compute_dtype(jnp.result_type(x, *parameters.values()))
    wide = [jnp.asarray(x, dtype)]
    for name, value in parameters.items():
        try:
            wide.append(jnp.broadcast_to(jnp.asarray(value, dtype), shape))
        except ValueError as error:
            raise ValueError(
                f"{name} must have the shape {shape} of x; it is {jnp.shape(value)}"
            ) from error
    return wide


def per_example(x: Array) -> Array:
    """Return the sum of each example, [B]."""
    return x.sum(tuple(range(1, x.ndim)))
