"""Ancestral solvers: a deterministic step to less noise than wanted, and the rest new.

k-diffusion defines them for x / alpha as a function of sigma / alpha. They are written
for x itself here, finite at alpha = 0 and at sigma = 0. A step from t to s goes down to
the noise sqrt(sigma_s^2 - std^2) and adds noise of std = eta sigma_s sqrt(1 - SNR_t /
SNR_s), as `ddim(eta)` does.
"""

import itertools
from typing import Any

import numpy as np

from genlib.noise import Path
from genlib.samplers._exponential import (
    affine_rows,
    check_eta,
    ddim,
    noise_rows,
    posterior_std,
    safe_sqrt,
)
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate, times_at
from genlib.types import Array, Denoiser, Scalar, concrete


def euler_ancestral(eta: Scalar = 1.0) -> Solver:
    """Euler's method in sigma / alpha with ancestral noise: it is `ddim(eta)`.

    For x_hat = x / alpha a step of Euler's in sigma_hat = sigma / alpha is DDIM's:
    x_hat_s = x_0 + sigma_down / sigma_hat_t (x_hat_t - x_0) + sigma_up z. With eta = 1
    it is the posterior, DDPM.

    Args:
      eta: 0 is deterministic; within [0, 1].

    Returns:
      A solver with one denoiser call a step, stochastic unless `eta` is 0.

    Raises:
      ValueError: if a concrete `eta` is outside [0, 1].

    >>> euler_ancestral().stochastic
    True
    """
    return ddim(eta)


def dpm2() -> Solver:
    """Midpoint method in sigma / alpha, after k-diffusion's DPM2 (arXiv:2206.00364).

    x_hat' = (x_hat - x_0) / sigma_hat, taken where sigma_hat is the geometric mean of
    both ends, for x_hat = x / alpha and sigma_hat = sigma / alpha. A step from alpha =
    0 or to sigma = 0 is DDIM's.

    Returns:
      A deterministic solver with two denoiser calls a step, one next to alpha = 0 or
      sigma = 0.

    >>> dpm2().stochastic
    False
    """
    return _two_calls(0.0, in_sigma=True)


def dpm2_ancestral(eta: Scalar = 1.0) -> Solver:
    """`dpm2` with ancestral noise, as of k-diffusion.

    Args:
      eta: 0 is `dpm2`; within [0, 1].

    Returns:
      A solver with two denoiser calls a step, stochastic unless `eta` is 0; one call
      next to alpha = 0 or sigma = 0.

    Raises:
      ValueError: if a concrete `eta` is outside [0, 1].

    >>> dpm2_ancestral().stochastic
    True
    """
    return _two_calls(eta, in_sigma=True)


def dpmpp_2s_ancestral(eta: Scalar = 1.0) -> Solver:
    """DPM-Solver++(2S) with ancestral noise, as of k-diffusion (arXiv:2211.01095).

    A step of DDIM's with the prediction from half of its way in log-SNR.

    Args:
      eta: 0 is `dpmpp_2s`; within [0, 1].

    Returns:
      A solver with two denoiser calls a step, stochastic unless `eta` is 0; one call
      next to alpha = 0 or sigma = 0.

    Raises:
      ValueError: if a concrete `eta` is outside [0, 1].

    >>> dpmpp_2s_ancestral(0.0).stochastic
    False
    """
    return _two_calls(eta)


def dpmpp_sde(eta: Scalar = 1.0, r: Scalar = 0.5) -> Solver:
    """DPM-Solver++ for the reverse SDE, two calls a step, as of k-diffusion.

    A step of `ddim(eta)` to the fraction r of the log-SNR, and one from the start again
    all the way, with x_0 (1 - 1 / (2 r)) + x_0' / (2 r) (arXiv:2211.01095). The noises
    of both are increments of one Brownian path in the SNR, so that the second is the
    first and an independent draw for the rest.

    Args:
      eta: 0 is `dpmpp_2s` for r = 1/2; within [0, 1].
      r: where in the step the denoiser is called again, within (0, 1].

    Returns:
      A solver with two denoiser calls and two draws of noise a step, deterministic if
      `eta` is 0; one call next to alpha = 0 or sigma = 0.

    Raises:
      ValueError: if a concrete `eta` is outside [0, 1], or `r` outside (0, 1].

    >>> dpmpp_sde().draws, dpmpp_sde(0.0).draws
    (2, 0)
    """
    value = concrete(r)
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"r must be within (0, 1]; it is {r}")
    return _two_calls(eta, r, sde=True)


