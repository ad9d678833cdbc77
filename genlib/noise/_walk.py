"""Where Gaussian noise comes from: the random walk and the heat equation."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from genlib.types import Array, ArrayLike, Key, Scalar, float_array


class Walk(NamedTuple):
    """Positions [steps + 1] of a random walk and the probability of each."""

    positions: Array
    probabilities: Array


def random_walk(key: Key, x_0: Array, steps: int, variance: Scalar = 1.0) -> Array:
    """Walk each component by equal steps left or right: x_k = x_{k-1} +- h.

    h = sqrt(variance / steps), so that x_n has the given variance around x_0 however
    many steps there are; as they grow, x_n ~ N(x_0, variance): the transition of a path
    with alpha = 1 and that much more sigma^2.

    Args:
      key: typed PRNG key.
      x_0: where to start [B, ...].
      steps: how many.
      variance: of x_n - x_0.

    Returns:
      Positions [steps + 1, B, ...] from `x_0` on, with the dtype of `x_0`.

    Raises:
      ValueError: if `steps` is not positive.

    >>> x = random_walk(jax.random.key(0), jnp.zeros(1000), 4)
    >>> sorted(set(x[-1].tolist())), x.shape
    ([-2.0, -1.0, 0.0, 1.0, 2.0], (5, 1000))
    """
    x_0 = jnp.asarray(x_0)
    signs = jax.random.rademacher(key, (_checked(steps), *x_0.shape), jnp.int32)
    moved = jnp.concatenate([jnp.zeros_like(signs[:1]), jnp.cumsum(signs, axis=0)])
    h = jnp.sqrt(float_array(variance) / steps)
    return (x_0[None] + h * moved).astype(x_0.dtype)


def walk_distribution(steps: int, variance: Scalar = 1.0) -> Walk:
    """Return where a walk from 0 may be after all its steps, and how probably.

    P(x_n = h (2 k - n)) = C(n, k) / 2^n, with the h of `random_walk`. In total
    variation its distance to the Gaussian of each lattice cell is O(1 / n).

    Args:
      steps: how many, n.
      variance: of x_n.

    Returns:
      Positions and probabilities, k = 0..n.

    Raises:
      ValueError: if `steps` is not positive.

    >>> walk_distribution(2).probabilities.round(6).tolist()
    [0.25, 0.5, 0.25]
    """
    variance = float_array(variance)
    k = jnp.arange(_checked(steps) + 1, dtype=variance.dtype)
    choose = gammaln(steps + 1.0) - gammaln(k + 1) - gammaln(steps - k + 1)
    positions = jnp.sqrt(variance / steps) * (2 * k - steps)
    return Walk(positions, jnp.exp(choose - steps * math.log(2.0)))


def heat_kernel(
    displacement: ArrayLike, time: ArrayLike, diffusivity: Scalar = 0.5
) -> Array:
    """Return the density to have moved by a displacement in one dimension.

    K = exp(-x^2 / (4 D t)) / sqrt(4 pi D t) solves dK/dt = D d2K/dx2 from a point
    source. It is N(0, 2 D t): the limit of `random_walk` with variance 2 D t, and
    `transition` of a path with alpha = 1 on which sigma^2 grows by 2 D t.

    Args:
      displacement: of any shape.
      time: since the start, > 0, broadcasts against it.
      diffusivity: D, squared distance per unit of time; 1/2 is Brownian motion.

    Returns:
      Density with the broadcast shape.

    >>> round(heat_kernel(0.0, 1.0).item(), 6)
    0.398942
    """
    variance = 2.0 * diffusivity * float_array(time)
    exponent = -0.5 * jnp.square(float_array(displacement)) / variance
    return jnp.exp(exponent) / jnp.sqrt(2.0 * math.pi * variance)


def _checked(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps must be positive; it is {steps}")
    return steps
