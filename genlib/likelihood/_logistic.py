"""Discretised logistic distributions: probabilities of the levels of images."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.likelihood._decoders import aligned, per_example
from genlib.types import Array, ArrayLike, Key, Scalar, compute_dtype, concrete


def discretized_logistic(
    x: Array, mean: ArrayLike, log_scale: ArrayLike, levels: int = 256
) -> Array:
    """Return the log-probability of levels under a logistic distribution of each pixel.

        P(x) = sigmoid((x + h - mean) / s) - sigmoid((x - h - mean) / s),
        h = 1 / (levels - 1),

    where the first is 1 for the highest level and the second 0 for the lowest, so that
    the probabilities of all levels add up to 1 (arXiv:1606.04934, arXiv:1701.05517).
    The logarithm is a sum of closed forms, exact for narrow and wide distributions.

    Args:
      x: data [B, ...] on the grid 2 k / (levels - 1) - 1 of [-1, 1], k an integer.
      mean: an array that broadcasts to the shape of `x`.
      log_scale: ln s, likewise; from about -80 in float32.
      levels: their number, at least 2.

    Returns:
      Nats [B], float32 (float64 for float64 arguments).

    Raises:
      ValueError: if shapes do not fit, `levels` is less than 2, or `x` is known not to
        be on the grid.

    >>> x = jnp.array([[-1.0], [1.0]])
    >>> jnp.exp(discretized_logistic(x, 0.0, 0.0, levels=2))
    Array([0.5, 0.5], dtype=float32)
    """
    wide, mean, log_scale = aligned(x, mean=mean, log_scale=log_scale)
    level = _level(wide, levels)
    return per_example(_log_prob(level, mean, log_scale, levels))


def discretized_logistic_mixture(
    x: Array,
    raw: Array,
    components: int,
    levels: int = 256,
    *,
    min_log_scale: Scalar = -7.0,
) -> Array:
    """Return the log-probability of images under a mixture of logistics at each pixel.

        log P(x) = sum over pixels of log sum_k pi_k prod_c P(x_c; mean_ck, scale_ck),

    with `discretized_logistic` for P and, of colours, means that are linear in the
    channels before: mean_G + a R and mean_B + b R + c G (PixelCNN++, arXiv:1701.05517).
    The raw numbers of a pixel are K logits of pi and then, for each channel, K means, K
    log-scales and, of colours, K numbers whose tanh is a, b or c: the order of the
    paper's code.

    Args:
      x: data [B, ..., C], C = 1 or 3, on the grid 2 k / (levels - 1) - 1 of [-1, 1].
      raw: what the decoder emits, [B, ..., n]: n = 3 K for C = 1, 10 K for C = 3.
      components: K.
      levels: their number, at least 2.
      min_log_scale: log-scales below it are raised to it, as in the paper's code.

    Returns:
      Nats [B], float32 (float64 for float64 arguments).

    Raises:
      ValueError: if shapes do not fit, `levels` is less than 2, or `x` is known not to
        be on the grid.

    >>> x = jnp.array([[-1.0], [1.0]])
    >>> jnp.exp(discretized_logistic_mixture(x, jnp.zeros((2, 6)), 2, levels=2))
    Array([0.5, 0.5], dtype=float32)
    """
    mixture = _mixture(raw, components, min_log_scale)
    shape = (*raw.shape[:-1], mixture.mean.shape[-2])
    if jnp.shape(x) != shape:
        raise ValueError(
            f"x must be {list(shape)} for raw {list(raw.shape)}; it is "
            f"{list(jnp.shape(x))}"
        )
    dtype = compute_dtype(jnp.result_type(x, raw))
    level = _level(jnp.asarray(x, dtype), levels)[..., None]
    channels = jnp.moveaxis(_value(level, levels), -2, 0)
    mean = jnp.stack([_mean_of(mixture, channels[:c]) for c in range(shape[-1])], -2)
    each = _log_prob(level, mean, mixture.log_scale, levels).sum(-2)
    return per_example(jax.nn.logsumexp(each + mixture.log_weight, axis=-1))


def sample_discretized_logistic_mixture(
    key: Key,
    raw: Array,
    components: int,
    levels: int = 256,
    *,
    min_log_scale: Scalar = -7.0,
) -> Array:
    """Draw images from a `discretized_logistic_mixture`, exactly.

    A component for each pixel, then one channel after the other: a logistic variable
    beside the channels drawn before, and the level next to it.

    Args:
      key: typed PRNG key.
      raw: what the decoder emits, [B, ..., n], see `discretized_logistic_mixture`.
      components: K.
      levels: their number, at least 2.
      min_log_scale: see there.

    Returns:
      Images [B, ..., C] on the grid of [-1, 1], float32 (float64 for float64 `raw`).

    Raises:
      ValueError: if shapes do not fit, or `levels` is less than 2.

    >>> raw = jnp.array([[0.0, 0.9, -9.0]])  # one logistic at 0.9, narrow
    >>> sample_discretized_logistic_mixture(jax.random.key(0), raw, 1, levels=3)
    Array([[1.]], dtype=float32)
    """
    _check_levels(levels)
    mixture = _mixture(raw, components, min_log_scale)
    key_component, key_noise = jax.random.split(key)
    chosen = jax.random.categorical(key_component, mixture.log_weight)
    chosen = chosen[..., None, None]
    mean, log_scale, coefficients = (
        jnp.take_along_axis(value, chosen, axis=-1) for value in mixture[1:]
    )
    mixture = _Mixture(mixture.log_weight, mean, log_scale, coefficients)
    noise = jax.random.logistic(key_noise, mean.shape, mean.dtype)
    noise = jnp.exp(log_scale) * noise
    channels = []
    for c in range(mean.shape[-2]):
        place = _mean_of(mixture, channels) + noise[..., c, :]
        level = jnp.clip(_nearest(place, levels), 0, levels - 1)
        channels.append(_value(level, levels))
    return jnp.concatenate(channels, axis=-1)


def mean_discretized_logistic_mixture(raw: Array, components: int) -> Array:
    """Return the mean of the logistic mixture of each pixel, within [-1, 1].

    sum_k pi_k mean_ck, the means of colours at the means of the channels before. It is
    that of the continuous distribution, put inside the range of data: levels at the
    ends collect what lies beyond them, which moves the mean of the levels inwards.

    Args:
      raw: what the decoder emits, [B, ..., n], see `discretized_logistic_mixture`.
      components: K.

    Returns:
      [B, ..., C], float32 (float64 for float64 `raw`).

    Raises:
      ValueError: if shapes do not fit.

    >>> mean_discretized_logistic_mixture(jnp.array([[0.0, 0.9, -9.0]]), 1)
    Array([[0.9]], dtype=float32)
    """
    mixture = _mixture(raw, components, 0.0)
    channels = []
    for _ in range(mixture.mean.shape[-2]):
        channels.append(_mean_of(mixture, channels))
    weight = jnp.exp(mixture.log_weight)[..., None, :]
    return jnp.clip((weight * jnp.stack(channels, -2)).sum(-1), -1, 1)


class _Mixture(NamedTuple):
    """K logistics at each pixel, read off the raw numbers of a decoder."""

    log_weight: Array  # [..., K]
    mean: Array  # [..., C, K]
    log_scale: Array  # [..., C, K]
    coefficients: Array  # [..., 3, K] of colours: a, b and c


def _mixture(raw: Array, components: int, min_log_scale: Scalar) -> _Mixture:
    channels = {3 * components: 1, 10 * components: 3}.get(raw.shape[-1])
    if components < 1 or channels is None:
        raise ValueError(
            f"raw must be [B, ..., n] with n = 3 or 10 times the {components} "
            f"components, at least 1; it is {list(raw.shape)}"
        )
    raw = raw.astype(compute_dtype(raw.dtype))
    logits, rest = raw[..., :components], raw[..., components:]
    rest = rest.reshape(*raw.shape[:-1], channels, rest.shape[-1] // channels)
    mean, log_scale, coefficients = jnp.split(
        rest, [components, 2 * components], axis=-1
    )
    return _Mixture(
        jax.nn.log_softmax(logits),
        mean,
        jnp.maximum(log_scale, jnp.asarray(min_log_scale, raw.dtype)),
        jnp.tanh(coefficients) if channels == 3 else mean,
    )


def _mean_of(mixture: _Mixture, before: Sequence[Array] | Array) -> Array:
    """Return the means of a channel [..., K] given those before it."""
    c = len(before)
    first = c * (c - 1) // 2
    mean = mixture.mean[..., c, :]
    for i, value in enumerate(before):
        mean = mean + mixture.coefficients[..., first + i, :] * value
    return mean


def _log_prob(level: Array, mean: Array, log_scale: Array, levels: int) -> Array:
    """Return log P of each level: log(sigmoid(upper) - sigmoid(lower)), its ends open.

    The difference is sigmoid(upper) sigmoid(-lower) (1 - exp(lower - upper)), whose
    logarithm needs no difference of two that are nearly equal.
    """
    half, place = 1 / (levels - 1), _value(level, levels)
    inverse = jnp.exp(-log_scale)
    lowest, highest = level <= 0, level >= levels - 1
    below_upper = jax.nn.log_sigmoid((place + half - mean) * inverse)
    above_lower = jax.nn.log_sigmoid((mean - place + half) * inverse)
    # 1 - exp(-width), and width itself where it is too small for the first to tell.
    log_width = math.log(2 * half) - log_scale
    thin = log_width < -14
    width = jnp.exp(jnp.where(thin, 0.0, log_width))
    thin_width = jnp.exp(jnp.where(thin, log_width, -14.0))
    inside = jnp.where(thin, log_width - thin_width / 2, jnp.log(-jnp.expm1(-width)))
    return (
        jnp.where(highest, 0.0, below_upper)
        + jnp.where(lowest, 0.0, above_lower)
        + jnp.where(lowest | highest, 0.0, inside)
    )


def _level(x: Array, levels: int) -> Array:
    """Return the level of each number, as a float; refuse what is known to be none."""
    _check_levels(levels)
    level = _nearest(x, levels)
    places, nearest = concrete(x), concrete(level)
    if places is not None and nearest is not None:
        # bfloat16 numbers are up to a quarter of a level of 256 beside the grid.
        nearest = np.clip(nearest, 0, levels - 1)
        off = ~(np.abs((places + 1) * (levels - 1) / 2 - nearest) <= 0.3)
        if off.any():
            raise ValueError(
                f"x must be on the grid of {levels} levels, 2 k / {levels - 1} - 1 "
                f"within [-1, 1]; it holds {places[off][0]}"
            )
    return level


def _nearest(x: Array, levels: int) -> Array:
    return jnp.round((x + 1) * (0.5 * (levels - 1)))


def _value(level: Array, levels: int) -> Array:
    return level * (2 / (levels - 1)) - 1


def _check_levels(levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2; it is {levels}")
