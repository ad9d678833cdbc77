"""Runge-Kutta solvers of the probability-flow ODE in the path's own time.

    dx/dt = alpha' x_0 + sigma' eps
          = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) x_0

On `noise.EDM` these are EDM's solvers, on `noise.Rectified` flow matching's.
"""

from typing import Any

import numpy as np

from genlib.noise import Path
from genlib.samplers._churn import Churn, churned, churning, is_still
from genlib.samplers._exponential import affine_step
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate
from genlib.types import Array, Denoiser


def euler(churn: Churn | None = None) -> Solver:
    """Euler's method, first order (arXiv:2206.00364, alg. 1 without the correction).

    Args:
      churn: noise that every step adds first, see `Churn`; None is deterministic.

    Returns:
      A solver with one denoiser call a step.

    Raises:
      ValueError: if a setting of `churn` is negative.

    >>> euler().stochastic
    False
    """
    still = is_still(churn)

    def plan(path: Path, times: Any) -> Rows:
        start, rows = _starts(path, times, churn)
        table = tabulate(path, start)
        drift, pull = velocity_rows(path, table)
        step_size = times[1:] - start
        keep, add = 1.0 + step_size * drift, step_size * pull
        return rows | {"t": table.t, "keep": keep, "add": add}

    return Solver(plan, churning(affine_step, churn), draws=0 if still else 1)


def heun(churn: Churn | None = None) -> Solver:
    """Heun's method, second order: EDM's solver (arXiv:2206.00364, alg. 1).

    A step that ends at sigma = 0, where dx/dt is not defined, is an Euler step: n steps
    to sigma = 0 call the denoiser 2 n - 1 times. A compiled program holds the network
    twice for the loop and once for that last step.

    Args:
      churn: noise that every step adds first, see `Churn`; None is deterministic.

    Returns:
      A solver with two denoiser calls a step.

    Raises:
      ValueError: if a setting of `churn` is negative.

    >>> heun().stochastic
    False
    """
    return _two_stage(1.0, churn)


def midpoint(churn: Churn | None = None) -> Solver:
    """The midpoint method, second order (arXiv:2206.00364, alg. 3 with alpha = 1/2).

    Args:
      churn: noise that every step adds first, see `Churn`; None is deterministic.

    Returns:
      A solver with two denoiser calls a step (one to sigma = 0).

    Raises:
      ValueError: if a setting of `churn` is negative.

    >>> midpoint().stochastic
    False
    """
    return _two_stage(0.5, churn)


def ralston(churn: Churn | None = None) -> Solver:
    """Ralston's method, second order (arXiv:2206.00364, alg. 3 with alpha = 2/3).

    Args:
      churn: noise that every step adds first, see `Churn`; None is deterministic.

    Returns:
      A solver with two denoiser calls a step (one to sigma = 0).

    Raises:
      ValueError: if a setting of `churn` is negative.

    >>> ralston().stochastic
    False
    """
    return _two_stage(2.0 / 3.0, churn)


def _two_stage(fraction: float, churn: Churn | None) -> Solver:
    """Return the second-order method that probes dx/dt at a fraction of the step."""
    still = is_still(churn)

    def plan(path: Path, times: Any) -> Rows | list[Rows]:
        start, rows = _starts(path, times, churn)
        steps, step_size = times.shape[0] - 1, times[1:] - start
        probe = times[1:] if fraction == 1.0 else start + fraction * step_size
        xp = namespace(times, start)
        table = tabulate(path, xp.concatenate([start, probe, times[-1:]]))
        xp = namespace(table.sigma)
        # A step to sigma = 0, where dx/dt is not defined, is Euler's.
        to_zero = (table.sigma[-1] == 0) & (np.arange(steps) == steps - 1)
        second = xp.where(to_zero, 0.0, 1.0 / (2.0 * fraction)) * step_size
        pairs = lambda c: xp.stack(
            [c[:steps], xp.where(to_zero, c[:steps], c[steps : 2 * steps])], axis=1
        )
        nodes = Table(*(pairs(column) for column in table))
        drift, pull = velocity_rows(path, nodes)
        rows |= {
            "t": nodes.t,
            "drift": drift,
            "pull": pull,
            "probe": fraction * step_size,
            "first": step_size - second,
            "second": second,
        }
        if not (xp is np and to_zero[-1]):
            return rows
        # The last step is a segment of its own, which does not call the denoiser twice.
        last = {name: column[-1:] for name, column in rows.items()}
        last |= {name: last[name][:, :1] for name in ("t", "drift", "pull")}
        return [{name: column[:-1] for name, column in rows.items()}, last]

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        velocity = lambda x, i: (
            row["drift"][i] * x + row["pull"][i] * denoise(x, row["t"][i])
        )
        here = velocity(x, 0)
        if row["t"].shape[0] == 1:
            return x + row["first"] * here, state
        there = velocity(x + row["probe"] * here, 1)
        return x + (row["first"] * here + row["second"] * there), state

    return Solver(plan, churning(step, churn), draws=0 if still else 1)


def _starts(path: Path, times: Any, churn: Churn | None) -> tuple[Any, Rows]:
    """Return the times from which steps start, and the rows of what comes before."""
    if churn is None or is_still(churn):
        return times[:-1], {}
    return churned(path, times, churn)


def velocity_rows(path: Path, table: Table) -> tuple[Any, Any]:
    """Return the coefficients of dx/dt = drift x + pull x_0."""
    rates = table.alpha_rate, table.sigma_rate
    if namespace(*rates) is np and not np.isfinite(rates).all():
        wrong = ~np.isfinite(rates).all(0)
        raise ValueError(
            f"{type(path).__name__} must have finite derivatives of alpha and sigma; "
            f"they are not at t = {table.t[wrong].flat[0]}"
        )
    drift = table.sigma_rate / table.sigma
    return drift, table.alpha_rate - table.alpha * drift
