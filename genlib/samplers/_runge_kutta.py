"""Runge-Kutta solvers of the probability-flow ODE in the path's own time.

    dx/dt = alpha' x_0 + sigma' eps
          = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) x_0

On `noise.EDM` these are EDM's solvers, on `noise.Rectified` flow matching's.
"""

from typing import Any

import numpy as np

from genlib.noise import Path
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import namespace, tabulate
from genlib.types import Array, Denoiser


def euler() -> Solver:
    """Euler's method, first order (arXiv:2206.00364, alg. 1 without the correction).

    Returns:
      A deterministic solver with one denoiser call a step.

    >>> euler().stochastic
    False
    """

    def plan(path: Path, times: Any) -> Rows:
        t, drift, pull = _velocity_rows(path, times[:-1])
        step_size = times[1:] - times[:-1]
        return {"t": t, "keep": 1.0 + step_size * drift, "add": step_size * pull}

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        return row["keep"] * x + row["add"] * denoise(x, row["t"]), state

    return Solver(plan, step)


def heun() -> Solver:
    """Heun's method, second order: EDM's solver (arXiv:2206.00364, alg. 1).

    A step that ends at sigma = 0, where dx/dt is not defined, is an Euler step: n steps
    to sigma = 0 call the denoiser 2 n - 1 times.

    Returns:
      A deterministic solver with two denoiser calls a step.

    >>> heun().stochastic
    False
    """
    return _two_stage(1.0)


def midpoint() -> Solver:
    """The midpoint method, second order (arXiv:2206.00364, alg. 3 with alpha = 1/2).

    Returns:
      A deterministic solver with two denoiser calls a step (one to sigma = 0).

    >>> midpoint().stochastic
    False
    """
    return _two_stage(0.5)


def ralston() -> Solver:
    """Ralston's method, second order (arXiv:2206.00364, alg. 3 with alpha = 2/3).

    Returns:
      A deterministic solver with two denoiser calls a step (one to sigma = 0).

    >>> ralston().stochastic
    False
    """
    return _two_stage(2.0 / 3.0)


def _two_stage(fraction: float) -> Solver:
    """Return the second-order method that probes dx/dt at a fraction of the step.

    Each denoiser call is one row: x is where the denoiser is called next, `base` is the
    step so far. So every method costs what it calls, and a network is traced once.
    """

    def plan(path: Path, times: Any) -> Rows:
        steps = times.shape[0] - 1
        step_size = times[1:] - times[:-1]
        probe = times[1:] if fraction == 1.0 else times[:-1] + fraction * step_size
        to_zero = tabulate(path, times[1:]).sigma == 0
        xp = namespace(to_zero)
        # A step to sigma = 0 is Euler's: all in the first row, nothing in the second.
        first = xp.where(to_zero, 1.0, fraction) * step_size
        second = xp.where(to_zero, 0.0, 1.0 / (2.0 * fraction)) * step_size
        probe = xp.where(to_zero, times[:-1], probe)

        pairs = lambda a, b: xp.stack([a, b], axis=1).reshape(-1)
        t, drift, pull = _velocity_rows(path, pairs(times[:-1], probe))
        move, keep = pairs(first, second), pairs(step_size - second, second)
        rows = {
            "t": t,
            "move_x": move * drift,
            "move_x_0": move * pull,
            "keep_x": keep * drift,
            "keep_x_0": keep * pull,
            "ends": np.tile([False, True], steps),
        }
        if xp is np and to_zero[-1]:
            rows = {name: column[:-1] for name, column in rows.items()}
            rows["ends"][-1] = True
        return rows

    def step(denoise: Denoiser, x: Array, base: Array, row: Rows):
        x_0 = denoise(x, row["t"])
        moved = base + (row["move_x"] * x + row["move_x_0"] * x_0)
        return moved, base + (row["keep_x"] * x + row["keep_x_0"] * x_0)

    return Solver(plan, step, init=lambda x: x)


def _velocity_rows(path: Path, t: Any) -> tuple[Any, Any, Any]:
    """Return t and the coefficients of dx/dt = drift x + pull x_0."""
    table = tabulate(path, t)
    rates = table.alpha_rate, table.sigma_rate
    if namespace(*rates) is np and not np.isfinite(rates).all():
        raise ValueError(
            f"{type(path).__name__} must have finite derivatives of alpha and sigma; "
            f"they are not at t = {table.t[~np.isfinite(rates).all(0)][0]}"
        )
    drift = table.sigma_rate / table.sigma
    return table.t, drift, table.alpha_rate - table.alpha * drift