def _two_calls(
    eta: Scalar, r: Scalar = 0.5, *, in_sigma: bool = False, sde: bool = False
) -> Solver:
    """Return a solver that calls the denoiser again within the step.

    Args:
      eta: how much of the posterior's noise is added.
      r: where the second call is, as a fraction of the step down in log-SNR.
      in_sigma: weigh the second prediction as a midpoint method in sigma / alpha does,
        not by 1 / (2 r).
      sde: let the way to the second call have its noise as well, and lead to the end of
        the step instead of where the deterministic part goes.
    """
    deterministic = check_eta(eta)

    def plan(path: Path, times: Any) -> Rows | list[Rows]:
        table = tabulate(path, times)
        start, end = table.steps()
        std = eta * posterior_std(start, end)
        xp = namespace(table.alpha, std, r)
        down = safe_sqrt(xp, end.sigma**2 - std**2)
        goal = end.log_snr
        if not sde:
            goal = xp.where(down > 0, end.alpha / xp.where(down > 0, down, 1.0), np.inf)
            goal = 2.0 * xp.log(goal)
        twice, middle, h = _middle(path, start, goal, r)
        rows = affine_rows(table, down / start.sigma)
        add = rows.pop("add")
        second = add / (2.0 * r)
        if in_sigma:
            hat = start.sigma / xp.where(twice, start.alpha, 1.0)
            second = (end.alpha * hat - down) * middle.alpha / middle.sigma
        second = xp.where(twice, second, 0.0)
        rows |= {"first": add - second, "second": second}
        if not deterministic:
            rows |= noise_rows(table, std)
        std_inner = 0.0
        if sde and not deterministic:
            there = Table(*(xp.where(twice, *c) for c in zip(middle, end, strict=True)))
            std_inner = xp.where(twice, eta * posterior_std(start, there), 0.0)
            # The inner noise is the first part of the whole one, by their variances.
            part = xp.where(twice, xp.expm1(r * h) / xp.expm1(h), 1.0)
            parts = safe_sqrt(xp, xp.stack([part, 1.0 - part], axis=1))
            clock = xp.stack([start.log_snr, there.log_snr, end.log_snr], axis=1)
            rows |= {"std": std[:, None] * parts, "clock": clock}
            rows["std_inner"] = std_inner
        inner = safe_sqrt(xp, middle.sigma**2 - std_inner**2) / start.sigma
        rows |= {"keep_inner": inner, "add_inner": middle.alpha - inner * start.alpha}
        rows["t"] = xp.stack([start.t, middle.t], axis=1)
        return _by_calls(rows, twice)

    draws = 2 if sde else 1
    return Solver(plan, _two_call_step, draws=0 if deterministic else draws)


def _two_call_step(denoise: Denoiser, x: Array, state: Any, row: Rows):
    x_0 = denoise(x, row["t"][0])
    x_s = row["keep"] * x + row["first"] * x_0
    if row["t"].shape[0] == 2:
        inner = row["keep_inner"] * x + row["add_inner"] * x_0
        if "std_inner" in row:
            inner = inner + row["std_inner"] * row["noise"][0]
        x_s = x_s + row["second"] * denoise(inner, row["t"][1])
    if "std_inner" in row:
        drawn, rest = row["noise"]
        x_s = x_s + row["std"][0] * drawn + row["std"][1] * rest
    elif "std" in row:
        x_s = x_s + row["std"] * row["noise"]
    return x_s, state


def _middle(path: Path, start: Table, goal: Any, r: Scalar) -> tuple[Any, Table, Any]:
    """Return where there is a second call, its table, and the step's log-SNR.

    Where there is none, next to an infinite log-SNR, the start stands in for it.
    """
    xp = namespace(start.log_snr, goal, r)
    twice = xp.isfinite(start.log_snr) & xp.isfinite(goal)
    begin = xp.where(twice, start.log_snr, 0.0)
    h = xp.where(twice, goal, 1.0) - begin
    middle = tabulate(path, times_at(path, begin + r * h))
    xp = namespace(middle.t, twice)
    pairs = zip(middle, start, strict=True)
    return twice, Table(*(xp.where(twice, *pair) for pair in pairs)), h


def _by_calls(rows: Rows, twice: Any) -> Rows | list[Rows]:
    """Return a segment for every run of steps that call the denoiser equally often."""
    if not isinstance(twice, np.ndarray):
        return rows
    edges = [0, *(np.flatnonzero(np.diff(twice)) + 1), len(twice)]
    segments = [
        {name: column[a:b] for name, column in rows.items()}
        for a, b in itertools.pairwise(edges)
    ]
    for segment, first in zip(segments, edges, strict=False):
        if not twice[first]:
            segment["t"] = segment["t"][:, :1]
    return segments
