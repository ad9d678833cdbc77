"""Singlestep DPM-Solvers: denoiser calls inside a step, at fractions of its log-SNR."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from genlib.noise import Path
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate, times_at
from genlib.types import Array, Denoiser

# Where the steps of each order call the denoiser, as fractions of the step.
_NODES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


def dpm_solver(order: int | Sequence[int] = 3) -> Solver:
    """Singlestep DPM-Solver-1, -2 and -3, on eps (arXiv:2206.00927, alg. 1-2).

    With l = log_snr / 2, h = l_s - l_t and eps_r at l_t + r h:
    x_s = DDIM - sigma_s (e^h - 1) (eps_1/2 - eps) for order 2, and
    x_s = DDIM - sigma_s ((e^h - 1) / h - 1) / r (eps_r - eps), r = 2/3, for order 3.

    Args:
      order: 1 (DDIM), 2 or 3, or one of these for each step, as of `fast_orders`.

    Returns:
      A deterministic solver with `order` denoiser calls a step. A step from alpha = 0
      or to sigma = 0, where h is infinite, is DDIM's, with one call.

    Raises:
      ValueError: if an order is none of these, or there is not one for each step.

    >>> from genlib import noise, samplers
    >>> path = noise.EDM()
    >>> samplers.nfe(dpm_solver(3), path, samplers.karras(path, 5))
    13
    """
    return _singlestep(order, "eps")


def dpmpp_2s() -> Solver:
    """Singlestep DPM-Solver++(2S), second order (arXiv:2211.01095, alg. 1).

    x_s = DDIM + alpha_s (1 - e^-h) (x_0' - x_0), x_0' half a step of log-SNR ahead.

    Returns:
      A deterministic solver with two denoiser calls a step; a step from alpha = 0 or to
      sigma = 0 is DDIM's, with one.

    >>> dpmpp_2s().stochastic
    False
    """
    return _singlestep(2, "x_0")


def dpmpp_3s() -> Solver:
    """Singlestep DPM-Solver++(3S), third order (arXiv:2211.01095, app. A).

    x_s = DDIM + alpha_s (1 - (1 - e^-h) / h) / r (x_0' - x_0), x_0' a fraction r = 2/3
    of the step of log-SNR ahead, where a second-order step leads.

    Returns:
      A deterministic solver with three denoiser calls a step; a step from alpha = 0 or
      to sigma = 0 is DDIM's, with one.

    >>> dpmpp_3s().stochastic
    False
    """
    return _singlestep(3, "x_0")


def fast_orders(calls: int) -> tuple[int, ...]:
    """Return the orders of the steps of DPM-Solver-fast (arXiv:2206.00927, sec. 3.4).

    As many third-order steps as leave some calls for a last step (or two) of lower
    order.

    Args:
      calls: how many times the denoiser is to be called, at least 1.

    Returns:
      The order of each step, for `dpm_solver` on a grid of as many steps, of which none
      goes to sigma = 0.

    Raises:
      ValueError: if `calls` is not a positive integer.

    >>> fast_orders(12), fast_orders(10)
    ((3, 3, 3, 2, 1), (3, 3, 3, 1))
    """
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
        raise ValueError(f"calls must be a positive integer; it is {calls!r}")
    if calls % 3 == 0:
        return (*(3,) * (calls // 3 - 1), 2, 1)
    return (*(3,) * (calls // 3), calls % 3)


def _singlestep(order: int | Sequence[int], of: str) -> Solver:
    orders = (order,) if isinstance(order, int) else tuple(order)
    if not orders or not set(orders) <= set(_NODES):
        raise ValueError(
            f"order must be 1, 2 or 3, or one for each step; it is {order}"
        )

    def plan(path: Path, times: Any) -> list[Rows]:
        steps = len(times) - 1
        if not isinstance(order, int) and len(orders) != steps:
            raise ValueError(
                f"order must have one number for each of {steps} steps; it is {order}"
            )
        table = tabulate(path, times)
        finite = namespace(table.log_snr).isfinite(table.log_snr)
        finite = finite[:-1] & finite[1:]
        each = np.broadcast_to(np.array(orders), (steps,))
        if isinstance(finite, np.ndarray):
            each = np.where(finite, each, 1)
        tables = {k: _rows(path, table, finite, k, of) for k in sorted(set(each))}
        # One segment for every run of steps of one order.
        edges = [0, *(np.flatnonzero(np.diff(each)) + 1), steps]
        return [
            {name: c[start:end] for name, c in tables[each[start]].items()}
            for start, end in itertools.pairwise(edges)
        ]

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        x_0 = denoise(x, row["t"][0])
        ahead = lambda i: row["keep"][i] * x + row["add"][i] * x_0
        at = ahead(0)
        if row["t"].shape[0] == 1:
            return at, state
        now = x_0 if of == "x_0" else row["of_x"][0] * x + row["of_x_0"][0] * x_0
        for i in range(1, row["t"].shape[0]):
            value = denoise(at, row["t"][i])
            if of == "eps":
                value = row["of_x"][i] * at + row["of_x_0"][i] * value
            at = ahead(i) + row["gain"][i] * (value - now)
        return at, state

    return Solver(plan, step)


def _rows(path: Path, table: Table, finite: Any, order: int, of: str) -> Rows:
    """Return rows [N, order]: to the time of the next call, the last to the end."""
    xp = namespace(table.alpha, finite)
    start, end = (
        Table(*c) for c in zip(*((c[:-1], c[1:]) for c in table), strict=True)
    )
    begin = xp.where(finite, 0.5 * start.log_snr, 0.0)
    h = xp.where(finite, 0.5 * end.log_snr, 1.0) - begin
    inner = [
        tabulate(path, times_at(path, 2.0 * (begin + r * h))) for r in _NODES[order]
    ]
    # Where h is infinite the calls before the end stay at the start.
    inner = [
        Table(*(xp.where(finite, a, b) for a, b in zip(n, start, strict=True)))
        for n in inner
    ]
    columns, last = [], 0.0
    for node, stop, r in zip(
        [start, *inner], [*inner, end], [*_NODES[order], 1.0], strict=True
    ):
        keep = stop.sigma / start.sigma
        reach = -r * h if of == "x_0" else r * h
        scale = -stop.alpha if of == "x_0" else -stop.sigma
        if last:
            # Exact for a line through the values at 0 and `last`; order 2 halves.
            slope = (
                0.5 * r * xp.expm1(reach)
                if order == 2
                else r * (xp.expm1(reach) / reach - 1.0)
            )
            gain = xp.where(finite, scale * slope / last, 0.0)
        else:
            gain = xp.zeros_like(h)
        columns.append(
            {
                "t": node.t,
                "keep": keep,
                "add": stop.alpha - keep * start.alpha,
                "gain": gain,
                "of_x": 1.0 / node.sigma,
                "of_x_0": -node.alpha / node.sigma,
            }
        )
        last = r
    return {name: xp.stack([c[name] for c in columns], axis=1) for name in columns[0]}
