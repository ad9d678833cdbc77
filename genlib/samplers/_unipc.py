"""UniPC: a predictor and a corrector of one family, with one denoiser call a step."""

from typing import Any

from genlib.noise import Path
from genlib.samplers._multistep import (
    History,
    eps_lift,
    exponential_weights,
    highest_order,
    history,
    lower_at_the_end,
    multistep_rows,
    step_ends,
)
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate
from genlib.types import Array, Denoiser


def unipc(
    order: int = 2,
    variant: str = "bh2",
    *,
    of: str = "x_0",
    corrector: bool = True,
    lower_order_final: bool = False,
) -> Solver:
    """UniPC: unified predictor-corrector (arXiv:2302.04867, alg. 5-8).

    UniP-p takes a step with p past predictions. The denoiser, called at the end of the
    step, then also corrects it (UniC-p), which raises the order to p + 1 for no call
    more: x_s = DDIM + sum_j rho_j D_j B(h), with rho from R rho = b / B(h), which makes
    it exact for a polynomial in log-SNR (see `dpmpp_3m`), or rho = 1/2 for one D_j.

    Args:
      order: 1, 2 or 3, of the predictor.
      variant: B(h), which only sets the weights of order 1 (UniC-1, UniP-2): "bh1" for
        h, "bh2" for e^h - 1.
      of: extrapolate "x_0" (as DPM-Solver++) or "eps".
      corrector: with False, UniP alone.
      lower_order_final: let the order fall towards the last step, which has order 1 (it
        has that anyway if it ends at sigma = 0); `diffusers` does.

    Returns:
      A deterministic solver with one denoiser call a step. The last step has no
      corrector.

    Raises:
      ValueError: if a setting is none of these.

    >>> unipc(3).stochastic
    False
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3; it is {order!r}")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2'; it is {variant!r}")
    if of not in ("x_0", "eps"):
        raise ValueError(f"of must be 'x_0' or 'eps'; it is {of!r}")

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        past = history(0.5 * table.log_snr, order)
        if lower_order_final:
            past = lower_at_the_end(past)
        predict = [_predictor(table, past, k, of, variant) for k in range(2, order + 1)]
        rows = multistep_rows(table, highest_order(past, predict), of)
        if not corrector:
            return rows
        # One past value makes a corrector of order 1, two make one of order 2, ...
        correct = [_corrector(table, past, k, of, variant) for k in range(1, order + 1)]
        past = History(*(column[:, [0, *range(order)]] for column in past))
        correct = highest_order(past, correct)
        # Row i corrects the step that led to it, which for the first one is none.
        xp = namespace(correct)
        correct = xp.concatenate([xp.zeros_like(correct[:1]), correct[:-1]])
        lift = rows["keep"] if of == "x_0" else eps_lift(table)
        return rows | {"correct": correct, "lift": lift}

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        ddim, past = state
        x_0 = denoise(x, row["t"])
        now = x_0 if of == "x_0" else row["of_x"] * x + row["of_x_0"] * x_0
        x_s = row["keep"] * x + row["add"] * x_0
        if corrector:
            # The x of this time, with what the denoiser says here instead of before.
            corrected = ddim
            for weight, then in zip(row["correct"], (now, *past[1:]), strict=True):
                corrected = corrected + weight * (then - past[0])
            x_s = x_s + row["lift"] * (corrected - x)
        ddim = x_s
        for weight, then in zip(row["weights"], past, strict=False):
            x_s = x_s + weight * (then - now)
        return x_s, (ddim, (now, *past)[:order])

    return Solver(plan, step, init=lambda x: (x, (0 * x,) * order))


def _predictor(table: Table, past: History, order: int, of: str, variant: str) -> Any:
    """Return the weights [N, order - 1] of the past values in UniP."""
    if order > 2:  # rho solves R rho = b / B(h): exact for a polynomial
        return exponential_weights(table, past, order, of)
    start, end = step_ends(table, past)
    r = (past.value[:, 1] - start) / (end - start)
    return (0.5 * _gain(table, end - start, of, variant) / r)[:, None]


def _corrector(table: Table, past: History, order: int, of: str, variant: str) -> Any:
    """Return the weights [N, order] of the new value and the past ones in UniC."""
    start, end = step_ends(table, past)
    if order == 1:
        return 0.5 * _gain(table, end - start, of, variant)[:, None]
    xp = namespace(past.value, end)
    nodes = [start[:, None], end[:, None], past.value[:, 1:order]]
    nodes = History(xp.concatenate(nodes, axis=1), past.usable)
    return exponential_weights(table, nodes, order + 1, of)


def _gain(table: Table, step: Any, of: str, variant: str) -> Any:
    """Return the factor [N] of rho: -alpha_s B(-h) for x_0, -sigma_s B(h) for eps."""
    h, scale = (-step, table.alpha) if of == "x_0" else (step, table.sigma)
    return -scale[1:] * (h if variant == "bh1" else namespace(h).expm1(h))
