"""Multistep solvers: one denoiser call a step, and polynomials through past ones.

A step is that of DDIM, exact for what does not change, and a correction by how the
history f (x_0, or eps, or dx/dt) differs from its value now:
x_s = keep x_t + add x_0 + sum_j weights_j (f_j - f).
A lower order is a weight of zero.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from genlib.noise import Path
from genlib.samplers._exponential import (
    affine_rows,
    check_eta,
    noise_rows,
    safe_sqrt,
)
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate
from genlib.types import Array, Denoiser, Scalar


class History(NamedTuple):
    """What came before each step of a grid, newest first.

    Attributes:
      value: [N, K], a variable at the K - 1 times before each step and at its own, in
        the order of the columns: now, one step ago, two steps ago, ...
      usable: [N, K], where that time exists and the variable is finite there and at the
        end of the step.
    """

    value: Any
    usable: Any


def dpmpp_2m(
    solver_type: str = "midpoint", *, lower_order_final: bool = False
) -> Solver:
    """DPM-Solver++(2M), second order and multistep (arXiv:2211.01095, alg. 2).

    With h = (log_snr_s - log_snr_t) / 2, r = h_previous / h and the last two
    predictions x_0, x_0':
    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) (x_0 + (x_0 - x_0') / (2 r)).
    The first step, the one after a start at alpha = 0 and a step to sigma = 0 (all next
    to an infinite log-SNR) are of first order.

    Args:
      solver_type: "midpoint" as above, or "heun", which weighs (x_0 - x_0') / r by
        alpha_s (1 - (1 - e^-h) / h) instead (arXiv:2211.01095, app. A).
      lower_order_final: take the last step with first order even if it ends above
        sigma = 0, which helps below 15 steps.

    Returns:
      A deterministic solver with one denoiser call a step.

    Raises:
      ValueError: if `solver_type` is neither.

    >>> dpmpp_2m().stochastic
    False
    """
    return dpm_multistep(2, "x_0", solver_type, False, lower_order_final)


def dpmpp_3m(
    solver_type: str = "heun",
    *,
    compat: bool = False,
    lower_order_final: bool = False,
) -> Solver:
    """DPM-Solver++(3M), third order and multistep (arXiv:2211.01095).

    x_s = (sigma_s / sigma_t) x_t + sigma_s int e^l P(l) dl over l = log_snr / 2, exact
    for the parabola P through the last three predictions of x_0.

    The first step is corrected by the second prediction, at no cost, as its error would
    be the largest. The formula that other libraries share does without, and weighs the
    second difference of P by half of its integral; it converges with second order only.

    Args:
      solver_type: of the step with two predictions, see `dpmpp_2m`.
      compat: use that formula.
      lower_order_final: let the order fall to 2 and 1 in the last two steps, which
        helps below 15 steps.

    Returns:
      A deterministic solver with one denoiser call a step.

    Raises:
      ValueError: if `solver_type` is neither "midpoint" nor "heun".

    >>> dpmpp_3m().stochastic
    False
    """
    return dpm_multistep(3, "x_0", solver_type, compat, lower_order_final)


def dpm_solver_multistep(
    order: int = 2,
    solver_type: str = "heun",
    *,
    compat: bool = False,
    lower_order_final: bool = False,
) -> Solver:
    """Multistep DPM-Solver, which extrapolates eps (arXiv:2206.00927).

    x_s = (alpha_s / alpha_t) x_t - alpha_s int e^-l P(l) dl over l = log_snr / 2, for
    the polynomial P through the last `order` values of eps = (x_t - alpha_t x_0) /
    sigma_t. With "heun" and order 2 it is `deis(2)`.

    Args:
      order: 1 (DDIM), 2 or 3.
      solver_type: of the step with two values: "heun" is exact for a line, "midpoint"
        weighs its slope by half of the step's first-order weight.
      compat: for order 3 the formula of other libraries, see `dpmpp_3m`.
      lower_order_final: let the order fall towards the last step, which has order 1.

    Returns:
      A deterministic solver with one denoiser call a step.

    Raises:
      ValueError: if `order` or `solver_type` is none of these.

    >>> dpm_solver_multistep(3).stochastic
    False
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3; it is {order!r}")
    return dpm_multistep(order, "eps", solver_type, compat, lower_order_final)


def dpm_multistep(
    order: int,
    of: str,
    solver_type: str,
    compat: bool,
    lower_order_final: bool,
    eta: Scalar = 0.0,
) -> Solver:
    """Return the DPM-Solver of an order, on an SDE if eta is not 0 (see `_sde`)."""
    deterministic = check_eta(eta, math.inf)
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(
            f"solver_type must be 'midpoint' or 'heun'; it is {solver_type!r}"
        )

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        past = history(0.5 * table.log_snr, order)
        if lower_order_final:
            past = lower_at_the_end(past)
        rate = 1.0 if deterministic else 1.0 + eta
        exact = lambda past, k: exponential_weights(table, past, k, of, rate)
        published = lambda past, k: published_weights(
            table, past, k, of, solver_type, rate
        )
        ways = [
            published if compat or (k, solver_type) == (2, "midpoint") else exact
            for k in range(2, order + 1)
        ]
        weights = [way(past, k) for k, way in enumerate(ways, start=2)]
        rows = multistep_rows(table, highest_order(past, weights), of)
        if not deterministic:
            rows |= sde_rows(table, eta)
        if order < 3 or compat:
            return rows
        carried = rows["keep"] if of == "x_0" else eps_lift(table)
        return rows | {"amend": amendments(past, carried, exact)}

    return multistep(plan, order, of, draws=0 if deterministic else 1)


def multistep(
    plan: Callable[[Path, Any], Any], order: int, of: str, draws: int = 0
) -> Solver:
    """Return the solver whose rows `multistep_rows` made."""

    def step(denoise: Denoiser, x: Array, past: tuple[Array, ...], row: Rows):
        x_0 = denoise(x, row["t"])
        now = x_0 if of == "x_0" else row["of_x"] * x + row["of_x_0"] * x_0
        x = row["keep"] * x + row["add"] * x_0
        for j, then in enumerate(past):
            x = x + row["weights"][j] * (then - now)
        if "amend" in row:
            x = x + row["amend"] * (now - past[0])
        if draws:
            x = x + row["std"] * row["noise"]
        return x, (now, *past)[: order - 1]

    return Solver(plan, step, init=lambda x: (0 * x,) * (order - 1), draws=draws)


def multistep_rows(table: Table, weights: Any, of: str) -> Rows:
    """Return DDIM's rows and the weights of the history of x_0 or eps."""
    rows = affine_rows(table, table.sigma[1:] / table.sigma[:-1])
    rows["weights"] = weights
    return rows if of == "x_0" else rows | eps_rows(table)


def sde_rows(table: Table, eta: Any) -> Rows:
    """Return the rows of a step of the SDE of `dpmpp_2m_sde`, instead of DDIM's."""
    xp = namespace(table.alpha, eta)
    start, end = table.steps()
    ratio = start.alpha * end.sigma / (end.alpha * start.sigma)  # e^-h
    positive = ratio > 0
    log_ratio = xp.log(xp.where(positive, ratio, 1.0))
    decay = xp.where(positive, xp.exp(eta * log_ratio), xp.where(eta > 0, 0.0, 1.0))
    std = end.sigma * safe_sqrt(xp, 1.0 - decay**2)
    return affine_rows(table, end.sigma / start.sigma * decay) | noise_rows(table, std)


def eps_rows(table: Table) -> Rows:
    """Return the coefficients of eps = (x_t - alpha_t x_0) / sigma_t."""
    sigma = table.sigma[:-1]
    return {"of_x": 1.0 / sigma, "of_x_0": -table.alpha[:-1] / sigma}


def history(variable: Any, order: int) -> History:
    """Return a variable, given on the whole grid [N + 1], at the times each step knows.

    Where it is not usable other distinct values stand in for it, so that formulas stay
    finite where their result is dropped.
    """
    xp = namespace(variable)
    steps = variable.shape[0] - 1
    index = np.arange(steps)[:, None] - np.arange(order)
    finite = xp.isfinite(variable)
    usable = (index >= 0) & finite[np.maximum(index, 0)] & finite[1:, None]
    # Above all others and falling, so that they meet no real one.
    top = xp.max(xp.where(finite, variable, 0.0))
    stand_in = top + order - np.arange(order)[None]
    value = xp.where(usable, variable[np.maximum(index, 0)], stand_in)
    return History(value, usable)


def lower_at_the_end(past: History) -> History:
    """Let the order fall to 1 towards the last step."""
    steps, order = past.usable.shape
    left = steps - np.arange(steps)[:, None]
    return past._replace(usable=past.usable & (np.arange(order) < left))


def highest_order(past: History, weights: Sequence[Any]) -> Any:
    """Return [N, K - 1] weights, in every row of the highest order that it can have.

    Args:
      past: the history [N, K].
      weights: for each order k = 2..K, [N, k - 1].
    """
    xp = namespace(past.value, past.usable, *weights)
    steps, order = past.value.shape
    chosen = xp.zeros((steps, order - 1))
    for k, row in enumerate(weights, start=2):
        possible = xp.all(past.usable[:, :k], axis=1, keepdims=True)
        padded = xp.concatenate([row, xp.zeros((steps, order - k))], axis=1)
        chosen = xp.where(possible, padded, chosen)
    return chosen


def interpolation_weights(
    nodes: Any, start: Any, end: Any, kernel: Callable[[Any], Any]
) -> Any:
    """Return int_start^end kernel(u) l_j(u) du for Lagrange's polynomials l_j.

    By Gauss-Legendre quadrature with 24 nodes, exact to rounding for steps of any
    solver (kernels are polynomials, or exponentials over less than about 20 e-folds).

    Args:
      nodes: [N, K], the points of interpolation of each step.
      start: [N].
      end: [N].
      kernel: maps points u [N, Q] to [N, Q].

    Returns:
      [N, K].
    """
    z, weight = np.polynomial.legendre.leggauss(24)
    z, weight = (z[None] + 1) / 2, weight[None] / 2
    length = (end - start)[:, None]
    u = start[:, None] + length * z
    measure = kernel(u) * (weight * length)
    xp = namespace(nodes, measure)
    columns = []
    for j in range(nodes.shape[1]):
        polynomial = xp.ones_like(u)
        for k in range(nodes.shape[1]):
            if k != j:
                node, other = nodes[:, j, None], nodes[:, k, None]
                polynomial = polynomial * (u - other) / (node - other)
        columns.append(xp.sum(measure * polynomial, axis=1))
    return xp.stack(columns, axis=1)


def exponential_weights(
    table: Table, past: History, order: int, of: str, rate: Any = 1.0
) -> Any:
    """Return the weights [N, order - 1] that are exact for a polynomial in log-SNR."""
    start, end = step_ends(table, past)
    xp = namespace(start, end, rate)
    if of == "x_0":  # sigma_s e^l = alpha_s e^(l - l_s)
        scale, sign = table.alpha[1:, None], 1.0
    else:  # -alpha_s e^-l = -sigma_s e^(l_s - l)
        scale, sign = -table.sigma[1:, None], -1.0
    rate = rate * xp.ones_like(scale)
    kernel = lambda u: scale * rate * xp.exp(sign * rate * (u - end[:, None]))
    return interpolation_weights(past.value[:, :order], start, end, kernel)[:, 1:]


def published_weights(
    table: Table,
    past: History,
    order: int,
    of: str,
    solver_type: str,
    rate: Any = 1.0,
) -> Any:
    """Return the weights [N, order - 1] of the formulas of the DPM-Solver papers.

    With D_1 and D_2 the scaled differences of the history, x_s = DDIM + psi_2 D_1 +
    psi_3 D_2, or psi_1 / 2 D_1 for "midpoint" and order 2. The exact third order has
    2 psi_3.
    """
    xp = namespace(past.value, rate)
    start, end = step_ends(table, past)
    sign = 1.0 if of == "x_0" else -1.0
    scale = table.alpha[1:] if of == "x_0" else table.sigma[1:]
    h = sign * rate * (end - start)
    psi_1 = -scale * xp.expm1(-h)
    psi_2 = scale * (1.0 + xp.expm1(-h) / h)
    psi_3 = scale * (0.5 - (1.0 + xp.expm1(-h) / h) / h)
    r = (past.value[:, :-1] - past.value[:, 1:]) / (end - start)[:, None]
    if order == 2:
        slope = 0.5 * psi_1 if solver_type == "midpoint" else psi_2
        return -(slope / r[:, 0])[:, None]
    # D_1 and D_2 as linear forms of (f_1 - f, f_2 - f).
    first = xp.stack([-1.0 / r[:, 0], xp.zeros_like(h)], axis=1)
    second = xp.stack([1.0 / r[:, 1], -1.0 / r[:, 1]], axis=1)
    span = (r[:, 0] + r[:, 1])[:, None]
    d_1 = first + r[:, :1] / span * (first - second)
    d_2 = (first - second) / span
    return psi_2[:, None] * d_1 + psi_3[:, None] * d_2


def amendments(
    past: History, carried: Any, weigh: Callable[[History, int], Any]
) -> Any:
    """Return [N] weights of f - f_1 that correct a first-order step before this one.

    That step becomes exact for a line through both values, and its error of third
    order in h, which is what a method of third order can bear once.

    Args:
      past: the history [N, K].
      carried: [N], d x_s / d x_t of each step at fixed f.
      weigh: `(history, order) -> [N, order - 1]`, the weights of the past values.
    """
    xp = namespace(past.value, past.usable)
    start, usable = past.value[:, 0], past.usable[:, 0]
    known = usable & xp.concatenate([usable[1:], usable[:1] & False])
    end = xp.where(known, xp.concatenate([start[1:], start[:1]]), start + 1.0)
    implicit = weigh(History(xp.stack([start, end], axis=1), past.usable), 2)[:, 0]
    xp = namespace(past.value, implicit, carried)
    weight = xp.where(known & ~past.usable[:, 1], implicit, 0.0)
    return xp.concatenate([xp.zeros_like(weight[:1]), weight[:-1] * carried[1:]])


def eps_lift(table: Table) -> Any:
    """Return d x_s / d x_t = alpha_s / alpha_t at fixed eps, 0 from alpha = 0."""
    xp = namespace(table.alpha)
    has_signal = table.alpha[:-1] > 0
    scale = table.alpha[1:] / xp.where(has_signal, table.alpha[:-1], 1.0)
    return xp.where(has_signal, scale, 0.0)


def step_ends(table: Table, past: History) -> tuple[Any, Any]:
    """Return log_snr / 2 at both ends of every step, finite where an end is not."""
    xp = namespace(past.value, past.usable)
    end = xp.where(past.usable[:, 0], 0.5 * table.log_snr[1:], 0.0)
    return past.value[:, 0], end
