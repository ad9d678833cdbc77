"""Continuous flows: data moves along a differential equation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib import ode
from genlib.divergence import exact_trace, hutchinson
from genlib.flows._bijector import (
    Bijector,
    Params,
    check_features,
    check_key,
    wide,
    with_its_arguments,
    zero_log_det,
)
from genlib.types import Array, Key, Scalar, check_positive


class VectorField(NamedTuple):
    """A velocity that depends on time: an (init, apply) pair.

    Attributes:
      init: `(key, x, cond=None) -> params`, for x [B, ...].
      apply: `(params, x, t, cond=None) -> dx/dt` like `x`, with a scalar t. It must not
        mix examples, and must be smooth in x: steps of the solver assume it.

    >>> decay = VectorField(
    ...     init=lambda key, x, cond=None: {"rate": jnp.ones(())},
    ...     apply=lambda params, x, t, cond=None: -params["rate"] * x,
    ... )
    >>> decay.apply({"rate": jnp.array(2.0)}, jnp.ones((1, 1)), 0.0).item()
    -2.0
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]


def continuous(
    field: VectorField,
    *,
    t_end: Scalar = 1.0,
    divergence: str = "exact",
    steps: int | None = 16,
    remat: bool = False,
    **adaptive: Any,
) -> Bijector:
    """Move data along dx/dt = field(x, t) from t = 0 to `t_end`.

        d log_det / dt = div field(x, t)      (FFJORD, arXiv:1810.01367, eq. 2).

    The inverse solves the same equation backwards: parallel, at the cost of `forward`.
    It inverts, and `log_det` is that of the map, as far as the solver is exact.

    Cost: a step of the fixed grid calls the field and its divergence four times; the
    exact divergence takes D more products with the Jacobian for D numbers per example,
    Hutchinson's estimate one.

    Args:
      field: see `VectorField`; it sees x in at least float32.
      t_end: positive.
      divergence: "exact", or "hutchinson" for an unbiased estimate of log_det, which
        makes the layer stochastic: the probe of an example comes from the key alone, so
        that it stays the same throughout a solve, and in both directions.
      steps: of the classical Runge-Kutta method, on a uniform grid; None for adaptive
        steps by diffrax, which all examples share and which have derivatives in reverse
        mode only, see `ode.adaptive`.
      remat: recompute the field in the backward pass of a fixed grid, which keeps x
        alone of each call; adaptive steps always do so.
      **adaptive: `rtol`, `atol`, `solver`, `max_steps` of `ode.adaptive`, for adaptive
        steps only.

    Returns:
      A `Bijector` for x [B, ...], stochastic with "hutchinson".

    Raises:
      ValueError: for another divergence, numbers that are not positive, or settings of
        the fixed grid and of adaptive steps together; when called, if the field returns
        another shape, or without a key where one is needed.
      ImportError: when called, for adaptive steps without diffrax.
      RuntimeError: when called, if `max_steps` do not suffice.

    >>> from genlib import flows
    >>> grow = flows.VectorField(
    ...     init=lambda key, x, cond=None: {},
    ...     apply=lambda params, x, t, cond=None: 0.5 * x,
    ... )
    >>> y, log_det = continuous(grow).forward({}, jnp.ones((1, 3)))
    >>> round(y[0, 0].item(), 4), round(log_det.item(), 4)  # e^0.5, 3 * 0.5
    (1.6487, 1.5)
    """
    check_positive("t_end", t_end)
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(
            f'divergence must be "exact" or "hutchinson"; it is {divergence!r}'
        )
    if steps is None and remat:
        raise ValueError("remat must be False with adaptive steps, which recompute")
    if steps is not None and adaptive:
        raise ValueError(f"steps must be None to take {[*adaptive]}; it is {steps}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1 or None; it is {steps}")

    def solve(
        params: Params, x: Array, cond: Any, key: Key | None, ends: Any
    ) -> tuple[Array, Array]:
        check_features("x", x)
        if divergence == "exact":
            with_divergence = exact_trace()
        else:
            with_divergence = hutchinson(check_key(key, "Hutchinson's estimate"))

        def rate(state: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
            def velocity(x: Array) -> Array:
                value = field.apply(params, x, t, cond)
                if value.shape != x.shape:
                    raise ValueError(
                        f"field must return the shape of x, {x.shape}; it returned "
                        f"{value.shape}"
                    )
                return value.astype(x.dtype)

            return with_divergence(velocity, state[0])

        start = wide(x), zero_log_det(x)
        if steps is None:
            (y, log_det), _ = ode.adaptive(rate, start, *ends, **adaptive)
        else:
            # A scan keeps the compiler from undoing the recomputation.
            function = jax.checkpoint(rate, prevent_cse=False) if remat else rate
            times = jnp.linspace(ends[0], ends[1], steps + 1, dtype=start[0].dtype)
            y, log_det = ode.runge_kutta(function, start, times)
        return y.astype(x.dtype), log_det

    def along(ends: Any) -> Callable[..., tuple[Array, Array]]:
        return lambda params, x, cond=None, key=None: solve(params, x, cond, key, ends)

    layer = Bijector(
        field.init, along((0.0, t_end)), along((t_end, 0.0)), divergence == "hutchinson"
    )
    return with_its_arguments(layer)
