"""From data back to noise: DDIM inversion and SDEdit."""

from typing import Any

import jax

from genlib.noise import Path, perturb
from genlib.samplers._sample import Rows, Solver, check_times
from genlib.samplers._table import namespace, tabulate
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    compute_dtype,
    concrete,
    example_keys,
)


def ddim_inversion(iterations: int = 1) -> Solver:
    """Undo the steps of `ddim()`: from x at times[-1] to x at times[0].

    `sample(ddim_inversion(), denoise, path, times, x)` takes the grid of the sampler
    that it inverts, noise first, but starts from data. A step of DDIM from t to s is
    x_s = keep x_t + add D(x_t, t); its inverse solves that for x_t by

        x <- x - (keep x + add D(x, t) - x_s) / slope,
        slope = (alpha_s alpha_t + sigma_s sigma_t) / (alpha_t^2 + sigma_t^2),

    from x = x_s, which holds v constant (and is exact at once for data N(0, 1)). One
    iteration is the usual inversion of first order (arXiv:2010.02502, sec. 4.3); the
    fixed point is the exact inverse (arXiv:2309.04907). It converges where steps are
    not too long; from sigma = 0 the inverse of a step that merges samples is unstable.

    Args:
      iterations: denoiser calls a step, at least 1.

    Returns:
      A deterministic solver.

    Raises:
      ValueError: if `iterations` is not a positive integer; when used, if one step goes
        from alpha = 0 to sigma = 0, which has no inverse.

    >>> from genlib import noise, samplers
    >>> path, x = noise.Cosine(), jax.numpy.ones((1, 1))
    >>> times = samplers.uniform(path, 4)
    >>> denoise = lambda x, t: path(t).alpha * x  # data N(0, 1)
    >>> x_T = samplers.sample(ddim_inversion(), denoise, path, times, x)
    >>> samplers.sample(samplers.ddim(), denoise, path, times, x_T).round(4)
    Array([[1.]], dtype=float32)
    """
    if (
        isinstance(iterations, bool)
        or not isinstance(iterations, int)
        or iterations < 1
    ):
        raise ValueError(f"iterations must be a positive integer; it is {iterations!r}")

    def plan(path: Path, times: Any) -> Rows:
        start, end = tabulate(path, times).steps()
        xp = namespace(start.alpha)
        product = end.alpha * start.alpha + end.sigma * start.sigma
        lost = concrete(product == 0)
        if lost is not None and lost.any():
            raise ValueError(
                "times must not go from alpha = 0 to sigma = 0 in one step, which has "
                "no inverse"
            )
        inverse = (start.alpha**2 + start.sigma**2) / product
        keep = end.sigma / start.sigma
        rows = {
            "t": xp.repeat(start.t[:, None], iterations, axis=1),
            "of_end": inverse,
            "of_x": 1.0 - inverse * keep,
            "of_x_0": -inverse * (end.alpha - keep * start.alpha),
        }
        return {name: column[::-1] for name, column in rows.items()}

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        x_s = x
        for i in range(iterations):
            x_0 = denoise(x, row["t"][i])
            x = row["of_end"] * x_s + row["of_x"] * x + row["of_x_0"] * x_0
        return x, state

    return Solver(plan, step)


def sdedit(
    key: Key, path: Path, times: ArrayLike, x_0: Array, strength: float
) -> tuple[Array, Any]:
    """Start sampling from noisy data: SDEdit (arXiv:2108.01073).

    x_t = alpha_t x_0 + sigma_t eps at the time t from which a fraction `strength` of
    the steps of a grid are left. `sample(solver, denoise, path, times, x_t)` with the
    times returned gives data near to x_0: the nearer, the less is left.

    Args:
      key: one typed key, or one for each example [B].
      path: the path to sample on.
      times: decreasing times [N + 1], noise first.
      x_0: what to edit, [B, ...].
      strength: within (0, 1]; 1 takes all steps. round(strength N) are left.

    Returns:
      x_t with the shape and dtype of `x_0`, and the last times of the grid, t first.

    Raises:
      ValueError: if `strength` is outside (0, 1] or leaves no step, `times` is no grid
        of the path, or `key` is not one or B typed keys.

    >>> from genlib import noise, samplers
    >>> path, key = noise.Rectified(), jax.random.key(0)
    >>> x_0 = jax.numpy.ones((2, 3))
    >>> x_t, times = sdedit(key, path, samplers.uniform(path, 4), x_0, strength=0.5)
    >>> x_t.shape, times
    ((2, 3), array([0.5 , 0.25, 0.  ]))
    """
    grid = check_times(path, times)
    steps = len(grid) - 1
    if not 0 < strength <= 1 or round(strength * steps) < 1:
        raise ValueError(
            f"strength must be within (0, 1] and leave at least one of {steps} steps; "
            f"it is {strength}"
        )
    grid = grid[steps - round(strength * steps) :]
    dtype = compute_dtype(x_0.dtype)
    draw = lambda key: jax.random.normal(key, x_0.shape[1:], dtype)
    eps = jax.vmap(draw)(example_keys(key, x_0))
    return perturb(path, x_0, eps, grid[0]), grid
