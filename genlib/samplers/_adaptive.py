"""Adaptive steps through diffrax: the probability-flow ODE and the reverse SDE."""

import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from genlib import ode
from genlib.noise import Path, check_time, marginal_and_rate
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    Scalar,
    check_start,
    compute_dtype,
    is_concrete,
)


class Adaptive(NamedTuple):
    """The result of an adaptive solver.

    Attributes:
      x: x at `t_end`, with the shape and dtype of the start.
      steps: the number of steps, rejected ones included.
    """

    x: Array
    steps: Array


def adaptive_ode(
    denoise: Denoiser,
    path: Path,
    x: Array,
    *,
    t_start: ArrayLike | None = None,
    t_end: ArrayLike | None = None,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    solver: Any = None,
    max_steps: int = 4096,
) -> Adaptive:
    """Sample by the probability-flow ODE with adaptive steps.

        dx/dt = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) x_0_hat

    in the path's own time (arXiv:2011.13456, sec. 4.3). The batch takes the step of its
    worst example, so that every example meets the tolerance. Call it under `jax.jit`.

    Args:
      denoise: the denoiser.
      path: the forward process that `denoise` denoises.
      x: x at `t_start`, [B, ...], usually from `noise.prior`.
      t_start: where the noise is; path.t_max by default.
      t_end: where to stop, with sigma > 0: dx/dt is not defined at sigma = 0. By
        default 1e-5 of the path's duration after t_min.
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.
      solver: a diffrax solver, `diffrax.Tsit5()` by default.
      max_steps: stop with an error after so many steps.

    Returns:
      An `Adaptive`: x at `t_end`, and the number of steps (of six denoiser calls each
      for the default solver).

    Raises:
      ValueError: if x is not a floating batch, concrete times are outside the path, out
        of order or without noise, or the denoiser knows nothing about x_0 at `t_start`.
      ImportError: without diffrax.
      RuntimeError: if `max_steps` do not suffice.

    >>> from genlib import noise, samplers
    >>> normal = lambda x, t: x / (1 + t**2)  # the data is N(0, I)
    >>> x = jnp.full((1, 1), jnp.sqrt(1 + 80.0**2))
    >>> round(samplers.adaptive_ode(normal, noise.EDM(), x).x.item(), 3)
    1.0
    """
    first, last = _ends(denoise, path, x, t_start, t_end)
    dtype = compute_dtype(x.dtype)

    def velocity(x_t: Array, t: Array) -> Array:
        (alpha, sigma), rate = marginal_and_rate(path, t)
        drift = rate.sigma / sigma
        x_0 = denoise(x_t.astype(x.dtype), t).astype(dtype)
        return drift * x_t + (rate.alpha - alpha * drift) * x_0

    end, steps = ode.adaptive(
        velocity,
        x.astype(dtype),
        first,
        last,
        rtol=rtol,
        atol=atol,
        solver=solver,
        max_steps=max_steps,
    )
    return Adaptive(end.astype(x.dtype), steps)


