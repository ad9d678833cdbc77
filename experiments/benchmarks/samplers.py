"""What a sampling step costs beside a hand-written scan, and how long compiling takes.

    python -m experiments.benchmarks.samplers

The network is trivial (x / 2), so that what is left is the sampler's own cost. The
hand-written scans are the updates of the papers with their coefficients in an array:
what one would write for one solver, one path and one prediction. Where torch and
diffusers are installed, their eager loops on the same network are timed as well.

Medians, with the quartiles in brackets, over alternating repeats: load from elsewhere
then falls on all candidates alike. Compile times include planning and tracing; the
first solver on a number of steps also compiles the float64 table of the path.
"""

import importlib.util
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plots import table
from genlib import noise, samplers

STEPS, REPEATS, CALLS = 100, 15, 2
SHAPES = [(16, 32, 32, 3), (64, 2)]
PATH = noise.Cosine()
SOLVERS = {
    "ddim": samplers.ddim(),
    "ddpm": samplers.ddpm(),
    "heun": samplers.heun(),
    "dpmpp_2m": samplers.dpmpp_2m(),
}


def network(x: Any, t: Any) -> Any:
    """Return x / 2, the cheapest denoiser that depends on its input."""
    return 0.5 * x


def grid() -> np.ndarray:
    """Return the times of all candidates, inside (0, 1): no step is a special case."""
    return np.linspace(0.98, 0.02, STEPS + 1)


def coefficients() -> tuple[np.ndarray, ...]:
    """Return t, alpha and sigma of the cosine path in float64."""
    t = grid()
    return t, np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)


def hand_ddim(x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample with DDIM, x_s = (s_s / s_t) x + (a_s - a_t s_s / s_t) x_0, by hand."""
    t, alpha, sigma = coefficients()
    keep = sigma[1:] / sigma[:-1]
    rows = np.stack([t[:-1], keep, alpha[1:] - keep * alpha[:-1]], 1)

    def body(x, row):
        return row[1] * x + row[2] * network(x, row[0]), None

    return jax.lax.scan(body, x, jnp.asarray(rows, jnp.float32))[0]


def hand_ddpm(x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample the posterior of each step, with noise for each example, by hand."""
    t, alpha, sigma = coefficients()
    ratio = (alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])) ** 2  # SNR_t / SNR_s
    keep = sigma[1:] / sigma[:-1] * np.sqrt(ratio)
    add = alpha[1:] * (1 - ratio)
    rows = np.stack([t[:-1], keep, add, sigma[1:] * np.sqrt(1 - ratio)], 1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))

    def body(x, row_and_index):
        row, i = row_and_index
        draw = lambda k: jax.random.normal(jax.random.fold_in(k, i), x.shape[1:])
        x_0 = network(x, row[0])
        return row[1] * x + row[2] * x_0 + row[3] * jax.vmap(draw)(keys), None

    steps = jnp.arange(STEPS)
    return jax.lax.scan(body, x, (jnp.asarray(rows, jnp.float32), steps))[0]


