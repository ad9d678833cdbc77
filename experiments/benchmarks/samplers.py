"""What a sampling step costs, beside a scan written by hand and beside other libraries.

    python -m experiments.benchmarks.samplers
    python -m experiments.benchmarks.samplers --repeats=5 --only="ddim;heun"

The network is trivial (x / 2), so that what is left is the sampler's own cost. The
scans of `_hand` are what one would write for a single solver; the eager loops of
`_peers` are timed for every library that can be imported (`pip install genlib[bench]`).
"Brownian" samplers have noise that is the same path for every grid. "noise alone" is a
scan that draws the noise of a stochastic sampler and does nothing else.

Medians, with the quartiles in brackets, over repeats in which all candidates alternate:
load from elsewhere then falls on all of them alike. Ratios are to genlib, pair by pair.
Compile times include planning and tracing; the first solver on a number of steps also
compiles the float64 table of the path.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _hand, _peers
from experiments.plots import table
from genlib import noise, samplers

SHAPES = [(1, 4, 64, 64), (16, 32, 32, 3)]
PATH = noise.Cosine()
SOLVERS = {
    "ddim": samplers.ddim(),
    "ddpm": samplers.ddpm(),
    "euler": samplers.euler(),
    "heun": samplers.heun(),
    "dpmpp_2m": samplers.dpmpp_2m(),
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde(),
    "dpmpp_2m_sde, Brownian": samplers.dpmpp_2m_sde(),
    "dpmpp_sde, Brownian": samplers.dpmpp_sde(),
}
ATTEMPT = 0.02  # seconds of calls in a row, of which the mean is one measurement


class Candidate(NamedTuple):
    """Hold one sampler: a whole run of it, and the seconds that compiling it took."""

    run: Callable[[], Any]
    compile: float | None


def network(x: Any, t: Any) -> Any:
    """Return x / 2, the cheapest denoiser that depends on its input."""
    return 0.5 * x


def steps_of(name: str) -> int:
    """Return the number of steps to time: fewer where a step takes 20 ms elsewhere."""
    return 20 if "Brownian" in name else 100


def grid(steps: int) -> np.ndarray:
    """Return times inside (0, 1): no step is a special case."""
    return np.linspace(0.98, 0.02, steps + 1)


def ours(name: str, brownian: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return genlib's sampler as a function of (x, key)."""
    solver, times = SOLVERS[name], grid(steps_of(name))

    def run(x: jax.Array, key: jax.Array) -> jax.Array:
        drawn: dict[str, Any] = {"key": key} if solver.stochastic else {}
        if brownian:
            drawn = {"noise": samplers.brownian(key)}
        return samplers.sample(solver, network, PATH, times, x, **drawn)

    return run


def by_hand(sampler: _hand.Sampler) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return a sampler written by hand as a function of (x, key)."""
    return lambda x, key: sampler(network, grid(100), x, key)


def compiled(run: Callable[..., jax.Array], *args: jax.Array) -> Candidate:
    """Return the compiled program, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    program = jax.jit(run).lower(*args).compile()
    taken = time.perf_counter() - start
    return Candidate(lambda: program(*args).block_until_ready(), taken)


def candidates(
    name: str, shape: tuple[int, ...], peers: dict[str, _peers.Library]
) -> dict[str, Candidate]:
    """Return all that can run a solver on a shape, genlib first.

    Raises:
      AssertionError: if genlib and the scan by hand disagree, or if a deterministic
        solver draws random bits.
    """
    args = jax.random.normal(jax.random.key(0), shape), jax.random.key(1)
    brownian, stochastic = "Brownian" in name, SOLVERS[name].stochastic
    found = {"genlib": compiled(ours(name, brownian), *args)}
    if name in _hand.SAMPLERS:
        found["by hand"] = compiled(by_hand(_hand.SAMPLERS[name]), *args)
        results = [candidate.run() for candidate in found.values()]
        np.testing.assert_allclose(*results, rtol=2e-4, atol=2e-5)
    if brownian:
        found["genlib, from a key"] = compiled(ours(name, False), *args)
    elif stochastic:
        found["noise alone"] = compiled(by_hand(_hand.noise_alone), *args)
    if not stochastic:
        assert "random_bits" not in str(jax.make_jaxpr(ours(name, False))(*args))
    for library, peer in peers.items():
        loops = peer(shape, steps_of(name))
        if name in loops:
            found[library] = Candidate(loops[name], None)
    return found


def measure(runs: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Return seconds a call [repeats, runs]; in a repeat all runs take their turn."""
    calls = []
    for run in runs:
        run()
        start = time.perf_counter()
        run()
        calls.append(max(1, int(ATTEMPT / (time.perf_counter() - start))))
    times = np.empty((repeats, len(runs)))
    for repeat in range(repeats):
        for index, (run, count) in enumerate(zip(runs, calls, strict=True)):
            start = time.perf_counter()
            for _ in range(count):
                run()
            times[repeat, index] = (time.perf_counter() - start) / count
    return times


def spread(values: np.ndarray) -> str:
    """Format a median with its quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    digits = max(0, 2 - int(np.log10(max(middle, 1))))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def rows(
    name: str, shape: tuple[int, ...], found: dict[str, Candidate], repeats: int
) -> list[dict[str, object]]:
    """Return a row of the table for everything that runs a solver on a shape."""
    times = measure([candidate.run for candidate in found.values()], repeats)
    return [
        {
            "solver": name,
            "x": "x".join(map(str, shape)),
            "library": library,
            "us a step": spread(1e6 * times[:, index] / steps_of(name)),
            "times genlib": spread(times[:, index] / times[:, 0]),
            "compile s": "" if compile is None else f"{compile:.2f}",
        }
        for index, (library, (_, compile)) in enumerate(found.items())
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the machine and its load, then the table."""
    line = argparse.ArgumentParser(prog="python -m experiments.benchmarks.samplers")
    line.add_argument("--repeats", type=int, default=15)
    line.add_argument(
        "--only", default=";".join(SOLVERS), help="solvers, with ; between"
    )
    given = line.parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; "
        f"{given.repeats} repeats; median [quartiles]\n"
    )
    # The first compilation of a process also starts the compiler.
    jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
    peers = _peers.importable()
    found = []
    for shape in SHAPES:
        for name in given.only.split(";"):
            # Seconds a run elsewhere: a few are enough.
            repeats = -(-given.repeats // 5) if "Brownian" in name else given.repeats
            found += rows(name, shape, candidates(name, shape, peers), repeats)
    print(table(found))


if __name__ == "__main__":
    main()
