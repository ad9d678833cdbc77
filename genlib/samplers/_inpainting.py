"""Solvers that keep what is known of an image."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.noise import Path
from genlib.samplers._exponential import safe_sqrt
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import namespace, tabulate
from genlib.types import Array, ArrayLike, Denoiser

_INSIDE = "inside."


def inpaint(solver: Solver, known: ArrayLike, mask: ArrayLike) -> Solver:
    """Replace what is known after every step of a solver (arXiv:2011.13456).

    x_s <- alpha_s known + sigma_s z where the mask is true, with noise z of each
    example and step; a solution ends with `known` itself if sigma is 0 there. Elsewhere
    it is only as consistent with it as the denoiser makes it: see `repaint`, and
    `guidance.pigdm`.

    Args:
      solver: any solver that takes every step of the grid in one row.
      known: x_0 where it is known, with the shape of x or broadcasting to it.
      mask: booleans, true where it is known, with the shape of x or broadcasting to it.

    Returns:
      A stochastic solver with one more draw of noise a step than `solver`.

    Raises:
      ValueError: if `mask` is not boolean; when used, if the shapes do not broadcast to
        that of x, or `solver` takes other steps than those of the grid.

    >>> from genlib import noise, samplers
    >>> solver = inpaint(samplers.ddim(), jnp.array([5.0]), jnp.array([True, False]))
    >>> x, key = jnp.ones((1, 2)), jax.random.key(0)
    >>> half = lambda x, t: 0.5 * x
    >>> samplers.sample(solver, half, noise.EDM(), [1.0, 0.5, 0.0], x, key)
    Array([[5.   , 0.375]], dtype=float32)
    """
    return _replacing(solver, known, mask, lambda steps: (range(steps), None))


def repaint(
    solver: Solver,
    known: ArrayLike,
    mask: ArrayLike,
    *,
    jump_length: int = 10,
    resamplings: int = 10,
) -> Solver:
    """Inpaint, going back and forth until both parts fit: RePaint (arXiv:2201.09865).

    Steps are those of `inpaint`. When the number of steps that are left is a multiple
    of `jump_length`, x is given the noise of as many steps earlier, and they are taken
    again, so that each is taken `resamplings` times.

    Args:
      solver: a solver without memory that takes every step of the grid in one row.
      known: x_0 where it is known, with the shape of x or broadcasting to it.
      mask: booleans, true where it is known, with the shape of x or broadcasting to it.
      jump_length: steps that a jump goes back, at least 1.
      resamplings: how often each step is taken, at least 1, which is `inpaint`.

    Returns:
      A stochastic solver with one more draw of noise a step than `solver`, of up to
      `resamplings` times as many steps.

    Raises:
      ValueError: if `mask` is not boolean, or a count is not a positive integer; when
        used, if the grid has less than `jump_length` steps, the shapes do not broadcast
        to that of x, or `solver` has a memory or takes other steps than those of the
        grid.

    >>> from genlib import noise, samplers
    >>> solver = repaint(
    ...     samplers.ddpm(), jnp.zeros(2), jnp.array([True, False]), jump_length=2
    ... )
    >>> path = noise.EDM()
    >>> samplers.nfe(solver, path, samplers.karras(path, 6))
    60
    """
    for name, count in (("jump_length", jump_length), ("resamplings", resamplings)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer; it is {count!r}")

    def init(x: Array) -> Any:
        if jax.tree.leaves(solver.init(x)):
            raise ValueError(
                "solver must have no memory: repaint jumps back over its steps; "
                "multistep solvers remember the last ones"
            )
        return ()

    order = lambda steps: _resampled(steps, jump_length, resamplings)
    return _replacing(solver._replace(init=init), known, mask, order)


def _resampled(steps: int, jump: int, times: int) -> tuple[list[int], np.ndarray]:
    """Return the steps to take, and the index in the grid at which each leaves x."""
    if jump > steps:
        raise ValueError(
            f"jump_length must be at most the {steps} steps of the grid; it is {jump}"
        )
    jumps = dict.fromkeys(range(0, steps - jump + 1, jump), times - 1)
    taken, ends, left = [], [], steps
    while left:
        taken.append(steps - left)
        left -= 1
        if jumps.get(left, 0):
            jumps[left] -= 1
            left += jump
        ends.append(steps - left)
    return taken, np.array(ends)


def _replacing(solver: Solver, known: Any, mask: Any, order: Any) -> Solver:
    """Return a solver that replaces what is known, and takes steps in another order."""
    known, mask = jnp.asarray(known), jnp.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be boolean; its dtype is {mask.dtype}")

    def init(x: Array) -> Any:
        for name, value in (("known", known), ("mask", mask)):
            pairs = zip(value.shape[::-1], x.shape[::-1], strict=False)
            if value.ndim > x.ndim or any(n not in (1, size) for n, size in pairs):
                raise ValueError(
                    f"{name} must broadcast to the shape {x.shape} of x; its shape is "
                    f"{value.shape}"
                )
        return solver.init(x)

    def plan(path: Path, times: Any) -> list[Rows]:
        segments, place = _steps_of(solver, path, times)
        taken, ends = order(len(place))
        columns = _levels(path, times, taken, ends)
        rows, done = [], 0
        for owner, run in itertools.groupby(taken, lambda k: place[k][0]):
            index = np.array([place[k][1] for k in run])
            part = slice(done, done + len(index))
            own = {name: column[index] for name, column in segments[owner].items()}
            # The solver keeps its names, whatever they are.
            inside = {_INSIDE + name: column for name, column in own.items()}
            levels = {name: column[part] for name, column in columns.items()}
            rows.append(inside | levels | {"t": own["t"]})
            done = part.stop
        return rows

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        noise = row["noise"] if solver.draws else row["noise"][None]
        own = {
            name.removeprefix(_INSIDE): value
            for name, value in row.items()
            if name.startswith(_INSIDE)
        }
        if solver.draws:
            own["noise"] = noise[0] if solver.draws == 1 else noise[:-1]
        x, state = solver.step(denoise, x, state, own)
        z = noise[-1]
        data = jnp.broadcast_to(known, x.shape).astype(x.dtype)
        seen = row["alpha"] * data + row["sigma"] * z
        if "lift" in row:
            x = row["lift"] * x + row["lift_std"] * z
        return jnp.where(jnp.broadcast_to(mask, x.shape), seen, x), state

    return Solver(plan, step, init, solver.draws + 1)


def _steps_of(solver: Solver, path: Path, times: Any) -> tuple[list[Rows], list]:
    """Return the segments of a solver, and in which one (and where) each step is."""
    rows = solver.plan(path, times)
    segments = [dict(part) for part in (rows if isinstance(rows, list) else [rows])]
    for part in segments:
        part.pop("clock", None)  # the noise of what is known is no increment
    place = [(i, k) for i, part in enumerate(segments) for k in range(len(part["t"]))]
    if len(place) != len(times) - 1:
        raise ValueError(
            f"solver must have one row for each of {len(times) - 1} steps of the grid; "
            f"it has {len(place)}"
        )
    return segments, place


def _levels(path: Path, times: Any, taken: Any, ends: Any) -> Rows:
    """Return the noise levels at which steps leave x, and how they are reached."""
    table = tabulate(path, times)
    after = np.array(taken) + 1
    if ends is None:
        return {"alpha": table.alpha[after], "sigma": table.sigma[after]}
    alpha, sigma = table.alpha[ends], table.sigma[ends]
    lift = alpha / table.alpha[after]
    xp = namespace(lift)
    std = safe_sqrt(xp, sigma**2 - (lift * table.sigma[after]) ** 2)
    return {
        "alpha": alpha,
        "sigma": sigma,
        "lift": lift,
        "lift_std": xp.where(ends == after, 0.0, std),
    }
