"""What a coupling flow costs beside the same flow in other libraries.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.flows
    JAX_PLATFORMS=cpu python -m experiments.benchmarks.flows --depths 8 64

8 couplings, a batch of 1024, networks d/2 - 64 - 64 - out, affine or with rational-
quadratic splines of 8 bins: the mean negative log-likelihood, and its gradient.
genlib is measured as a scan over its layers and with the scan unrolled. `--depths`
compiles the gradient of genlib's scan at several depths instead, beside flowjax's at 8.

Medians, with the quartiles in brackets, over repeats in which all candidates alternate;
ratios are pair by pair. Other libraries need the extra `bench`.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _flow_peers as peers
from experiments.benchmarks.samplers import measure, spread
from experiments.plots import table
from genlib import flows, nn

ROWS = 1024
KINDS = ("affine", "spline")


def genlib(
    kind: str, x: np.ndarray, *, depth: int = peers.LAYERS, unroll: int = 1
) -> tuple[Any, Any]:
    """Return parameters and the loss of a scan of alternating couplings."""
    univariate = flows.affine()
    if kind == "spline":
        univariate = flows.spline(peers.BINS, bound=peers.BOUND)
    network = nn.mlp_conditioner(peers.WIDTH, 2)
    both = flows.chain(
        flows.coupling(univariate, network),
        flows.coupling(univariate, network, swap=True),
    )
    model = flows.density(flows.scan_chain(both, depth // 2, unroll=unroll))
    params = jax.jit(model.init)(jax.random.key(0), x)
    return params, lambda params, x: -model.log_prob(params, x).mean()


def compiled(params: Any, loss: Any, x: np.ndarray) -> peers.Peer:
    """Compile a loss and its gradient."""
    args = jax.tree.map(jnp.asarray, (params, x))
    value = jax.jit(loss).lower(*args).compile()
    start = time.perf_counter()
    # A new function, so that nothing of the loss above is found in a cache.
    again = lambda params, x: loss(params, x)
    gradient = jax.jit(jax.value_and_grad(again)).lower(*args).compile()
    taken = time.perf_counter() - start
    return peers.Peer(
        lambda: jax.block_until_ready(value(*args)),
        lambda: jax.block_until_ready(gradient(*args)),
        taken,
    )


def eager(module: Any, loss: Any, x: np.ndarray) -> peers.Peer:
    """Return the loops of a torch module."""
    import torch  # pyright: ignore[reportMissingImports]

    rows = torch.as_tensor(x)

    @torch.no_grad()
    def value() -> Any:
        return loss(rows)

    def gradient() -> Any:
        module.zero_grad(set_to_none=True)
        loss(rows).backward()

    return peers.Peer(value, gradient, None)


def candidates(kind: str, x: np.ndarray) -> dict[str, peers.Peer]:
    """Return all libraries that can be imported; genlib comes first."""
    found = {
        "genlib": compiled(*genlib(kind, x), x),
        "genlib, unrolled": compiled(*genlib(kind, x, unroll=peers.LAYERS), x),
    }
    for library in (*peers.COMPILED, *peers.EAGER):
        try:
            if library in peers.COMPILED:
                found[library] = compiled(*peers.COMPILED[library](kind, x), x)
            else:
                found[library] = eager(*peers.EAGER[library](kind, x), x)
        except (ImportError, OSError) as error:
            print(f"skipped {library}: {str(error).splitlines()[0]}")
    return found


def rows(kind: str, dimension: int, repeats: int) -> list[dict[str, object]]:
    """Return a row of the table for each library."""
    x = np.random.default_rng(0).normal(size=(ROWS, dimension)).astype(np.float32)
    found = candidates(kind, x)
    value = measure([each.value for each in found.values()], repeats)
    gradient = measure([each.gradient for each in found.values()], repeats)
    return [
        {
            "flow": kind,
            "d": dimension,
            "library": library,
            "value ms": spread(1e3 * value[:, index]),
            "value, times genlib": spread(value[:, index] / value[:, 0]),
            "gradient ms": spread(1e3 * gradient[:, index]),
            "gradient, times genlib": spread(gradient[:, index] / gradient[:, 0]),
            "compile s": "" if each.compile is None else f"{each.compile:.2f}",
        }
        for index, (library, each) in enumerate(found.items())
    ]


def compile_rows(depths: Sequence[int], repeats: int) -> list[dict[str, object]]:
    """Return the seconds to trace and compile the gradient at several depths."""
    x = np.zeros((ROWS, 64), np.float32)
    builders: dict[str, Callable[[str], Any]] = {
        f"genlib, {depth} layers": partial(genlib, x=x, depth=depth) for depth in depths
    }
    try:
        peers.flowjax("affine", x)
        builders["flowjax, 8 layers"] = partial(peers.flowjax, x=x)
    except ImportError as error:
        print(f"skipped flowjax: {str(error).splitlines()[0]}")
    found = []
    for kind in KINDS:
        seconds = np.empty((repeats, len(builders)))
        for index, build in enumerate(builders.values()):
            params, loss = build(kind)
            for repeat in range(repeats):
                seconds[repeat, index] = compiled(params, loss, x).compile
        found += [
            {
                "flow": kind,
                "library": name,
                "compile s": spread(seconds[:, index]),
                "times the first": spread(seconds[:, index] / seconds[:, 0]),
            }
            for index, name in enumerate(builders)
        ]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the machine and its load, then the table."""
    line = argparse.ArgumentParser(prog="python -m experiments.benchmarks.flows")
    line.add_argument("--repeats", type=int, default=15)
    line.add_argument("--dimensions", type=int, nargs="+", default=[16, 64])
    line.add_argument("--depths", type=int, nargs="+", help="compile these instead")
    given = line.parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; "
        f"{given.repeats} repeats; median [quartiles]\n"
    )
    # The first compilation of a process also starts the compiler.
    jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
    if given.depths:
        print(table(compile_rows(given.depths, given.repeats)))
        return
    found = []
    for kind in KINDS:
        for dimension in given.dimensions:
            found += rows(kind, dimension, given.repeats)
    print(table(found))


if __name__ == "__main__":
    main()
