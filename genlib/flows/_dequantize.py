"""Integers as continuous data, so that densities become probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.flows._actnorm import position_log_det
from genlib.flows._base import normal
from genlib.flows._bijector import Bijector, Params, beside, check_key, no_params
from genlib.flows._chain import call, chain
from genlib.flows._pointwise import sigmoid
from genlib.types import Array, Key, Scalar, check_positive, concrete


def dequantize(
    key: Key,
    x: Array,
    *,
    levels: int = 256,
    low: Scalar = -1.0,
    high: Scalar = 1.0,
    dtype: Any = jnp.float32,
) -> Array:
    """Spread integer levels uniformly over their bins, and scale to [low, high).

        low + (high - low) (x + u) / levels,  u ~ U[0, 1),

    so that a density can be compared with the probability of the integers
    (arXiv:1511.01844, sec. 3.1). The `bin_width` of the result is
    (high - low) / levels.

    Args:
      key: typed PRNG key.
      x: integers in [0, levels), of any shape.
      levels: their number.
      low: lower end of the result.
      high: upper end of the result.
      dtype: dtype of the result, float32 or float64: others do not resolve the bins.

    Returns:
      Continuous data with the shape of `x`.

    Raises:
      ValueError: if `x` is not of integers, or holds others, or `dtype` is neither.

    >>> x = dequantize(jax.random.key(0), jnp.array([0, 128, 255]))
    >>> jnp.floor((x + 1) * 128).tolist()
    [0.0, 128.0, 255.0]
    """
    x = jnp.asarray(x)
    _check(x, levels, dtype)
    u = jax.random.uniform(key, x.shape, dtype)
    return _in_bin(x.astype(u.dtype), u, levels, low, high)


def uniform_dequantization(
    levels: int = 256,
    *,
    low: Scalar = 0.0,
    high: Scalar = 1.0,
    dtype: Any = jnp.float32,
) -> Bijector:
    """Spread integers uniformly over their bins: the first layer of a flow.

        y = low + w (x + u),  u ~ U[0, 1),  w = (high - low) / levels,

    with the contribution log w for each number, so that the log-likelihood of a flow
    behind it is a lower bound, in expectation, on that of the integers
    (arXiv:1511.01844, sec. 3.1), in nats: its bits per dimension need no `bin_width`.
    The inverse is the level in whose bin y lies; for y outside of [low, high), which a
    flow may sample, it is the nearest level.

    Args:
      levels: of the integers, 0, ..., levels - 1.
      low: lower end of the result.
      high: upper end of the result, above `low`.
      dtype: dtype of the result, float32 or float64.

    Returns:
      A stochastic `Bijector` for integers x [B, ...], without parameters; its inverse
      returns int32. Sample with `dtype=jnp.int32`.

    Raises:
      ValueError: if `levels` is not positive, `high` not above `low`, `dtype` neither,
        there is no key, or x is not of integers or holds others (what a compiled
        function is given cannot be looked at: there, other integers go unnoticed).

    >>> layer = uniform_dequantization()
    >>> x = jnp.array([[0, 255]])
    >>> y, log_det = layer.forward({}, x, key=jax.random.key(0))
    >>> layer.inverse({}, y)[0].tolist(), round(log_det.item() / 2, 4)  # -ln 256
    ([[0, 255]], -5.5452)
    """
    log_width = _log_width(levels, low, high, dtype)

    def forward(
        params: Params, x: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        key = check_key(key, "dequantisation")
        y = dequantize(key, x, levels=levels, low=low, high=high, dtype=dtype)
        return y, position_log_det(y[..., None], log_width)

    def inverse(
        params: Params, y: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        level = _level(y, levels, low, high).astype(jnp.int32)
        return level, position_log_det(y[..., None], -log_width)

    return Bijector(no_params, forward, inverse, stochastic=True)


def variational_dequantization(
    flow: Bijector,
    levels: int = 256,
    *,
    low: Scalar = 0.0,
    high: Scalar = 1.0,
    dtype: Any = jnp.float32,
) -> Bijector:
    """Spread integers over their bins as a flow decides (Flow++).

        y = low + w (x + u),  u = sigmoid(flow(eps; x)),  eps ~ N(0, I)
                                                     (arXiv:1902.00275, sec. 3.1),

    with the contribution D log w - log q(u | x): the bound of
    `uniform_dequantization` made tight by training. `flow.forward` carries noise to the
    logits of u, in the shape of x, and its `cond` is x scaled to [-1, 1], so that its
    conditioners see the image, with the `cond` of the layer beside it.

    The inverse reads u off the digits that y has below the level. In float32 with 256
    levels these are 16 bits of 24, so its contribution has the error of that rounding.

    Args:
      flow: a bijector of float batches of the shape of x.
      levels: see `uniform_dequantization`.
      low: see there.
      high: see there.
      dtype: see there.

    Returns:
      A stochastic `Bijector` for integers x [B, ...], with the parameters of `flow`;
      its inverse returns int32.

    Raises:
      ValueError: as `uniform_dequantization`.

    >>> from genlib import flows
    >>> layer = variational_dequantization(flows.shift_and_scale(0.0), levels=4)
    >>> x = jnp.array([[0, 3]])
    >>> y, log_det = layer.forward({}, x, key=jax.random.key(0))
    >>> layer.inverse({}, y)[0].tolist()
    [[0, 3]]
    """
    log_width = _log_width(levels, low, high, dtype)
    flow = chain(flow, sigmoid())
    base = normal()

    def seen(level: Array, cond: Any) -> Array:
        return beside(2 * level.astype(dtype) / max(levels - 1, 1) - 1, cond)

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        key_flow, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, x.shape, dtype)
        return flow.init(key_flow, noise, seen(x, cond))

    def forward(
        params: Params, x: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        x = jnp.asarray(x)
        _check(x, levels, dtype)
        key_noise, key_flow = jax.random.split(check_key(key, "dequantisation"))
        noise = jax.random.normal(key_noise, x.shape, dtype)
        u, log_det = call(flow, flow.forward, params, noise, seen(x, cond), key_flow)
        log_q = base.log_prob({}, noise) - log_det
        y = _in_bin(x.astype(u.dtype), u, levels, low, high)
        return y, position_log_det(y[..., None], log_width) - log_q

    def inverse(
        params: Params, y: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        level = _level(y, levels, low, high)
        u = _fraction(y, level, levels, low, high)
        key_flow = None if key is None else jax.random.split(key)[1]
        noise, log_det = call(
            flow, flow.inverse, params, u, seen(level, cond), key_flow
        )
        log_q = base.log_prob({}, noise) + log_det
        x = level.astype(jnp.int32)
        return x, log_q - position_log_det(y[..., None], log_width)

    return Bijector(init, forward, inverse, stochastic=True)


def _log_width(levels: int, low: Scalar, high: Scalar, dtype: Any) -> Array:
    """Return the log of a bin's width, after a look at the settings."""
    _check_dtype(dtype)
    if levels < 1:
        raise ValueError(f"levels must be at least 1; it is {levels}")
    check_positive("high - low", high - low)
    return jnp.log((high - low) / jnp.asarray(levels, dtype))


