"""Consistency training and distillation: one answer along a whole trajectory."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.losses._parts import Predict, floating_batch, mean_square, returned, source
from genlib.losses._steps import StepSampler
from genlib.noise import Path, marginal_and_rate, perturb
from genlib.types import Array, Denoiser, Key, Scalar, expand_like

Distance = Callable[[Array, Array], Array]
StepWeight = Callable[[Path, Array, Array], Array]


def squared_distance(x: Array, y: Array) -> Array:
    """Return the mean squared difference of each example.

    Args:
      x: [B, ...].
      y: of the same shape.

    Returns:
      [B].

    >>> squared_distance(jnp.ones((1, 2)), jnp.zeros((1, 2)))
    Array([1.], dtype=float32)
    """
    return mean_square(x - y)


def pseudo_huber(x: Array, y: Array, c: Scalar | None = None) -> Array:
    """Return the pseudo-Huber distance sqrt(|x - y|^2 + c^2) - c of each example.

    It grows like |x - y|, and like its square below c (arXiv:2310.14189).

    Args:
      x: [B, ...].
      y: of the same shape.
      c: where it turns; None for 0.00054 sqrt(D) with D numbers in an example.

    Returns:
      [B].

    >>> pseudo_huber(jnp.full((1, 4), 2.0), jnp.zeros((1, 4)), 3.0)
    Array([2.], dtype=float32)
    """
    turn = 0.00054 * math.sqrt(math.prod(x.shape[1:])) if c is None else c
    square = jnp.sum(jnp.square(x - y), axis=tuple(range(1, x.ndim)))
    # The difference of the root and c would lose every digit of a small distance.
    total = square + turn**2
    is_zero = total == 0
    root = jnp.sqrt(jnp.where(is_zero, 1.0, total))
    return jnp.where(is_zero, 0.0, square / (root + turn))


def inverse_step(path: Path, s: Array, t: Array) -> Array:
    """Weigh a step by 1 / (t - s) in the path's own time, and one of no length by 0.

    On `noise.EDM` it is improved consistency training's 1 / (sigma_t - sigma_s)
    (arXiv:2310.14189).

    >>> from genlib import noise
    >>> inverse_step(noise.EDM(), jnp.ones(1), jnp.full(1, 3.0))
    Array([0.5], dtype=float32)
    """
    moves = s < t
    return jnp.where(moves, 1.0 / jnp.where(moves, t - s, 1.0), 0.0)


def consistency_training(
    key: Key,
    consistency: Denoiser,
    path: Path,
    x_0: Array,
    *,
    steps: StepSampler,
    target: Denoiser | None = None,
    weight: StepWeight = inverse_step,
    distance: Distance = pseudo_huber,
) -> Array:
    """Return how far a consistency function is from itself one step nearer the data.

    loss = w(s, t) d(f(x_t, t), stop_gradient(f(x_s, s))), where x_s and x_t are the
    same x_0 with the same noise. The defaults are improved consistency training
    (arXiv:2310.14189) on `noise.EDM`, with `steps=log_normal_steps(...)`; consistency
    training (arXiv:2303.01469) has `karras_steps`, `squared_distance`, a weight of 1
    and an EMA `target`.

    Nothing here makes f(x, s) = x at the data end: the network behind f must, by its
    form (`prediction.consistency`), or f collapses to a constant.

    Args:
      key: typed PRNG key, for steps and noise.
      consistency: f, `(x_t, t) -> x_0` with t [B].
      path: the forward process.
      x_0: data [B, ...].
      steps: draws s < t, see the table of this room.
      target: f with other parameters, None for `consistency` itself.
      weight: `(path, s, t) -> [B]`.
      distance: `(x, y) -> [B]`.

    Returns:
      Losses [B], float32 (float64 for float64 data). No gradient flows to the target.

    Raises:
      ValueError: if `x_0` is not a floating batch, or f returns another shape than it
        was given.

    >>> from genlib import losses, noise
    >>> x_0, key = jnp.zeros((2, 3)), jax.random.key(0)
    >>> steps = losses.log_normal_steps(18)
    >>> consistency_training(key, lambda x, t: 0 * x, noise.EDM(), x_0, steps=steps)
    Array([0., 0.], dtype=float32)
    """
    x_0 = floating_batch(x_0)
    key_time, key_noise = jax.random.split(key)
    eps = source(key_noise, x_0, None)
    s, t = steps(key_time, path, x_0.shape[0], eps.dtype)
    x_s, x_t = (perturb(path, x_0.astype(eps.dtype), eps, time) for time in (s, t))
    gap = _gap(consistency, target, distance, x_0.dtype)
    return weight(path, s, t) * gap(x_s, s, x_t, t)


def consistency_distillation(
    key: Key,
    consistency: Denoiser,
    teacher: Denoiser,
    path: Path,
    x_0: Array,
    *,
    steps: StepSampler,
    order: int = 2,
    target: Denoiser | None = None,
    weight: StepWeight | None = None,
    distance: Distance = squared_distance,
) -> Array:
    """Return how far a consistency function is from itself after a teacher's step.

    loss = w(s, t) d(f(x_t, t), stop_gradient(f(x_s, s))), where x_s is reached from x_t
    by one step of the teacher's probability-flow ODE (arXiv:2303.01469).

    Args:
      key: typed PRNG key, for steps and noise.
      consistency: f, `(x_t, t) -> x_0` with t [B]; see `consistency_training` for what
        it must be at the data end.
      teacher: the trained denoiser.
      path: the forward process of both.
      x_0: data [B, ...].
      steps: draws s < t, see the table of this room.
      order: of the teacher's step: 1 is Euler's, 2 is Heun's (Euler's to sigma = 0).
      target: f with other parameters (an EMA, say), None for `consistency` itself.
      weight: `(path, s, t) -> [B]`, None for 1.
      distance: `(x, y) -> [B]`.

    Returns:
      Losses [B], float32 (float64 for float64 data). No gradient flows to the target
      or the teacher.

    Raises:
      ValueError: if `order` is not 1 or 2, `x_0` is not a floating batch, or a function
        returns another shape than it was given.

    >>> from genlib import losses, noise
    >>> x_0, key = jnp.zeros((2, 3)), jax.random.key(0)
    >>> exact, steps = lambda x, t: 0 * x, losses.karras_steps(17)
    >>> path = noise.EDM()
    >>> consistency_distillation(key, exact, exact, path, x_0, steps=steps)
    Array([0., 0.], dtype=float32)
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2; it is {order}")
    x_0 = floating_batch(x_0)
    key_time, key_noise = jax.random.split(key)
    eps = source(key_noise, x_0, None)
    s, t = steps(key_time, path, x_0.shape[0], eps.dtype)
    x_t = perturb(path, x_0.astype(eps.dtype), eps, t)
    x_s = _ode_step(_caller(teacher, x_0.dtype, "teacher"), path, x_t, s, t, order)
    gap = _gap(consistency, target, distance, x_0.dtype)
    loss = gap(jax.lax.stop_gradient(x_s), s, x_t, t)
    return loss if weight is None else weight(path, s, t) * loss


