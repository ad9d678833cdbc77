"""Langevin dynamics: at one noise level, and as the corrector of a solver."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.noise import Path
from genlib.samplers._exponential import safe_sqrt
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import namespace, tabulate
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    Scalar,
    check_positive,
    compute_dtype,
    example_keys,
    expand_like,
)


def predictor_corrector(
    solver: Solver,
    snr: Scalar = 0.16,
    corrections: int = 1,
    *,
    norms: str = "expected",
) -> Solver:
    """Correct x after every step of a solver with Langevin dynamics.

    x <- x + e score(x) + sqrt(2 e) z, e = 2 snr^2 |z|^2 / |score|^2, at the time to
    which the step led (arXiv:2011.13456, alg. 2, 4, 5). A step to sigma = 0, where
    there is no score, has none.

    The paper averages the norms over the batch; here no example sees the others.
    "expected" takes sigma^2 for |z|^2 / |score|^2, which is the ratio of their means
    where the noise outweighs the spread of the data, and less than it elsewhere. With
    "example" it is what each example has. Then e depends on x, and Langevin dynamics
    tends to p |score|^2 instead of p: harmless in very many dimensions only.

    Args:
      solver: the predictor, which takes every step of the grid in one row.
      snr: the ratio of a correction to its noise; larger corrects more.
      corrections: how many a step, at least 1.
      norms: "expected" or "example".

    Returns:
      A stochastic solver with `corrections` more denoiser calls and draws of noise a
      step than `solver`.

    Raises:
      ValueError: if `corrections` is not a positive integer, a concrete `snr` not
        positive, or `norms` neither.

    >>> from genlib import samplers
    >>> samplers.predictor_corrector(samplers.ddpm(), corrections=2).draws
    3
    """
    _check_count("corrections", corrections)
    check_positive("snr", snr)
    if norms not in ("expected", "example"):
        raise ValueError(f"norms must be 'expected' or 'example'; it is {norms!r}")

    def plan(path: Path, times: Any) -> list[Rows]:
        rows = solver.plan(path, times)
        rows = [r for r in (rows if isinstance(rows, list) else [rows]) if len(r["t"])]
        if sum(len(segment["t"]) for segment in rows) != len(times) - 1:
            raise ValueError("solver must have one row for each step of the grid")
        end = tabulate(path, times[1:])
        xp = namespace(end.sigma)
        noisy = end.sigma > 0
        variance = end.sigma**2
        # score = to_x_0 x_0 - to_x x, 0 where there is no noise.
        to_x = xp.where(noisy, 1.0 / xp.where(noisy, variance, 1.0), 0.0)
        columns = {"to_x": to_x, "to_x_0": end.alpha * to_x, "variance": variance}
        t = xp.repeat(end.t[:, None], corrections, axis=1)
        segments, done = [], 0
        for row in rows:
            steps = slice(done, done + len(row["t"]))
            own = row | {name: column[steps] for name, column in columns.items()}
            own["own_t"] = row["t"]
            own.pop("clock", None)  # the noise of corrections is no increment
            segments += _with_calls(own, t[steps])
            done = steps.stop
        return segments

    def step(denoise: Denoiser, x: Array, state: Any, row: Rows):
        noise = row["noise"] if row["noise"].ndim > x.ndim else row["noise"][None]
        own = row | {"t": row["own_t"]}
        if solver.stochastic:
            own["noise"] = noise[0] if solver.draws == 1 else noise[: solver.draws]
        x, state = solver.step(denoise, x, state, own)
        if row["t"].shape[0] == row["own_t"].size:
            return x, state
        for z in noise[solver.draws :]:
            score = row["to_x_0"] * denoise(x, row["t"][-1]) - row["to_x"] * x
            ratio = row["variance"]
            if norms == "example":
                square = _square(score)
                ratio = _square(z) / jnp.where(square > 0, square, jnp.inf)
            size = 2.0 * snr**2 * ratio
            x = x + size * score + safe_sqrt(jnp, 2.0 * size) * z
        return x, state

    return solver._replace(plan=plan, step=step, draws=solver.draws + corrections)


def ula(
    key: Key,
    score: Callable[[Array], Array],
    x: Array,
    step_size: ArrayLike,
    steps: int,
) -> Array:
    """Run the unadjusted Langevin algorithm: x <- x + e score(x) + sqrt(2 e) z.

    Its stationary law is off by O(e) (arXiv:1907.05600, alg. 1, with e / 2); `mala` has
    none of that.

    Args:
      key: one typed key, or one for each example [B].
      score: grad log p at one noise level, [B, ...] -> [B, ...]. That of a denoiser is
        `(alpha denoise(x, t) - x) / sigma**2`.
      x: where the chains start, [B, ...].
      step_size: e, a scalar or [B].
      steps: how many, at least 1.

    Returns:
      The ends of the chains, with the shape and dtype of `x`.

    Raises:
      ValueError: if `steps` is not a positive integer, a concrete `step_size` not
        positive, or `key` is not one or B typed keys.

    >>> x = ula(jax.random.key(0), lambda x: -x, jnp.zeros((500, 2)), 0.1, 100)
    >>> bool(jnp.abs(x.std() - 1) < 0.1)
    True
    """
    size, start, draw = _chains(key, x, step_size, steps)

    def step(x_i, i):
        drift = score(x_i.astype(x.dtype)).astype(start.dtype)
        z = draw(jax.random.normal, i, x.shape[1:])
        return x_i + size * drift + jnp.sqrt(2.0 * size) * z, None

    return jax.lax.scan(step, start, jnp.arange(steps))[0].astype(x.dtype)


def mala(
    key: Key,
    log_density: Callable[[Array], Array],
    x: Array,
    step_size: ArrayLike,
    steps: int,
) -> tuple[Array, Array]:
    """Run Metropolis-adjusted Langevin chains, which leave p exactly invariant.

    A step of `ula` to y is accepted with probability
    min(1, p(y) q(x | y) / (p(x) q(y | x))), q(y | x) = N(x + e score(x), 2 e I)
    (Roberts and Tweedie, 1996). Chains do not see each other.

    Args:
      key: one typed key, or one for each example [B].
      log_density: log p up to a constant, [B, ...] -> [B]; it is differentiated.
      x: where the chains start, [B, ...].
      step_size: e, a scalar or [B].
      steps: how many, at least 1.

    Returns:
      The ends of the chains, with the shape and dtype of `x`, and the share of accepted
      steps of each [B].

    Raises:
      ValueError: if `steps` is not a positive integer, a concrete `step_size` not
        positive, or `key` is not one or B typed keys.

    >>> log_density = lambda x: -0.5 * jnp.sum(x**2, axis=1)
    >>> x, rate = mala(jax.random.key(0), log_density, jnp.zeros((500, 2)), 0.5, 50)
    >>> bool(jnp.abs(x.std() - 1) < 0.1), bool(rate.mean() > 0.7)
    (True, True)
    """
    size, start, draw = _chains(key, x, step_size, steps)
    flat_size = jnp.broadcast_to(size.reshape(-1), x.shape[:1])

    def evaluate(x_i):
        value, pull = jax.vjp(lambda v: log_density(v.astype(x.dtype)), x_i)
        return value.astype(start.dtype), pull(jnp.ones_like(value))[0]

    def step(carry, i):
        x_i, value, score = carry
        z = draw(jax.random.normal, 2 * i, x.shape[1:])
        y = x_i + size * score + jnp.sqrt(2.0 * size) * z
        y_value, y_score = evaluate(y)
        back = _square(x_i - y - size * y_score).reshape(-1) / (4.0 * flat_size)
        log_ratio = y_value - value - back + 0.5 * _square(z).reshape(-1)
        accept = jnp.log(draw(jax.random.uniform, 2 * i + 1, ())) < log_ratio
        new, old = (y, y_value, y_score), (x_i, value, score)
        choose = lambda a, b: jnp.where(expand_like(accept, a), a, b)
        return jax.tree.map(choose, new, old), accept

    (end, _, _), accepted = jax.lax.scan(
        step, (start, *evaluate(start)), jnp.arange(steps)
    )
    return end.astype(x.dtype), accepted.astype(start.dtype).mean(0)


def _chains(key: Key, x: Array, step_size: ArrayLike, steps: int):
    """Return the step size like x, x in the dtype of the computation, and draws."""
    _check_count("steps", steps)
    check_positive("step_size", step_size)
    dtype = compute_dtype(x.dtype)
    keys = example_keys(key, x)

    def draw(law: Callable, i: Array, shape: tuple[int, ...]) -> Array:
        one = lambda key: law(jax.random.fold_in(key, i), shape, dtype)
        return jax.vmap(one)(keys)

    size = expand_like(jnp.asarray(step_size, dtype), x)
    return size, jnp.asarray(x, dtype), draw


def _with_calls(rows: Rows, times: Any) -> list[Rows]:
    """Return rows that call the denoiser at more times, but where no noise is left."""
    own = rows["t"].reshape(len(rows["t"]), -1)
    xp = namespace(own, times)
    last = isinstance(rows["to_x"], np.ndarray) and rows["to_x"][-1] == 0
    end = len(own) - int(last)
    segments = [rows | {"t": xp.concatenate([own, times], axis=1)}, rows | {"t": own}]
    parts = slice(0, end), slice(end, None)
    return [
        {name: column[part] for name, column in segment.items()}
        for segment, part in zip(segments, parts, strict=True)
        if len(segment["t"][part])
    ]


def _square(x: Array) -> Array:
    """Return |x|^2 of each example, to broadcast against x."""
    return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True)


def _check_count(name: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a positive integer; it is {count!r}")
