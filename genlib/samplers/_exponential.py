"""Solvers that integrate in log-SNR: exact for a constant prediction of x_0.

Written for x itself in (alpha, sigma), so that a start at alpha = 0 and an end at
sigma = 0 are finite.
"""

import math
from typing import Any

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
    deterministic = check_eta(eta)

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        std = eta * posterior_std(*table.steps())
        rows = rows_beside_noise(table, std)
        return rows if deterministic else rows | noise_rows(table, std)

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
        std = posterior_std(*table.steps())
        rows = rows_beside_noise(table, std)
        if variance == "large":
            xp = namespace(std)
            # q(x_t | x_s) has variance sigma_t^2 (1 - SNR_t / SNR_s).
            has_noise = table.sigma[1:] > 0
            scale = table.sigma[:-1] / xp.where(has_noise, table.sigma[1:], 1.0)
            std = xp.where(has_noise, std * scale, 0.0)
        return rows | noise_rows(table, std)

    return Solver(plan, affine_step, draws=1)


def check_eta(eta: Scalar, most: float = 1.0, name: str = "eta") -> bool:
    """Return whether eta is known to be 0, or raise a ValueError if it is no eta."""
    value = concrete(eta)
    if value is not None and not 0 <= value <= most:
        what = f"within [0, {most:g}]" if most < math.inf else "at least 0"
        raise ValueError(f"{name} must be {what}; it is {eta}")
    return value is not None and value == 0


def affine_rows(table: Table, keep: Any) -> Rows:
    """Return the rows of x_s = keep x_t + (alpha_s - keep alpha_t) x_0."""
    add = table.alpha[1:] - keep * table.alpha[:-1]
    return {"t": table.t[:-1], "keep": keep, "add": add}


def rows_beside_noise(table: Table, std: Any) -> Rows:
    """Return the rows of a step that leaves room for noise of a standard deviation."""
    left = safe_sqrt(namespace(std), table.sigma[1:] ** 2 - std**2)
    return affine_rows(table, left / table.sigma[:-1])


def noise_rows(table: Table, std: Any) -> Rows:
    """Return the rows of noise with a standard deviation, over the step's log-SNRs."""
    log_snr = table.log_snr
    clock = namespace(log_snr).stack([log_snr[:-1], log_snr[1:]], axis=1)
    return {"std": std, "clock": clock}


def affine_step(denoise: Denoiser, x: Array, state: Any, row: Rows):
    """Return keep x + add x_0, and std noise where the rows have any."""
    x = row["keep"] * x + row["add"] * denoise(x, row["t"])
    if "std" in row:
        x = x + row["std"] * row["noise"]
    return x, state


def posterior_std(start: Table, end: Table) -> Any:
    """Return sigma_s sqrt(1 - SNR_t / SNR_s), the posterior's standard deviation."""
    root = start.alpha * end.sigma / (end.alpha * start.sigma)
    return end.sigma * safe_sqrt(namespace(root), 1.0 - root**2)


def safe_sqrt(xp: Any, x: Any) -> Any:
    """Square root that is 0, with derivative 0, where rounding left x <= 0."""
    positive = x > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, x, 1.0)), 0.0)
