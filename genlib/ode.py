"""Differential equations of batches: on a fixed grid, or with diffrax's steps.

| function                                   | what it does                            |
|--------------------------------------------|-----------------------------------------|
| `runge_kutta(field, y, times)`             | classical fourth order on a fixed grid  |
| `adaptive(field, y, t_start, t_end)`       | adaptive steps (needs diffrax)          |
| `worst_rms(error)`                         | the error of the worst example          |
| `import_diffrax()`                         | diffrax, or how to install it           |
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from genlib.types import Array, ArrayLike, Scalar

__all__ = ["adaptive", "import_diffrax", "runge_kutta", "worst_rms"]

Field = Callable[[Any, Array], Any]


def runge_kutta(field: Field, y: Any, times: ArrayLike) -> Any:
    """Integrate dy/dt = field(y, t) by the classical fourth-order Runge-Kutta method.

    Args:
      field: `(y, t) -> dy/dt`, a pytree like `y`.
      y: the state at times[0].
      times: monotone times [N + 1], for N steps of four calls each.

    Returns:
      The state at times[-1].

    >>> round(runge_kutta(lambda y, t: y, 1.0, jnp.linspace(0.0, 1.0, 9)).item(), 4)
    2.7183
    """
    times = jnp.asarray(times)

    def step(y: Any, ends: Any) -> tuple[Any, None]:
        t, h = ends[0], ends[1] - ends[0]
        add = lambda k, c: jax.tree.map(lambda a, b: a + c * b, y, k)
        k_1 = field(y, t)
        k_2 = field(add(k_1, h / 2), t + h / 2)
        k_3 = field(add(k_2, h / 2), t + h / 2)
        k_4 = field(add(k_3, h), ends[1])
        slope = jax.tree.map(
            lambda a, b, c, d: a + 2 * b + 2 * c + d, k_1, k_2, k_3, k_4
        )
        return add(slope, h / 6), None

    y = jax.tree.map(jnp.asarray, y)
    return jax.lax.scan(step, y, (times[:-1], times[1:]))[0]


def adaptive(
    field: Field,
    y: Any,
    t_start: ArrayLike,
    t_end: ArrayLike,
    *,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    solver: Any = None,
    max_steps: int = 4096,
) -> tuple[Any, Array]:
    """Integrate dy/dt = field(y, t) with steps that keep each example's error small.

    The batch takes one step size, that of its worst example (see `worst_rms`): a field
    may close over conditioning of the whole batch, and every example still meets the
    tolerance. Differentiable in reverse mode, closed-over arrays included.

    Args:
      field: `(y, t) -> dy/dt`, a pytree like `y`.
      y: the state at `t_start`, a pytree of arrays [B, ...].
      t_start: where to start.
      t_end: where to end, on either side of `t_start`.
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.
      solver: a diffrax solver, `diffrax.Tsit5()` by default.
      max_steps: stop with an error after so many steps.

    Returns:
      The state at `t_end` and the number of steps, rejected ones included.

    Raises:
      ImportError: without diffrax.
      RuntimeError: if `max_steps` do not suffice (equinox's, from compiled code too).

    >>> y, steps = adaptive(lambda y, t: y, jnp.ones(1), 0.0, 1.0)
    >>> round(y.item(), 3), int(steps) < 20
    (2.718, True)
    """
    diffrax = import_diffrax()
    dtype = jnp.result_type(*jax.tree.leaves(y))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(y, t)),
        diffrax.Tsit5() if solver is None else solver,
        jnp.asarray(t_start, dtype),
        jnp.asarray(t_end, dtype),
        None,
        y,
        stepsize_controller=diffrax.PIDController(rtol, atol, norm=worst_rms),
        max_steps=max_steps,
    )
    end = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    return end, solution.stats["num_steps"]


def worst_rms(error: Any) -> Array:
    """Return the root mean square over each example and leaf, and the largest of these.

    Args:
      error: a pytree of arrays [B, ...].

    Returns:
      A scalar.

    >>> worst_rms({"x": jnp.array([[3.0, 3.0], [0.0, 0.0]]), "log_det": jnp.ones(2)})
    Array(3., dtype=float32)
    """

    def worst(leaf: Array) -> Array:
        square = jnp.square(leaf.reshape(leaf.shape[0], -1)).mean(1).max()
        # The root has no derivative where there is no error.
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    return jnp.stack([worst(leaf) for leaf in jax.tree.leaves(error)]).max()


def import_diffrax() -> ModuleType:
    """Import diffrax, which only adaptive steps need.

    Raises:
      ImportError: if it is not installed.

    >>> import_diffrax().__name__
    'diffrax'
    """
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "adaptive steps need diffrax: pip install genlib[adaptive], or use a fixed "
            "grid of times"
        ) from error
    return diffrax
