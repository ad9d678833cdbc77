"""Pseudo numerical methods: classical coefficients on eps, DDIM between the times."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from genlib.noise import Path
from genlib.samplers._exponential import affine_rows
from genlib.samplers._multistep import (
    eps_lift,
    highest_order,
    history,
    multistep,
    multistep_rows,
)
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate
from genlib.types import Array, Denoiser

# Adams-Bashforth coefficients of equal steps, newest first.
_ADAMS = {
    2: np.array([3, -1]) / 2,
    3: np.array([23, -16, 5]) / 12,
    4: np.array([55, -59, 37, -9]) / 24,
}
# Of Heun's and of the classical Runge-Kutta method.
_SHARES = {2: (1 / 2, 1 / 2), 4: (1 / 6, 1 / 3, 1 / 3, 1 / 6)}


def pndm(*, runge_kutta: bool = False) -> Solver:
    """Pseudo numerical method, fourth-order Adams-Bashforth on eps (arXiv:2202.09778).

    x_s is DDIM's with eps replaced by (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24, the
    coefficients of equal steps whatever the grid. A step from alpha = 0 is DDIM's.

    Args:
      runge_kutta: take the first three steps with the pseudo Runge-Kutta method (four
        denoiser calls each, F-PNDM). Otherwise the first step is Heun's and the order
        grows from there, as with `skip_prk_steps` of `diffusers`. Either is DDIM in a
        step to sigma = 0.

    Returns:
      A deterministic solver with one denoiser call a step after the start.

    >>> from genlib import noise, samplers
    >>> path = noise.Cosine()
    >>> times = samplers.uniform(path, 10)
    >>> [samplers.nfe(pndm(runge_kutta=r), path, times) for r in (False, True)]
    [11, 19]
    """
    calls, starters = (4, 3) if runge_kutta else (2, 1)
    shares = _SHARES[calls]

    def plan(path: Path, times: Any) -> list[Rows]:
        table = tabulate(path, times)
        gain = _eps_gain(table)[:, None]
        equal = [gain * adams[None, 1:] for adams in _ADAMS.values()]
        weights = highest_order(history(times, 4), equal)
        middle = 0.5 * (times[:-1] + times[1:])
        stops = [times[1:]] if calls == 2 else [middle, middle, times[1:]]
        start = _starting_rows(path, table, stops)
        later = multistep_rows(table, weights, "eps")
        return [
            {name: column[:starters] for name, column in start.items()},
            {name: column[starters:] for name, column in later.items()},
        ]

    bulk = multistep(plan, 4, "eps").step

    def step(denoise: Denoiser, x: Array, past: tuple[Array, ...], row: Rows):
        if row["t"].ndim == 0:
            return bulk(denoise, x, past, row)
        eps, total, x_0, at = [], jnp.zeros_like(x), jnp.zeros_like(x), x
        for i in range(calls):
            value = denoise(at, row["t"][i])
            x_0 = x_0 if eps else value
            eps.append(row["of_x"][i] * at + row["of_x_0"][i] * value)
            change = eps[i] - eps[0]
            total = total + shares[i] * change
            if i == calls - 1:
                change = total
            # From the start of the step to the next stop, as DDIM with another eps.
            at = row["keep"][i] * x + row["add"][i] * x_0 + row["gain"][i] * change
        return at, (eps[0], *past)[:3]

    return Solver(plan, step, init=lambda x: (0 * x,) * 3)


def _starting_rows(path: Path, table: Table, stops: list[Any]) -> Rows:
    """Return rows [N, calls] of steps that call the denoiser at t and at the stops."""
    xp = namespace(table.alpha)
    ends = Table(*(column[1:] for column in table))
    nodes = [Table(*(c[:-1] for c in table)), *(tabulate(path, t) for t in stops)]
    columns = []
    for node, stop in zip(nodes, [*nodes[1:], ends], strict=True):
        # The grids of one step each: from the start of the step to its stop.
        step = Table(*(xp.stack([a, b]) for a, b in zip(nodes[0], stop, strict=True)))
        keep = step.sigma[1:] / step.sigma[:-1]
        rows = {name: row[0] for name, row in affine_rows(step, keep).items()}
        noisy = node.sigma > 0
        rows |= {
            "t": node.t,
            "gain": xp.where(ends.sigma > 0, _eps_gain(step)[0], 0.0),
            "of_x": xp.where(noisy, 1.0 / xp.where(noisy, node.sigma, 1.0), 0.0),
        }
        rows["of_x_0"] = -node.alpha * rows["of_x"]
        columns.append(rows)
    return {name: xp.stack([c[name] for c in columns], axis=1) for name in columns[0]}


def _eps_gain(table: Table) -> Any:
    """Return d x_s / d eps of a DDIM step, 0 for a step from alpha = 0."""
    gain = table.sigma[1:] - table.sigma[:-1] * eps_lift(table)
    return namespace(gain).where(table.alpha[:-1] > 0, gain, 0.0)
