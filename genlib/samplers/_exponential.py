"""Solvers that integrate in log-SNR: exact for a constant prediction of x_0.

Written for x itself in (alpha, sigma), so that a start at alpha = 0 and an end at
sigma = 0 are finite.
"""

from typing import Any

import numpy as np

from genlib.noise import Path
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate
from genlib.types import Array, Denoiser, Scalar, concrete


def ddim(eta: Scalar = 0.0) -> Solver:
    """Denoising diffusion implicit models, first order (arXiv:2010.02502, eq. 12, 16).

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z, where x_0 and
    eps = (x_t - alpha_t x_0) / sigma_t come from the denoiser and
    std = eta sigma_s sqrt(1 - SNR_t / SNR_s) is eta times the posterior's.

    Args:
      eta: 0 is deterministic (the probability-flow ODE), 1 is DDPM; within [0, 1]. A
        traced eta can be swept under one trace, and then noise is drawn even at 0.

    Returns:
      A solver with one denoiser call a step.

    Raises:
      ValueError: if a concrete `eta` is outside [0, 1].

    >>> ddim().stochastic, ddim(0.5).stochastic
    (False, True)
    """
    value = concrete(eta)
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"eta must be within [0, 1]; it is {eta}")
    deterministic = value is not None and value == 0

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        std = eta * _posterior_std(table)
        rows = _rows_beside_noise(table, std)
        return rows if deterministic else rows | {"std": std}

    return Solver(plan, affine_step, draws=0 if deterministic else 1)


def ddpm(variance: str = "small") -> Solver:
    """Ancestral sampling of the reverse chain (arXiv:2006.11239, eq. 6-7, alg. 2).

    x_s is drawn from q(x_s | x_t, x_0 = denoised), with the posterior's own variance
    ("small") or that of q(x_t | x_s) ("large"). No noise is added in a step to
    sigma_s = 0. With "small" it equals `ddim(eta=1)`.

    Args:
      variance: "small" or "large".

    Returns:
      A stochastic solver with one denoiser call a step.

    Raises:
      ValueError: if `variance` is neither.

    >>> ddpm("medium")
    Traceback (most recent call last):
    ValueError: variance must be 'small' or 'large'; it is 'medium'
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance must be 'small' or 'large'; it is {variance!r}")

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        std = _posterior_std(table)
        rows = _rows_beside_noise(table, std)
        if variance == "large":
            xp = namespace(std)
            # q(x_t | x_s) has variance sigma_t^2 (1 - SNR_t / SNR_s).
            has_noise = table.sigma[1:] > 0
            scale = table.sigma[:-1] / xp.where(has_noise, table.sigma[1:], 1.0)
            std = xp.where(has_noise, std * scale, 0.0)
        return rows | {"std": std}

    return Solver(plan, affine_step, draws=1)


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
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(
            f"solver_type must be 'midpoint' or 'heun'; it is {solver_type!r}"
        )

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        xp = namespace(table.alpha)
        rows = _affine_rows(table, table.sigma[1:] / table.sigma[:-1])
        second = (table.sigma[1:] > 0)[1:] & (table.alpha[:-2] > 0)
        if lower_order_final:
            second = second & (np.arange(second.shape[0]) < second.shape[0] - 1)
        # Where the order is 1 some of these steps are infinite; 1 stands in for them.
        log_snr = table.log_snr
        h = xp.where(second, 0.5 * _difference(xp, log_snr[1:], second), 1.0)
        h_previous = xp.where(second, 0.5 * _difference(xp, log_snr[:-1], second), 1.0)
        if solver_type == "midpoint":
            weight = 0.5 * rows["add"][1:]
        else:
            weight = table.alpha[2:] * (1.0 + xp.expm1(-h) / h)
        slope = xp.where(second, weight * h / h_previous, 0.0)
        slope = xp.concatenate([xp.zeros_like(table.t[:1]), slope])
        return {
            "t": rows["t"],
            "keep": rows["keep"],
            "now": rows["add"] + slope,
            "before": -slope,
        }

    def step(denoise: Denoiser, x: Array, before: Array, row: Rows):
        now = denoise(x, row["t"])
        x = row["keep"] * x + row["now"] * now + row["before"] * before
        return x, now

    return Solver(plan, step, init=lambda x: 0 * x)


def _affine_rows(table: Table, keep: Any) -> Rows:
    """Return the rows of x_s = keep x_t + (alpha_s - keep alpha_t) x_0."""
    add = table.alpha[1:] - keep * table.alpha[:-1]
    return {"t": table.t[:-1], "keep": keep, "add": add}


def _rows_beside_noise(table: Table, std: Any) -> Rows:
    """Return the rows of a step that leaves room for noise of a standard deviation."""
    left = _safe_sqrt(namespace(std), table.sigma[1:] ** 2 - std**2)
    return _affine_rows(table, left / table.sigma[:-1])


def affine_step(denoise: Denoiser, x: Array, state: Any, row: Rows):
    """Return keep x + add x_0, and std noise where the rows have any."""
    x = row["keep"] * x + row["add"] * denoise(x, row["t"])
    if "std" in row:
        x = x + row["std"] * row["noise"]
    return x, state


def _posterior_std(table: Table) -> Any:
    """Return sigma_s sqrt(1 - SNR_t / SNR_s), the posterior's standard deviation."""
    xp = namespace(table.alpha)
    root = table.alpha[:-1] * table.sigma[1:] / (table.alpha[1:] * table.sigma[:-1])
    return table.sigma[1:] * _safe_sqrt(xp, 1.0 - root**2)


def _safe_sqrt(xp: Any, x: Any) -> Any:
    """Square root that is 0, with derivative 0, where rounding left x <= 0."""
    positive = x > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, x, 1.0)), 0.0)


def _difference(xp: Any, x: Any, finite: Any) -> Any:
    """Return x[1:] - x[:-1] where that is finite, else 1."""
    later, earlier = xp.where(finite, x[1:], 1.0), xp.where(finite, x[:-1], 0.0)
    return later - earlier