def _caller(function: Predict, dtype: Any, name: str) -> Predict:
    """Return the function on wide arrays; it sees `dtype`."""

    def call(x: Array, t: Array) -> Array:
        x = x.astype(dtype)
        return returned(function(x, t), x, name)

    return call


def _gap(
    consistency: Predict, target: Predict | None, distance: Distance, dtype: Any
) -> Callable[[Array, Array, Array, Array], Array]:
    """Return the distance of f(x_t, t) to the target's answer at (x_s, s), [B]."""
    f = _caller(consistency, dtype, "consistency")
    nearer = f if target is None else _caller(target, dtype, "target")
    return lambda x_s, s, x_t, t: distance(
        f(x_t, t), jax.lax.stop_gradient(nearer(x_s, s))
    )


def _ode_step(
    denoise: Predict, path: Path, x_t: Array, s: Array, t: Array, order: int
) -> Array:
    """Return x_s by one step of the probability-flow ODE in the path's own time."""

    def velocity(x: Array, t: Array) -> Array:
        # dx/dt = alpha' x_0 + sigma' eps, for t with sigma > 0
        (alpha, sigma), rate = marginal_and_rate(path, t)
        drift = rate.sigma / sigma
        drift, pull = (expand_like(c, x) for c in (drift, rate.alpha - alpha * drift))
        return drift * x + pull * denoise(x, t)

    width = expand_like(s - t, x_t)
    here = velocity(x_t, t)
    euler = x_t + width * here
    if order == 1:
        return euler
    # At sigma = 0 the velocity is not defined: the step to it stays Euler's.
    ends = path(s).sigma == 0
    there = velocity(euler, jnp.where(ends, t, s))
    return jnp.where(expand_like(ends, x_t), euler, x_t + 0.5 * width * (here + there))
