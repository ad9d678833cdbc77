"""What finding the nearest code costs, and a training step, beside other libraries.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.quantize
    JAX_PLATFORMS=cpu python -m experiments.benchmarks.quantize --sizes 1024

16384 vectors of 64 numbers and codebooks of 1024 and 8192 codes. The lookup returns
indices alone. The step is `ema_vq` as it is trained: codes, the gradient of a loss
of them and of the commitment to the vectors, and the codebook of the next batch.

Medians, with the quartiles in brackets, over repeats in which all candidates alternate;
ratios are pair by pair. MB are what the compiled program holds beside its arguments and
results. Other libraries need the extra `bench`.
"""

import argparse
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _quantize_peers as peers
from experiments.benchmarks.samplers import measure, spread
from experiments.plots import table
from genlib import quantize

ROWS, WIDTH = 16384, 64


def genlib(codebook: np.ndarray, z: np.ndarray) -> peers.Peer:
    """Return `nearest`, and a step of `ema_vq` with a straight-through gradient."""
    layer = quantize.ema_vq(len(codebook), estimator=quantize.straight_through)
    params = {"statistics": quantize.init_ema(codebook)}

    def step(params: Any, z: jax.Array) -> Any:
        def loss(z: jax.Array) -> Any:
            found = layer.quantize(params, z)
            value = found.codes.sum() + found.losses["commitment"].mean()
            return value, found.statistics

        gradient, statistics = jax.grad(loss, has_aux=True)(z)
        return gradient, layer.update(params, statistics)

    lookup, of_lookup = peers.compiled(quantize.nearest, codebook, z)
    trained, of_step = peers.compiled(step, params, z)
    return peers.Peer(lookup, trained, (of_lookup, of_step))


def candidates(codebook: np.ndarray, z: np.ndarray) -> dict[str, peers.Peer]:
    """Return all libraries that can be imported; genlib comes first.

    Raises:
      AssertionError: if one finds other codes, but for a few that are equally near.
    """
    found = {"genlib": genlib(codebook, z)}
    indices = np.asarray(found["genlib"].lookup())
    for library, make in peers.LIBRARIES.items():
        try:
            found[library] = make(codebook, z)
        except (ImportError, OSError) as error:
            print(f"skipped {library}: {str(error).splitlines()[0]}")
            continue
        assert np.mean(np.asarray(found[library].lookup()) == indices) > 0.999, library
    return found


def rows(size: int, repeats: int) -> list[dict[str, object]]:
    """Return a row of the table for each library."""
    draw = np.random.default_rng(0).normal
    codebook, z = (draw(size=(n, WIDTH)).astype(np.float32) for n in (size, ROWS))
    found = candidates(codebook, z)
    steps = {name: each.step for name, each in found.items() if each.step is not None}
    lookup = measure([each.lookup for each in found.values()], repeats)
    step = dict(zip(steps, measure(list(steps.values()), repeats).T, strict=True))
    return [
        {
            "codes": size,
            "library": name,
            "lookup ms": spread(1e3 * lookup[:, index]),
            "lookup, times genlib": spread(lookup[:, index] / lookup[:, 0]),
            "step ms": spread(1e3 * step[name]) if name in step else "",
            "step, times genlib": (
                spread(step[name] / step["genlib"]) if name in step else ""
            ),
            "MB": ", ".join(f"{size:.1f}" for size in each.temporary or ()),
        }
        for index, (name, each) in enumerate(found.items())
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the machine and its load, then the table."""
    line = argparse.ArgumentParser(prog="python -m experiments.benchmarks.quantize")
    line.add_argument("--repeats", type=int, default=7)
    line.add_argument("--sizes", type=int, nargs="+", default=[1024, 8192])
    given = line.parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; "
        f"{given.repeats} repeats; median [quartiles]\n"
    )
    # The first compilation of a process also starts the compiler.
    jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
    print(table([row for size in given.sizes for row in rows(size, given.repeats)]))


if __name__ == "__main__":
    main()