def _check_dtype(dtype: Any) -> None:
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype must be float32 or float64; it is {jnp.dtype(dtype)}")


def _check(x: Array, levels: int, dtype: Any) -> None:
    """Refuse what are not integers in [0, levels), and dtypes that lose bins."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"x must hold integers; its dtype is {x.dtype} (a flow of integers is "
            "sampled with dtype=jnp.int32)"
        )
    _check_dtype(dtype)
    values = concrete(x)
    if values is not None:
        values = values.astype(np.int64)  # small integers would wrap around
        outside = (values < 0) | (values >= levels)
        if outside.any():
            raise ValueError(
                f"x must be within [0, {levels}); it holds {values[outside][0]}"
            )


def _edge(level: Array, levels: int, low: Scalar, high: Scalar) -> Array:
    """Return where a level, or a place within its bin, lies in [low, high]."""
    return (low + (high - low) / levels * level).astype(level.dtype)


def _in_bin(level: Array, u: Array, levels: int, low: Scalar, high: Scalar) -> Array:
    """Return the place u of [0, 1] within the bin of a level."""
    start, end = (_edge(level + step, levels, low, high) for step in (0, 1))
    # Rounding may not carry it into the next bin, nor that of users who take `low` off
    # again; beside 0 the next float is none that all devices know.
    unit = jnp.finfo(level.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
    last = jnp.minimum(jnp.nextafter(end, start), (end - unit).astype(level.dtype))
    return jnp.minimum(_edge(level + u, levels, low, high), last)


def _level(y: Array, levels: int, low: Scalar, high: Scalar) -> Array:
    """Return the level in whose bin y lies, as a float."""
    guess = jnp.floor((y - low) / ((high - low) / levels)).astype(y.dtype)
    # The quotient may be rounded over an edge; the edges themselves decide.
    guess = guess - (y < _edge(guess, levels, low, high))
    guess = guess + (y >= _edge(guess + 1, levels, low, high))
    return jnp.clip(guess, 0, levels - 1)


def _fraction(y: Array, level: Array, levels: int, low: Scalar, high: Scalar) -> Array:
    """Return the place u of y within the bin of a level, inside of (0, 1).

    y knows it up to half a unit of its last digit; a u nearer to 0 or 1 than what this
    leaves open would be one that no finite noise has.
    """
    u = (y - _edge(level, levels, low, high)) / ((high - low) / levels)
    size = jnp.maximum(jnp.abs(low), jnp.abs(high)) * levels / (high - low)
    open_end = (jnp.finfo(y.dtype).eps / 4 * size).astype(y.dtype)
    return jnp.clip(u.astype(y.dtype), open_end, 1 - open_end)