def hand_heun(x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample with Heun's method on dx/dt of the cosine path, by hand."""
    t, alpha, sigma = coefficients()
    # alpha' = -(pi / 2) sigma and sigma' = (pi / 2) alpha.
    drift = np.pi / 2 * alpha / sigma
    pull = -np.pi / 2 * (sigma + alpha**2 / sigma)
    nodes = np.stack([t, drift, pull], 1)
    rows = np.concatenate([nodes[:-1], nodes[1:], np.diff(t)[:, None]], 1)

    def body(x, row):
        here = row[1] * x + row[2] * network(x, row[0])
        ahead = x + row[6] * here
        there = row[4] * ahead + row[5] * network(ahead, row[3])
        return x + 0.5 * row[6] * (here + there), None

    return jax.lax.scan(body, x, jnp.asarray(rows, jnp.float32))[0]


def hand_dpmpp_2m(x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample with DPM-Solver++(2M), Algorithm 2 of arXiv:2211.01095, by hand."""
    t, alpha, sigma = coefficients()
    h = np.diff(np.log(alpha / sigma))
    half_r = np.concatenate([[0.0], 0.5 * h[1:] / h[:-1]])  # 0: the first is DDIM
    phi = -alpha[1:] * np.expm1(-h)
    rows = np.stack([t[:-1], sigma[1:] / sigma[:-1], phi, half_r], 1)

    def body(carry, row):
        x, before = carry
        now = network(x, row[0])
        mixed = (1 + row[3]) * now - row[3] * before
        return (row[1] * x + row[2] * mixed, now), None

    start = (x, jnp.zeros_like(x))
    return jax.lax.scan(body, start, jnp.asarray(rows, jnp.float32))[0][0]


HAND = {
    "ddim": hand_ddim,
    "ddpm": hand_ddpm,
    "heun": hand_heun,
    "dpmpp_2m": hand_dpmpp_2m,
}


def ours(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return genlib's sampler as a function of (x, key)."""
    solver = SOLVERS[name]

    def run(x: jax.Array, key: jax.Array) -> jax.Array:
        key_or_none = key if solver.stochastic else None
        return samplers.sample(solver, network, PATH, grid(), x, key_or_none)

    return run


def compiled(
    run: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, key: jax.Array
) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], float]:
    """Return the compiled program, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    program = jax.jit(run).lower(x, key).compile()
    return program, time.perf_counter() - start


def seconds(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, the mean of a few in a row."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def compare(name: str, shape: tuple[int, ...]) -> dict[str, object]:
    """Time one solver on one shape beside its hand-written scan.

    Raises:
      AssertionError: if the two disagree, or if a deterministic solver draws random
        bits.
    """
    x, key = jax.random.normal(jax.random.key(0), shape), jax.random.key(1)
    hand, hand_compile = compiled(HAND[name], x, key)
    mine, mine_compile = compiled(ours(name), x, key)
    np.testing.assert_allclose(mine(x, key), hand(x, key), rtol=2e-4, atol=2e-5)
    if not SOLVERS[name].stochastic:
        assert "random_bits" not in str(jax.make_jaxpr(ours(name))(x, key))

    call = lambda program: seconds(lambda: program(x, key).block_until_ready())
    pairs = np.array([[call(hand), call(mine)] for _ in range(REPEATS)])
    return {
        "solver": name,
        "x": "x".join(map(str, shape)),
        "hand us/step": spread(pairs[:, 0] / STEPS * 1e6, 2),
        "genlib us/step": spread(pairs[:, 1] / STEPS * 1e6, 2),
        "ratio": spread(pairs[:, 1] / pairs[:, 0], 2),
        "hand compile s": hand_compile,
        "genlib compile s": mine_compile,
    }


def spread(values: np.ndarray, digits: int) -> str:
    """Format a median with its quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def diffusers_rows() -> list[dict[str, object]]:
    """Time the eager loops of `diffusers` on the same network and shapes."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    schedulers = {
        "ddim": diffusers.DDIMScheduler(),
        "ddpm": diffusers.DDPMScheduler(),
        "heun": diffusers.HeunDiscreteScheduler(),
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(),
    }
    rows = []
    for name, scheduler in schedulers.items():
        for shape in SHAPES:
            start = torch.randn(shape)

            def run(scheduler=scheduler, start=start):
                scheduler.set_timesteps(STEPS)
                x = start
                for t in scheduler.timesteps:
                    x_in = scheduler.scale_model_input(x, t)
                    x = scheduler.step(network(x_in, t), t, x).prev_sample

            with torch.inference_mode():
                run()
                times = np.array([seconds(run) for _ in range(3)])
            row = {"solver": name, "x": "x".join(map(str, shape))}
            rows.append(row | {"diffusers us/step": spread(times / STEPS * 1e6, 0)})
    return rows


def main() -> None:
    """Print the machine and its load, then the tables."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; "
        f"{STEPS} steps, {REPEATS} repeats of {CALLS} calls; median [quartiles]\n"
    )
    # The first compilation of a process also starts the compiler.
    jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
    rows = [compare(name, shape) for shape in SHAPES for name in SOLVERS]
    print(table(rows), "\n")
    missing = [
        name for name in ("torch", "diffusers") if not importlib.util.find_spec(name)
    ]
    if missing:
        print(f"skipped the eager loops of diffusers: no {' and no '.join(missing)}")
    else:
        print(table(diffusers_rows()))


if __name__ == "__main__":
    main()
