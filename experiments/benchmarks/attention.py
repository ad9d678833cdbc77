"""What causal attention costs, forward and with its gradients, beside other libraries.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.attention
    JAX_PLATFORMS=cpu python -m experiments.benchmarks.attention --lengths 1024
    python -m experiments.benchmarks.attention --gpu

One example of 8 heads of 64 features. Medians, with the quartiles in brackets, over
repeats in which all candidates alternate. CPU ms are those of all threads of the
process (what it costs while others use the machine too); ratios are of CPU ms, to
genlib's own blocks (`tiled`), repeat by repeat. MB are what the compiled programs hold
beside their arguments and results, forward and with gradients. torch needs the extra
`bench`.

With --gpu, implementations of genlib at 4 examples of 16 heads of 128 features: TFLOP/s
(half of all pairs counted, as a causal mask sees them, and 3.5 times the forward pass
for gradients) and the highest use of memory so far, so one process for each line says
it of that line alone (--only tiled --lengths 8192).
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _attention_peers as peers
from experiments.benchmarks.samplers import spread
from experiments.plots import table
from genlib.attention import attention, causal

CPU, GPU = (1, 8, 64), (4, 16, 128)  # batch, heads, features
OURS = "genlib tiled"


def arrays(shape: tuple[int, int, int], length: int, dtype: str) -> list[jax.Array]:
    """Return q, k, v and a gradient of the output."""
    batch, heads, features = shape
    draw = np.random.default_rng(0).normal
    size = (batch, length, heads, features)
    return [jnp.asarray(draw(size=size), dtype) for _ in range(4)]


def genlib(impl: Any, given: Sequence[jax.Array]) -> peers.Peer:
    """Return an implementation of genlib's."""
    attend = lambda q, k, v: attention(q, k, v, mask=causal(), impl=impl)
    return peers.compiled(attend, given)


def candidates(length: int, dtype: str) -> dict[str, peers.Peer]:
    """Return all that can be imported; genlib comes first.

    Raises:
      AssertionError: if one finds another output.
    """
    given = arrays(CPU, length, dtype)
    found = {OURS: genlib("tiled", given), "genlib auto": genlib("auto", given)}
    for library, make in peers.LIBRARIES.items():
        try:
            found[library] = make(given)
        except (ImportError, OSError) as error:
            print(f"skipped {library}: {str(error).splitlines()[0]}")
    want = np.asarray(found[OURS].forward(), np.float32)
    for peer in found.values():
        error = np.abs(np.asarray(peer.forward(), np.float32) - want).max()
        assert error < (2e-5 if dtype == "float32" else 6e-2), error
    return found


def measure(runs: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Return ms `[repeats, runs, 2]`, of CPU and by the clock; all take their turn."""
    times = np.zeros((repeats + 1, len(runs), 2))  # the first one warms up
    for repeat in times:
        for place, run in zip(repeat, runs, strict=True):
            start = time.process_time(), time.perf_counter()
            run()
            place[:] = time.process_time() - start[0], time.perf_counter() - start[1]
    return 1e3 * times[1:]


def rows(length: int, dtype: str, repeats: int) -> list[dict[str, object]]:
    """Return a row of the table for each library."""
    found = candidates(length, dtype)
    forward = measure([peer.forward for peer in found.values()], repeats)
    both = measure([peer.both for peer in found.values()], repeats)
    rows = []
    for index, (name, peer) in enumerate(found.items()):
        row: dict[str, object] = {"L": length, "dtype": dtype, "library": name}
        for what, times in (("forward", forward), ("with gradients", both)):
            row[f"{what}, CPU ms"] = spread(times[:, index, 0])
            row["ms" if what == "forward" else "ms "] = spread(times[:, index, 1])
            ratios = times[:, index, 0] / times[:, 0, 0]
            row["times tiled" if what == "forward" else "times tiled "] = spread(ratios)
        row["MB"] = ", ".join(f"{size:.0f}" for size in peer.temporary or ())
        rows.append(row)
    return rows


def gpu_rows(length: int, repeats: int, only: Sequence[str]) -> list[dict[str, object]]:
    """Return a row for each implementation of genlib's that can run."""
    batch, heads, features = GPU
    forward_flops = 2 * batch * heads * length**2 * features
    rows = []
    for impl in only:
        names = ("L", "impl", "ms", "TFLOP/s", "ms ", "TFLOP/s ", "peak MB")
        blank = dict.fromkeys(names, "")
        row: dict[str, object] = {**blank, "L": length, "impl": impl}
        try:
            peer = genlib(impl, arrays(GPU, length, "bfloat16"))
            times = measure([peer.forward, peer.both], repeats)[:, :, 1]
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            rows.append(row | {"ms": str(error).splitlines()[0][:60]})
            continue
        for name, flops, ms in zip(("", " "), (1, 3.5), times.T, strict=True):
            row[f"ms{name}"] = spread(ms)
            rate = flops * forward_flops / np.median(ms) / 1e9
            row[f"TFLOP/s{name}"] = f"{rate:.1f}"
        used = jax.devices()[0].memory_stats() or {}
        row["peak MB"] = f"{used.get('peak_bytes_in_use', np.nan) / 1e6:.0f}"
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the machine and its load, then the table."""
    line = argparse.ArgumentParser(prog="python -m experiments.benchmarks.attention")
    line.add_argument("--repeats", type=int, default=7)
    line.add_argument("--lengths", type=int, nargs="+")
    line.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    line.add_argument("--gpu", action="store_true")
    impls = ["naive", "tiled", "fused", "auto"]
    line.add_argument("--only", nargs="+", choices=impls, default=impls)
    given = line.parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; "
        f"{given.repeats} repeats; median [quartiles]\n"
    )
    if given.gpu:
        lengths = given.lengths or [2048, 4096, 8192, 16384, 32768]
        found = [gpu_rows(length, given.repeats, given.only) for length in lengths]
    else:
        settings = [(n, d) for n in given.lengths or [1024, 4096] for d in given.dtypes]
        found = [rows(*setting, given.repeats) for setting in settings]
    for part in found:
        print(table(part), end="\n\n")


if __name__ == "__main__":
    main()
