"""Solvers for few steps: consistency models, and aDDIM.

A consistency function f(x_t, t) is a denoiser as any other, with its boundary condition
inside: what it returns lies on the probability-flow trajectory of x_t, near its end.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from genlib.noise import Path
from genlib.samplers._exponential import affine_rows, affine_step, check_eta, safe_sqrt
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import namespace, tabulate
from genlib.types import Array, Denoiser, Scalar


def consistency() -> Solver:
    """Multistep consistency sampling: jump to the data, add noise, again.

    (arXiv:2303.01469, alg. 1.) With e the end of the grid and f the consistency
    function, x_s = (alpha_s / alpha_e) f(x_t, t)
                    + sqrt(sigma_s^2 - (alpha_s sigma_e / alpha_e)^2) z.
    The last step adds no noise.

    Returns:
      A stochastic solver with one denoiser call a step.

    >>> consistency().stochastic
    True
    """

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        xp = namespace(table.alpha)
        add = table.alpha[1:] / table.alpha[-1]
        std = safe_sqrt(xp, table.sigma[1:] ** 2 - (add * table.sigma[-1]) ** 2)
        return {"t": table.t[:-1], "keep": 0.0 * add, "add": add, "std": std}

    return Solver(plan, affine_step, draws=1)


def lcm() -> Solver:
    """Latent consistency sampling (arXiv:2310.04378, alg. 3): it is `consistency()`.

    x_s = alpha_s f(x_t, t) + sigma_s z on a grid that ends at sigma = 0, best that of
    `distilled`. A model trained by `diffusers` wants its boundary condition around the
    denoiser: f = c_skip x + c_out x_0 with c_skip = 1 / (1 + u^2), c_out =
    u / sqrt(1 + u^2) and u = 20 (t - 1).

    Returns:
      A stochastic solver with one denoiser call a step.

    >>> lcm().stochastic
    True
    """
    return consistency()


def tcd(gamma: Scalar = 0.3) -> Solver:
    """Strategic stochastic sampling of trajectory consistency (arXiv:2402.19159).

    A step of DDIM's goes from t beyond s, to u = (1 - gamma) s + gamma t_min, and noise
    is added to come back to s: x_s ~ q(x_s | x_u). The last step stops at s.

    Args:
      gamma: how far beyond: 0 is DDIM, 1 is `lcm`; within [0, 1].

    Returns:
      A solver with one denoiser call a step, stochastic unless `gamma` is 0.

    Raises:
      ValueError: if a concrete `gamma` is outside [0, 1].

    >>> tcd(0.0).stochastic, tcd().stochastic
    (False, True)
    """
    deterministic = check_eta(gamma, name="gamma")

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        start, end = table.steps()
        last = np.arange(len(times) - 1) == len(times) - 2
        xp = namespace(times, gamma)
        beyond = (1.0 - gamma) * times[1:] + gamma * path.t_min
        beyond = tabulate(path, xp.where(last, times[1:], beyond))
        xp = namespace(table.alpha, beyond.alpha)
        back = end.alpha / beyond.alpha
        keep = back * beyond.sigma / start.sigma
        rows = affine_rows(table, keep)
        if deterministic:
            return rows
        std = safe_sqrt(xp, end.sigma**2 - (back * beyond.sigma) ** 2)
        return rows | {"std": xp.where(last, 0.0, std)}

    return Solver(plan, affine_step, draws=0 if deterministic else 1)


def addim(x_variance: Scalar = 0.1) -> Solver:
    """Adjusted DDIM, with the noise that a mean over x_0 lacks (arXiv:2403.06807).

    x_s = alpha_s x_0 + sqrt(sigma_s^2 + d v (alpha_s - alpha_t sigma_s / sigma_t)^2
    / |eps|^2) eps, where v = x_variance / (2 + SNR_t) stands for the variance of x_0
    given x_t, eps = (x_t - alpha_t x_0) / sigma_t and d is its size, for each example.
    A step to sigma = 0 returns x_0. It converges to the probability-flow ODE.

    Args:
      x_variance: 0 is DDIM; at least 0.

    Returns:
      A deterministic solver with one denoiser call a step.

    Raises:
      ValueError: if a concrete `x_variance` is negative.

    >>> addim().stochastic
    False
    """
    check_eta(x_variance, np.inf, "x_variance")

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        start, end = table.steps()
        keep = end.sigma / start.sigma
        rows = affine_rows(table, keep)
        xp = namespace(table.alpha)
        snr = (start.alpha / start.sigma) ** 2
        lack = x_variance / (2.0 + snr) * rows["add"] ** 2
        return {
            "t": start.t,
            "of_x": 1.0 / start.sigma,
            "of_x_0": -start.alpha / start.sigma,
            "alpha": end.alpha,
            "variance": end.sigma**2,
            "lack": xp.where(end.sigma > 0, 1.0, 0.0) * lack,
        }

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        x_0 = denoise(x, row["t"])
        eps = row["of_x"] * x + row["of_x_0"] * x_0
        square = jnp.mean(eps**2, axis=tuple(range(1, x.ndim)), keepdims=True)
        positive = square > 0
        extra = jnp.where(positive, row["lack"] / jnp.where(positive, square, 1.0), 0.0)
        scale = safe_sqrt(jnp, row["variance"] + extra)
        return row["alpha"] * x_0 + scale * eps, state

    return Solver(plan, step)
