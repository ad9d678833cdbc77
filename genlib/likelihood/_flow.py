"""The probability-flow ODE as a continuous normalising flow."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib import ode
from genlib.divergence import Divergence, exact_trace
from genlib.noise import Path, check_time, marginal_and_rate
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    Scalar,
    check_start,
    compute_dtype,
    concrete,
    is_concrete,
)


class Flow(NamedTuple):
    """Where the probability flow carries data.

    Attributes:
      x: x at the noisy end [B, ...].
      t: the time of `x`, a scalar.
      log_det: log |dx_T / dx| in nats [B], float32 (float64 for float64 data).
      steps: the number of steps, rejected ones included.
    """

    x: Array
    t: Array
    log_det: Array
    steps: Array


def probability_flow(
    denoise: Denoiser,
    path: Path,
    x: Array,
    *,
    divergence: Divergence | None = None,
    t_start: ArrayLike | None = None,
    t_end: ArrayLike | None = None,
    times: ArrayLike | None = None,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    solver: Any = None,
    max_steps: int = 4096,
) -> Flow:
    """Carry data to noise by the probability-flow ODE, with the volume change.

        dx/dt = v(x, t) = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) x_0_hat,
        d log|dx_t / dx| / dt = div v(x_t, t),

    in the path's own time (arXiv:2011.13456, app. D.2; arXiv:1810.01367). Only the
    denoiser's divergence is estimated; that of the linear part is exact.

    Args:
      denoise: the denoiser; it must not mix examples.
      path: the forward process that `denoise` denoises.
      x: data, that is x at `t_start`, [B, ...].
      divergence: `exact_trace()` by default, or `hutchinson(key)`.
      t_start: where the data is, with sigma > 0: dx/dt is not defined at sigma = 0. By
        default 1e-5 of the path's duration after t_min.
      t_end: where the noise is; path.t_max by default.
      times: instead of both, a fixed grid from noise to data as samplers have it; steps
        are then of the classical Runge-Kutta method and nothing below applies.
      rtol: relative tolerance of a step of the adaptive solver.
      atol: absolute tolerance of a step.
      solver: a diffrax solver, `diffrax.Tsit5()` by default.
      max_steps: stop with an error after so many steps.

    Returns:
      A `Flow`: x at the noisy end with the dtype of `x`, log-determinants and steps.

    Raises:
      ValueError: if x is not a floating batch, a concrete time is outside the path, out
        of order or without noise, `times` come with another end, or the denoiser knows
        nothing about x_0 at the noisy end.
      ImportError: without `times` and without diffrax.
      RuntimeError: if `max_steps` do not suffice.

    >>> from genlib import noise
    >>> shrink = lambda x, t: x * 0.0  # all data at 0: x_t / sigma_t stands still
    >>> grid = jnp.linspace(1.0, 0.5, 9)
    >>> flow = probability_flow(shrink, noise.EDM(), jnp.ones((1, 2)), times=grid)
    >>> round(flow.x[0, 0].item(), 3), round(flow.log_det.item() / 2, 3)
    (2.0, 0.693)
    """
    flow = _solve(
        denoise,
        path,
        x,
        divergence=divergence,
        t_start=t_start,
        t_end=t_end,
        times=times,
        rtol=rtol,
        atol=atol,
        solver=solver,
        max_steps=max_steps,
    )
    return flow._replace(x=flow.x.astype(x.dtype))


def log_prob(
    denoise: Denoiser,
    path: Path,
    x: Array,
    *,
    prior: Callable[[Array], Array] | None = None,
    **settings: Any,
) -> Array:
    """Return log p(x), the density of the model's probability flow, in nats.

        log p(x) = log prior(x_T) + log |dx_T / dx|   (arXiv:2011.13456, app. D.2).

    It is the density of data at the noise level of `t_start`. With the exact q(x_T) as
    prior and an exact denoiser there is no error but the solver's.

    Args:
      denoise: the denoiser; it must not mix examples.
      path: the forward process that `denoise` denoises.
      x: data, that is x at `t_start`, [B, ...].
      prior: log-density of x at the noisy end, `x_T -> [B]`; by default that of
        N(0, sigma_T^2 I).
      **settings: those of `probability_flow`: `divergence`, `t_start`, `t_end` or
        `times`, `rtol`, `atol`, `solver`, `max_steps`.

    Returns:
      Nats [B], in float32 (float64 for float64 data); unbiased with `hutchinson`.

    Raises:
      ValueError: as `probability_flow`, or if `prior` returns another shape.
      ImportError: without `times` and without diffrax.
      RuntimeError: if `max_steps` do not suffice.

    >>> from genlib import noise
    >>> normal = lambda x, t: x / (1 + t**2)  # the data is N(0, I)
    >>> grid = jnp.geomspace(80.0, 1e-3, 100)
    >>> x = jnp.zeros((1, 2))
    >>> round(log_prob(normal, noise.EDM(), x, times=grid).item(), 3)  # -ln 2 pi
    -1.838
    """
    flow = _solve(denoise, path, x, **settings)
    log_prior = (prior or _normal(path(flow.t).sigma))(flow.x)
    if jnp.shape(log_prior) != flow.log_det.shape:
        raise ValueError(
            f"prior must return one number per example, {flow.log_det.shape}; it "
            f"returned {jnp.shape(log_prior)}"
        )
    return log_prior + flow.log_det


def _solve(
    denoise: Denoiser,
    path: Path,
    x: Array,
    *,
    divergence: Divergence | None = None,
    t_start: ArrayLike | None = None,
    t_end: ArrayLike | None = None,
    times: ArrayLike | None = None,
    **adaptive: Any,
) -> Flow:
    """Return the `Flow` of `probability_flow`, whose x is not rounded yet."""
    if x.ndim == 0 or x.size == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be a floating batch [B, ...]; it is {x.dtype}{list(x.shape)}"
        )
    grid = _grid(path, t_start, t_end, times)
    check_start(denoise, grid[-1])
    divergence = exact_trace() if divergence is None else divergence
    dtype = compute_dtype(x.dtype)
    dimension = math.prod(x.shape[1:])

    def field(y: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        (alpha, sigma), rate = marginal_and_rate(path, t)
        drift = rate.sigma / sigma
        pull = rate.alpha - alpha * drift
        x_0, trace = divergence(
            lambda x_t: denoise(x_t.astype(x.dtype), t).astype(dtype), y[0]
        )
        return drift * y[0] + pull * x_0, drift * dimension + pull * trace

    nodes = jnp.asarray(grid, dtype)
    start = x.astype(dtype), jnp.zeros(x.shape[:1], dtype)
    if times is None:
        end, steps = ode.adaptive(field, start, nodes[0], nodes[-1], **adaptive)
    else:
        end = ode.runge_kutta(field, start, nodes)
        steps = jnp.asarray(len(nodes) - 1)
    return Flow(end[0], nodes[-1], end[1], steps)


def _grid(path: Path, t_start: Any, t_end: Any, times: Any) -> Any:
    """Return increasing times, or say what is wrong with them."""
    if times is None:
        first = path.t_min + 1e-5 * (path.t_max - path.t_min)
        grid = [
            first if t_start is None else t_start,
            path.t_max if t_end is None else t_end,
        ]
        names, order = ("t_start", "t_end"), "t_start must come before t_end"
    else:
        if t_start is not None or t_end is not None:
            raise ValueError(
                "times must come without t_start and t_end, which they contain; "
                f"these are {t_start} and {t_end}"
            )
        values = concrete(times)
        grid = jnp.asarray(times) if values is None else values
        if grid.ndim != 1 or len(grid) < 2:
            raise ValueError(
                "times must be a vector of at least two times (one step); "
                f"its shape is {grid.shape}"
            )
        grid = grid[::-1]
        names = ("times", "times")
        order = "times must decrease, from noise to data"
    for t, name in zip((grid[0], grid[-1]), names, strict=True):
        check_time(path, t, name)
    if is_concrete(grid) and not (np.diff(np.asarray(grid, np.float64)) > 0).all():
        raise ValueError(f"{order}; they are {[float(t) for t in grid]}")
    if is_concrete(path, grid[0]):
        with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
            noiseless = bool(path(grid[0]).sigma == 0)
        if noiseless:
            raise ValueError(
                f"{names[0]} must stop where sigma > 0: dx/dt is not defined at "
                f"sigma = 0; sigma is 0 at t = {grid[0]}"
            )
    return grid


def _normal(sigma: Array) -> Callable[[Array], Array]:
    """Return the log-density of N(0, sigma^2 I)."""

    def log_density(x: Array) -> Array:
        terms = jnp.square(x / sigma) + jnp.log(2.0 * math.pi * jnp.square(sigma))
        return -0.5 * terms.reshape(x.shape[0], -1).sum(1)

    return log_density
