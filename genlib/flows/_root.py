"""Increasing functions without a closed inverse, inverted numerically."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genlib.types import Array


def increasing_root(
    function: Callable[[Array], Array],
    y: Array,
    low: Array,
    high: Array,
) -> Array:
    """Solve f(x) = y for an increasing elementwise f, all elements in parallel.

    Newton's method inside a bracket that shrinks with every evaluation, with bisection
    where a step of it would leave the bracket or is more than half of the last one.
    The cost is fixed: n evaluations of f and its derivative, one after another, n = 32
    in float32 and 61 in float64. Where f is smooth a dozen reach rounding; at worst
    the bracket shrinks by 2^n, so |f(x) - y| is then that of rounding for brackets up
    to some hundred times |x|.
    Derivatives, of any order, are those of the implicit function,
    dx/dy = 1 / f'(x), and do not run through the steps.

    Args:
      function: x -> f(x) of the same shape; whatever it closes over is differentiated.
      y: where f is to arrive, floating.
      low: f(low) <= y, like `y`.
      high: f(high) >= y, like `y`.

    Returns:
      x, like `y`: of all that were tried the one with the least |f(x) - y|.

    >>> cube_root = lambda y: increasing_root(lambda x: x**3, y, 0 * y, y)
    >>> x, slope = jax.value_and_grad(cube_root)(jnp.array(8.0))
    >>> round(x.item(), 5), round(slope.item(), 5)
    (2.0, 0.08333)
    """
    low, high = jax.lax.stop_gradient((low, high))
    steps = jnp.finfo(y.dtype).nmant + 9

    def solve(residual: Callable[[Array], Array], start: Array) -> Array:
        def step(_, state: tuple[Array, ...]) -> tuple[Array, ...]:
            x, low, high, last, best, least = state
            value, slope = jax.jvp(residual, (x,), (jnp.ones_like(x),))
            better = jnp.abs(value) < least
            best = jnp.where(better, x, best)
            least = jnp.where(better, jnp.abs(value), least)
            low, high = jnp.where(value < 0, x, low), jnp.where(value > 0, x, high)
            newton = x - value / slope
            fast = jnp.abs(newton - x) <= last / 2
            middle = low + (high - low) / 2
            inside = (newton >= low) & (newton <= high)
            following = jnp.where(inside & fast, newton, middle)
            return following, low, high, jnp.abs(following - x), best, least

        infinite = jnp.full_like(start, jnp.inf)
        state = (start, low, high, high - low, start, infinite)
        return jax.lax.fori_loop(0, steps, step, state)[4]

    return jax.lax.custom_root(
        lambda x: function(x) - y,
        low + (high - low) / 2,
        solve,
        lambda linear, value: value / linear(jnp.ones_like(value)),
    )
