"""EDM's churn: a step that starts by raising the noise."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from genlib.noise import Path
from genlib.samplers._exponential import safe_sqrt
from genlib.samplers._sample import Rows
from genlib.samplers._table import namespace, tabulate, times_at
from genlib.types import Array, Denoiser, Scalar, concrete


class Churn(NamedTuple):
    """How much noise each step adds before it removes more (arXiv:2206.00364, alg. 2).

    For `euler`, `heun`, `midpoint` and `ralston`. With sigma_hat = sigma / alpha (on
    `noise.EDM` it is sigma) a step first goes up to (1 + gamma) sigma_hat,
    gamma = min(s_churn / steps, sqrt(2) - 1), but not beyond the noisy end of the path;
    not if sigma_hat is outside [s_tmin, s_tmax] or infinite.

    Attributes:
      s_churn: total amount, 0 for a deterministic solver.
      s_tmin: smallest sigma_hat that is churned.
      s_tmax: largest sigma_hat that is churned.
      s_noise: standard deviation of the added noise, relative to what the path asks.

    >>> from genlib import samplers
    >>> samplers.heun(Churn(40, 0.05, 50, 1.003)).stochastic
    True
    """

    s_churn: Scalar = 0.0
    s_tmin: Scalar = 0.0
    s_tmax: Scalar = math.inf
    s_noise: Scalar = 1.0


def is_still(churn: Churn | None) -> bool:
    """Return whether nothing is churned, or raise a ValueError for bad settings."""
    if churn is None:
        return True
    values = [concrete(setting) for setting in churn]
    known = [value for value in values if value is not None]
    if not all(value >= 0 for value in known):
        raise ValueError(f"churn must have settings that are at least 0; it is {churn}")
    return values[0] is not None and values[0] == 0


def churned(path: Path, times: Any, churn: Churn) -> tuple[Any, Rows]:
    """Return the times from which steps start after the churn, and the rows of it."""
    xp = namespace(times, path.t_max)
    noisiest = xp.asarray(path.t_max).reshape(1)
    table = tabulate(path, xp.concatenate([noisiest, times[:-1]]))
    _, now = table.steps()
    steps = times.shape[0] - 1
    xp = namespace(now.alpha, *churn)
    gamma = xp.minimum(churn.s_churn / steps, math.sqrt(2.0) - 1.0)
    finite = xp.isfinite(now.log_snr)
    log_snr = xp.where(finite, now.log_snr, 0.0)
    sigma_hat = xp.exp(-0.5 * log_snr)
    raised = xp.maximum(log_snr - 2.0 * xp.log1p(gamma), table.log_snr[0])
    moves = finite & (churn.s_tmin <= sigma_hat) & (sigma_hat <= churn.s_tmax)
    moves = moves & (raised < log_snr)
    start = xp.where(moves, times_at(path, raised), now.t)
    alpha, sigma = tabulate(path, start)[1:3]
    lift = xp.where(moves, alpha / xp.where(finite, now.alpha, 1.0), 1.0)
    added = safe_sqrt(xp, sigma**2 - (lift * now.sigma) ** 2)
    std = xp.where(moves, churn.s_noise * added, 0.0)
    return start, {"lift": lift, "churn": std}


def churning(step: Callable, churn: Churn | None) -> Callable:
    """Return a step that raises the noise first."""
    if is_still(churn):
        return step

    def churning_step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        x = row["lift"] * x + row["churn"] * row["noise"]
        return step(denoise, x, state, row)

    return churning_step
