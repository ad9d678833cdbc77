"""The one sampling loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.noise import Path, check_time
from genlib.samplers._brownian import Brownian
from genlib.samplers._noise import Rows, noise_stream
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    StatefulDenoiser,
    check_start,
    compute_dtype,
    concrete,
)


class Solver(NamedTuple):
    """A solver: a plan made before tracing, and a step that adds arrays up.

    A step that calls the denoiser twice has times [rows, 2] and reads `row["t"][0]` and
    `row["t"][1]`. It calls it outside of any inner `lax` loop or branch.

    Attributes:
      plan: `(path, times) -> rows`, a dict of tables with one row for each step between
        two times of the grid. `rows["t"]` holds the time (or times, [rows, calls]) at
        which the step calls the denoiser. Where some steps call it less often than
        others, a list of such dicts, which are run one after another. If its noise is
        that of the reverse SDE, `rows["clock"]` [rows, draws + 1] are the log-SNRs
        between which its draws are increments, for `samplers.brownian`.
      step: `(denoise, x, state, row) -> (x, state)`. If the solver is stochastic,
        `row["noise"]` is standard normal noise: like x for one draw a step, or
        [draws, *x.shape].
      init: `x -> state`, what the solver remembers between rows.
      draws: how many draws of noise `step` wants; 0 is a deterministic solver.

    All of DDIM:

    >>> def plan(path, times):
    ...     t, alpha, sigma = tabulate(path, times)[:3]
    ...     keep = sigma[1:] / sigma[:-1]
    ...     return dict(t=t[:-1], keep=keep, add=alpha[1:] - keep * alpha[:-1])
    >>> def step(denoise, x, state, row):
    ...     return row["keep"] * x + row["add"] * denoise(x, row["t"]), state
    >>> from genlib import noise
    >>> from genlib.samplers import sample, tabulate
    >>> ones = lambda x, t: jnp.ones_like(x)
    >>> sample(Solver(plan, step), ones, noise.Cosine(), [1.0, 0.5, 0.0], jnp.zeros(1))
    Array([1.], dtype=float32)
    """

    plan: Callable[[Path, Any], Rows | list[Rows]]
    step: Callable[[Denoiser, Array, Any, Rows], tuple[Array, Any]]
    init: Callable[[Array], Any] = lambda x: ()
    draws: int = 0

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return self.draws > 0


def sample(
    solver: Solver,
    denoise: Denoiser | StatefulDenoiser,
    path: Path,
    times: ArrayLike,
    x: Array,
    key: Key | None = None,
    *,
    noise: Callable[[Array], Array] | Brownian | ArrayLike | None = None,
    save: Callable[[Array], Any] | None = None,
) -> Any:
    """Carry x from times[0] to times[-1] with a solver, under `lax.scan`.

    Coefficients are float64 tables made before tracing, applied in float32 (float64 for
    float64 x); the denoiser sees x in its own dtype. Noise is drawn for each example
    from a key of its own, so that a sample does not change with the batch around it.

    Args:
      solver: for instance `samplers.dpmpp_2m()`.
      denoise: `(x_t, t) -> x_0`, called with a scalar t; a `types.StatefulDenoiser`
        carries its memory from call to call.
      path: the path on which `denoise` denoises.
      times: decreasing times [N + 1] within the path, for N steps.
      x: x at times[0], [B, ...], usually from `noise.prior`.
      key: one typed key, or one for each example [B]; only stochastic solvers use it.
      noise: instead of a key, the standard normal noise itself: an array [N, B, ...],
        or a function from the index of the step to such an array [B, ...]. Solvers with
        more than one draw a step want [N, draws, B, ...] and [draws, B, ...]. Or
        `samplers.brownian(key)`, the same path for every grid.
      save: maps x after each step to what should be kept of it.

    Returns:
      x at times[-1], with the shape and dtype of `x`; with `save` the pair
      (x, saved), where saved has a leading axis of N steps.

    Raises:
      ValueError: if x is not a floating batch, `times` is not a decreasing vector of at
        least two times within the path, a stochastic solver has neither key nor noise
        (or both), or the denoiser knows nothing about x_0 at times[0].

    >>> from genlib import noise, samplers
    >>> path = noise.EDM()
    >>> times, x = samplers.karras(path, 5), jnp.full((1, 2), 80.0)
    >>> denoise = lambda x, t: jnp.ones_like(x)
    >>> samplers.sample(samplers.heun(), denoise, path, times, x)
    Array([[1., 1.]], dtype=float32)
    """
    if jnp.ndim(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be a floating batch [B, ...]; it is {x.dtype}{list(jnp.shape(x))}"
        )
    x = jnp.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    grid = check_times(path, times)
    check_start(denoise, grid[0])

    dtype = compute_dtype(x.dtype)
    segments = _segments(solver, path, grid)
    stream = None
    if solver.stochastic:
        stream = noise_stream(key, noise, x, segments, solver.draws, dtype)

    def body(carry, row):
        x_t, state, memory, drawn = carry
        if stream is not None:
            noise, drawn = stream.draw(drawn, row)
            row = row | {"noise": noise}

        def call(x_t: Array, t: Array) -> Array:
            nonlocal memory
            x_in = x_t.astype(x.dtype)
            if isinstance(denoise, StatefulDenoiser):
                x_0, memory = denoise.apply(x_in, t, memory)
            else:
                x_0 = denoise(x_in, t)
            return x_0.astype(dtype)

        x_t, state = solver.step(call, x_t, state, row)
        kept = None if save is None else save(x_t.astype(x.dtype))
        return (x_t, state, memory, drawn), kept

    start = x.astype(dtype)
    memory = denoise.init(start) if isinstance(denoise, StatefulDenoiser) else ()
    carry = (start, solver.init(start), memory, () if stream is None else stream.state)
    saved, done = [], 0
    for segment in segments:
        rows = {name: _cast(column, dtype) for name, column in segment.items()}
        steps = len(rows["t"])
        if stream is not None:
            rows["noise"] = stream.column[done : done + steps]
        carry, kept = jax.lax.scan(body, carry, rows)
        saved, done = [*saved, kept], done + steps
    end = carry[0].astype(x.dtype)
    if save is None:
        return end
    return end, jax.tree.map(lambda *parts: jnp.concatenate(parts), *saved)


def nfe(solver: Solver, path: Path, times: ArrayLike) -> int:
    """Return how many times a solver calls the denoiser for every sample.

    >>> from genlib import noise, samplers
    >>> path = noise.EDM()
    >>> nfe(samplers.heun(), path, samplers.karras(path, 18))
    35
    """
    segments = _segments(solver, path, check_times(path, times))
    return sum(int(np.size(rows["t"])) for rows in segments)


def _segments(solver: Solver, path: Path, grid: Any) -> list[Rows]:
    """Return the rows of a plan as a list of segments, none of them empty."""
    rows = solver.plan(path, grid)
    rows = rows if isinstance(rows, list) else [rows]
    return [segment for segment in rows if len(segment["t"])]


def _cast(column: Any, dtype: Any) -> Array:
    column = jnp.asarray(column)
    floating = jnp.issubdtype(column.dtype, jnp.floating)
    return column.astype(dtype) if floating else column


def check_times(path: Path, times: ArrayLike) -> Any:
    """Return a grid as an array, or raise a ValueError that says what is wrong."""
    values = concrete(times)
    grid: Any = jnp.asarray(times) if values is None else values.astype(np.float64)
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(
            "times must be a vector of at least two times (one step); "
            f"its shape is {grid.shape}"
        )
    check_time(path, grid, "times")
    end = concrete(path.t_max)
    if values is not None and end is not None:
        grid = np.minimum(grid, end)  # undo a rounding past the end
    if values is not None and not (np.diff(grid) < 0).all():
        raise ValueError(
            f"times must decrease, from noise to data; they are {values.tolist()}"
        )
    return grid