def adaptive_sde(
    key: Key,
    denoise: Denoiser,
    path: Path,
    x: Array,
    *,
    t_start: ArrayLike | None = None,
    t_end: ArrayLike | None = None,
    rtol: Scalar = 5e-2,
    atol: Scalar = 5e-2,
    solver: Any = None,
    max_steps: int = 4096,
) -> Adaptive:
    """Sample by the reverse-time SDE with adaptive steps.

    With y = x / alpha, s = sigma / alpha and u = -ln s, which is half the log-SNR,

        dy = 2 (x_0_hat - y) du + sqrt(2) s dw

    is the reverse of any path's process (arXiv:2011.13456, eq. 6, in log-SNR). The
    noise depends on u alone, so that Ito and Stratonovich solvers agree. The Brownian
    motion of each example is a virtual Brownian tree (arXiv:2405.06464): a rejected
    step is repeated on the same motion, and smaller tolerances converge to the same
    sample. Call it under `jax.jit`.

    Args:
      key: one typed key, or one for each example [B].
      denoise: the denoiser.
      path: the forward process that `denoise` denoises.
      x: x at `t_start`, [B, ...], usually from `noise.prior`.
      t_start: where the noise is, with alpha > 0: u is infinite at alpha = 0. By
        default path.t_max.
      t_end: where to stop, with sigma > 0; by default 1e-5 of the path's duration after
        t_min.
      rtol: relative tolerance of a step, for y.
      atol: absolute tolerance of a step, for y.
      solver: a diffrax solver for additive noise, `diffrax.ShARK()` by default (strong
        order 1.5).
      max_steps: stop with an error after so many steps.

    Returns:
      An `Adaptive`: x at `t_end`, and the number of steps (of two denoiser calls each
      for the default solver).

    Raises:
      ValueError: as `adaptive_ode`; if alpha = 0 at a concrete `t_start`, or `key` is
        neither one typed key nor one for each example.
      ImportError: without diffrax.
      RuntimeError: if `max_steps` do not suffice.

    >>> from genlib import noise, samplers
    >>> point = lambda x, t: jnp.full_like(x, 3.0)  # all data is at 3
    >>> key, x = jax.random.key(0), jnp.full((2, 1), 80.0)
    >>> samplers.adaptive_sde(key, point, noise.EDM(), x).x.round(1).tolist()
    [[3.0], [3.0]]
    """
    keys = _keys(key, x)
    first, last = _ends(denoise, path, x, t_start, t_end)
    _refuse_zero(path, first, "alpha", "t_start")
    diffrax = ode.import_diffrax()
    import lineax

    dtype = compute_dtype(x.dtype)
    first, last = (jnp.asarray(t, dtype) for t in (first, last))
    u_start, u_end = (0.5 * path.log_snr(t).astype(dtype) for t in (first, last))

    def drift(u: Array, y: Array, args: Any) -> Array:
        t = jnp.clip(path.time_at(2.0 * u), last, first)
        x_t = (path(t).alpha * y).astype(x.dtype)
        return 2.0 * (denoise(x_t, t).astype(dtype) - y)

    def diffusion(u: Array, y: Array, args: Any) -> Any:
        s = jnp.full(x.shape, jnp.exp(-u), dtype)
        return lineax.DiagonalLinearOperator(math.sqrt(2.0) * s)

    # Finer than any step that a solve of so many may take.
    finest = (u_end - u_start) / (16 * max_steps)
    motion = _brownian_type()(u_start, u_end, finest, keys, x.shape[1:])
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(
            diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, motion)
        ),
        diffrax.ShARK() if solver is None else solver,
        u_start,
        u_end,
        None,
        x.astype(dtype) / path(first).alpha,
        stepsize_controller=diffrax.PIDController(rtol, atol, norm=ode.worst_rms),
        max_steps=max_steps,
    )
    end = (path(last).alpha * solution.ys[0]).astype(x.dtype)
    return Adaptive(end, solution.stats["num_steps"])


@functools.cache
def _brownian_type() -> Any:
    """Return a Brownian motion with one tree for each example of a batch."""
    import diffrax

    class BatchedTrees(diffrax.AbstractBrownianPath):
        t0: Array
        t1: Array
        finest: Array
        keys: Array
        shape: tuple[int, ...]
        levy_area: ClassVar = diffrax.SpaceTimeLevyArea

        def evaluate(self, t0, t1=None, left=True, use_levy=False):
            def one(key: Key) -> Any:
                like = jax.ShapeDtypeStruct(self.shape, self.t0.dtype)
                tree = diffrax.VirtualBrownianTree(
                    self.t0, self.t1, self.finest, like, key, self.levy_area
                )
                return tree.evaluate(t0, t1, left, use_levy)

            value = jax.vmap(one)(self.keys)
            if not use_levy:
                return value
            # The length of the interval is the same for all.
            return dataclasses.replace(value, dt=value.dt[0])

    return BatchedTrees


def _ends(
    denoise: Denoiser, path: Path, x: Array, t_start: Any, t_end: Any
) -> tuple[Any, Any]:
    """Return where to start and to stop, or say what is wrong with them."""
    if jnp.ndim(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be a floating batch [B, ...]; it is {x.dtype}{list(jnp.shape(x))}"
        )
    first = path.t_max if t_start is None else t_start
    near = path.t_min + 1e-5 * (path.t_max - path.t_min)
    last = near if t_end is None else t_end
    check_time(path, first, "t_start")
    check_time(path, last, "t_end")
    if is_concrete(first, last) and not first > last:
        raise ValueError(
            f"t_end must come before t_start in time; they are {last} and {first}"
        )
    _refuse_zero(path, last, "sigma", "t_end")
    check_start(denoise, first)
    return first, last


def _refuse_zero(path: Path, t: Any, part: str, name: str) -> None:
    """Raise a ValueError if alpha or sigma is concretely 0 at `t`."""
    if not is_concrete(path, t):
        return
    with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
        zero = bool(getattr(path(t), part) == 0)
    if zero:
        raise ValueError(
            f"{name} must be where {part} > 0; {part} is 0 at t = {t} of "
            f"{type(path).__name__}"
        )


def _keys(key: Key, x: Array) -> Key:
    """Return one key for each example."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(
        key.dtype, jax.dtypes.prng_key
    ):
        raise ValueError("key must be a typed key from jax.random.key")
    if not key.ndim:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    if key.shape != x.shape[:1]:
        raise ValueError(
            f"key must be one key or one for each of {x.shape[0]} examples; "
            f"its shape is {key.shape}"
        )
    return key
