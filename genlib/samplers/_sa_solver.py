"""SA-Solver: Adams predictor and corrector of the SDEs of `_sde`."""

import math
from collections.abc import Callable
from typing import Any

from genlib.noise import Path
from genlib.samplers._exponential import check_eta
from genlib.samplers._multistep import (
    History,
    exponential_weights,
    highest_order,
    history,
    interpolation_weights,
    lower_at_the_end,
    sde_rows,
    step_ends,
)
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate
from genlib.types import Array, Denoiser, Scalar


def sa_solver(
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: Scalar | Callable[[Any], Any] = 1.0,
    *,
    compat: bool = False,
    lower_order_final: bool = True,
) -> Solver:
    """SA-Solver: stochastic Adams predictor and corrector (arXiv:2309.05019, alg. 1).

    The step of this module with eta = tau^2 and the polynomial through the last
    `predictor_order` predictions. The denoiser, called at the end of the step, then
    corrects it: the same step, noise included, with the polynomial through
    `corrector_order` predictions, the new one among them.

    Args:
      predictor_order: 1, 2 or 3.
      corrector_order: 1, 2 or 3; 0 is the predictor alone.
      tau: how much noise: 0 is the probability-flow ODE, 1 the reverse SDE; or a
        function of the times [N] at which steps start, which may return [N].
      compat: weigh the slope of a line (order 2) by alpha_s (1 + eta) h^2 / 2, as other
        implementations do, instead of exactly.
      lower_order_final: let the order of the predictor fall towards the last step.

    Returns:
      A solver with one denoiser call a step, stochastic unless `tau` is 0. The last
      step has no corrector.

    Raises:
      ValueError: if an order is none of these or a concrete `tau` is negative.

    >>> sa_solver(3, 3).stochastic, sa_solver(tau=0.0).stochastic
    (True, False)
    """
    if predictor_order not in (1, 2, 3):
        raise ValueError(
            f"predictor_order must be 1, 2 or 3; it is {predictor_order!r}"
        )
    if corrector_order not in (0, 1, 2, 3):
        raise ValueError(
            f"corrector_order must be 0, 1, 2 or 3; it is {corrector_order!r}"
        )
    deterministic = not callable(tau) and check_eta(tau, math.inf, "tau")
    predicts, corrects = predictor_order > 1, corrector_order > 0

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        strength = tau(times[:-1]) if callable(tau) else tau
        xp = namespace(table.alpha, strength)
        eta = strength**2 * xp.ones_like(table.alpha[:-1])
        past = history(0.5 * table.log_snr, max(predictor_order, corrector_order, 1))
        rows = sde_rows(table, eta)
        if predicts:
            rows["predict"] = _predictor(
                table,
                lower_at_the_end(past) if lower_order_final else past,
                predictor_order,
                eta,
                compat,
            )
        if corrects:
            correct = _corrector(table, past, corrector_order, eta, compat)
            # Row i corrects the step that led to it, which for the first one is none.
            zero = xp.zeros_like(correct[:1])
            rows["correct"] = xp.concatenate([zero, correct[:-1]])
        return rows

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        base, past = state
        x_0 = denoise(x, row["t"])
        if corrects:
            x = base
            for weight, value in zip(row["correct"], (x_0, *past[1:]), strict=False):
                x = x + weight * (value - past[0])
        base = row["keep"] * x + row["add"] * x_0
        if not deterministic:
            base = base + row["std"] * row["noise"]
        x_s = base
        if predicts:
            for weight, value in zip(row["predict"], past, strict=False):
                x_s = x_s + weight * (value - x_0)
        return x_s, (base, (x_0, *past)[: len(past)])

    remembered = max(predictor_order - 1, corrector_order - 1, int(corrects))
    return Solver(
        plan,
        step,
        init=lambda x: (x, (0 * x,) * remembered),
        draws=0 if deterministic else 1,
    )


def _predictor(table: Table, past: History, order: int, eta: Any, compat: bool) -> Any:
    """Return the weights [N, order - 1] of the past predictions, relative to now's."""
    weights = [
        exponential_weights(table, past, k, "x_0", 1.0 + eta[:, None])
        for k in range(2, order + 1)
    ]
    if compat:
        start, end = step_ends(table, past)
        slope = 0.5 * table.alpha[1:] * (1.0 + eta) * (end - start) ** 2
        weights[0] = (slope / (past.value[:, 1] - start))[:, None]
    return highest_order(_columns(past, range(order)), weights)


def _corrector(table: Table, past: History, order: int, eta: Any, compat: bool) -> Any:
    """Return the weights of the new prediction and the past ones, relative to now's."""
    start, end = step_ends(table, past)
    xp = namespace(start, end, eta)
    scale, rate = (table.alpha[1:] * (1.0 + eta))[:, None], 1.0 + eta[:, None]
    kernel = lambda u: scale * xp.exp(rate * (u - end[:, None]))
    weights = []
    for k in range(min(order, 2), order + 1):
        nodes = xp.concatenate([end[:, None], past.value[:, : k - 1]], axis=1)
        each = interpolation_weights(nodes, start, end, kernel)
        if compat and k == 2:
            each = 0.5 * scale * (end - start)[:, None]
        weights.append(xp.concatenate([each[:, :1], each[:, 2:]], axis=1))
    # With one past prediction, now's, two are known: order 2. With two, order 3.
    return highest_order(_columns(past, [0, *range(max(order - 1, 1))]), weights)


def _columns(past: History, columns: Any) -> History:
    return History(*(column[:, list(columns)] for column in past))
