"""Flow maps: networks of two times, u(x_t, s, t), that step from t to s at once.

u is the mean velocity over the step, x_s = x_t - (t - s) u(x_t, s, t), so that one call
with s and t at the ends of the path samples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.losses._flow_matching import point_and_velocity, time_domain
from genlib.losses._parts import floating_batch, mean_square, returned, source
from genlib.losses._steps import StepSampler, dyadic_steps
from genlib.noise import Interpolant, Path
from genlib.types import Array, Key, Scalar, expand_like

FlowMap = Callable[[Array, Array, Array], Array]


def mean_flow(
    key: Key,
    predict: FlowMap,
    x_0: Array,
    x_1: Array | None = None,
    *,
    interpolant: Interpolant | Path,
    steps: StepSampler,
    velocity: FlowMap | None = None,
    power: Scalar = 1.0,
    offset: Scalar = 1e-3,
) -> Array:
    """Return the MeanFlow loss of a network of two times, per example.

    u(x_t, s, t) = v - (t - s) du/dt holds for the mean velocity u and the velocity v of
    a flow, with the derivative along it, du/dt = v grad u + d_t u, by one jvp. With
    stop-gradient on the right side, and the conditional velocity u_t of
    `flow_matching` for v,

        loss = w e, e = mean((u - (v - (t - s) du/dt))^2), w = (e + offset)^-power,

    the mean over every axis but the batch, no gradient through w (arXiv:2505.13447,
    which takes the sum: its offset is D times this one). Where s = t it is flow
    matching: u(x, t, t) is the velocity.

    Args:
      key: typed PRNG key, for steps, noise, and the source if it is not given.
      predict: the network, `predict(x, s, t)` with x [B, ...], s and t [B].
      x_0: data [B, ...].
      x_1: source, or other data, paired with `x_0`; None draws normal noise.
      interpolant: the process between them; of a `Path`, x_1 is the noise.
      steps: draws s <= t, usually `random_steps()`.
      velocity: `(x_t, t, u_t) -> v`, instead of u_t itself: a trained velocity, which
        is then distilled, or u_t mixed with the network's own for guidance.
      power: 0 for the plain squared error; 1 makes every example weigh the same.
      offset: keeps the weight finite.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `x_0` or `x_1` is not a floating batch, their shapes differ, or a
        network returns another shape than it was given.

    >>> from genlib import losses, noise
    >>> x_0, x_1 = jnp.zeros((2, 3)), jnp.ones((2, 3))
    >>> to_ones = lambda x, s, t: jnp.ones_like(x)
    >>> line = dict(interpolant=noise.LinearInterpolant(), steps=losses.random_steps())
    >>> mean_flow(jax.random.key(0), to_ones, x_0, x_1, **line)
    Array([0., 0.], dtype=float32)
    """
    s, t, x_t, v, dtype = _draw(key, x_0, x_1, interpolant, steps)
    if velocity is not None:
        x_in, v_in = x_t.astype(dtype), v.astype(dtype)
        v = returned(velocity(x_in, t, v_in), x_in, "velocity")
    tangents = (v, jnp.zeros_like(s), jnp.ones_like(t))
    u, slope = jax.jvp(_caller(predict, dtype), (x_t, s, t), tangents)
    target = jax.lax.stop_gradient(v - expand_like(t - s, v) * slope)
    error = mean_square(u - target)
    return error * jax.lax.stop_gradient((error + offset) ** -power)


def shortcut(
    key: Key,
    predict: FlowMap,
    x_0: Array,
    x_1: Array | None = None,
    *,
    interpolant: Interpolant | Path,
    levels: int = 7,
    steps: StepSampler | None = None,
    target: FlowMap | None = None,
) -> Array:
    """Return the shortcut loss of a network of two times, per example.

    loss = mean((u(x_t, s, t) - y)^2), where y is the conditional velocity of
    `flow_matching` if s = t, and else the mean of two half steps that the network
    itself takes: y = (u(x_t, m, t) + u(x_m, s, m)) / 2 with m = (s + t) / 2 and
    x_m = x_t - (t - m) u(x_t, m, t), without gradient (arXiv:2410.12557, where the
    network sees t and the length t - s). Half steps of 2^-levels of the path take the
    velocity, u(x, t, t). A call evaluates the network three times.

    Args:
      key: typed PRNG key, for steps, noise, and the source if it is not given.
      predict: the network, `predict(x, s, t)` with x [B, ...], s and t [B].
      x_0: data [B, ...].
      x_1: source, or other data, paired with `x_0`; None draws normal noise.
      interpolant: the process between them; of a `Path`, x_1 is the noise.
      levels: the shortest half step is 2^-levels of the path.
      steps: draws s <= t, None for `dyadic_steps(levels)`.
      target: u with other parameters (an EMA, say) for y, None for `predict` itself.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `levels` is less than 1, `x_0` or `x_1` is not a floating batch,
        their shapes differ, or a network returns another shape than it was given.

    >>> from genlib import noise
    >>> x_0, x_1 = jnp.zeros((2, 3)), jnp.ones((2, 3))
    >>> to_ones = lambda x, s, t: jnp.ones_like(x)
    >>> line = noise.LinearInterpolant()
    >>> shortcut(jax.random.key(0), to_ones, x_0, x_1, interpolant=line)
    Array([0., 0.], dtype=float32)
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1; it is {levels}")
    steps = steps or dyadic_steps(levels)
    s, t, x_t, v, dtype = _draw(key, x_0, x_1, interpolant, steps)
    u_of = _caller(predict, dtype)
    u = u_of(x_t, s, t)

    call = u_of if target is None else _caller(target, dtype, "target")
    half = 0.5 * (t - s)
    # Between the shortest and the next lies a factor of 2: rounding cannot decide.
    domain = time_domain(interpolant)
    shortest = half < 1.5 * 2.0**-levels * (domain.t_max - domain.t_min)
    end = lambda s, t: jnp.where(shortest, t, s)
    first = call(x_t, end(t - half, t), t)
    x_m = x_t - expand_like(half, x_t) * first
    second = call(x_m, end(s, t - half), t - half)
    y = jnp.where(expand_like(s == t, v), v, 0.5 * (first + second))
    return mean_square(u - jax.lax.stop_gradient(y))


def _draw(
    key: Key,
    x_0: Array,
    x_1: Array | None,
    interpolant: Interpolant | Path,
    steps: StepSampler,
) -> tuple[Array, Array, Array, Array, Any]:
    """Return s, t, x_t and its conditional velocity, wide, and the data's dtype."""
    x_0 = floating_batch(x_0)
    key_time, key_point = jax.random.split(key)
    x_1 = source(jax.random.fold_in(key_point, 0), x_0, x_1)
    s, t = steps(key_time, time_domain(interpolant), x_0.shape[0], x_1.dtype)
    return s, t, *point_and_velocity(key_point, interpolant, x_0, x_1, t), x_0.dtype


def _caller(function: FlowMap, dtype: Any, name: str = "predict") -> FlowMap:
    """Return the function on wide arrays; it sees `dtype`."""

    def call(x: Array, s: Array, t: Array) -> Array:
        x = x.astype(dtype)
        return returned(function(x, s, t), x, name)

    return call
