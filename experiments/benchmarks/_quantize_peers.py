"""The nearest code in other libraries.

| library                   | what is timed                                           |
|---------------------------|---------------------------------------------------------|
| naive `jax.numpy`         | argmin of all squared distances at once, compiled       |
| `torch`                   | `cdist` and `argmin`                                    |
| `vector-quantize-pytorch` | its layer: evaluated, and trained with moving averages  |

All of them start from the same codes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Peer(NamedTuple):
    """Hold what a library does with a batch, to be called without arguments.

    lookup: `() -> indices`; step: `() -> None`, a training step, None if there is none;
    temporary: MB that the compiled lookup and step need, None if they are not compiled.
    """

    lookup: Callable[[], Any]
    step: Callable[[], Any] | None = None
    temporary: tuple[float, ...] | None = None


def compiled(
    function: Callable[..., Any], *args: Any
) -> tuple[Callable[[], Any], float]:
    """Return a compiled call, and the MB that it needs beside arguments and results."""
    args = jax.tree.map(jnp.asarray, args)
    program = jax.jit(function).lower(*args).compile()
    analysis = program.memory_analysis()
    temporary = getattr(analysis, "temp_size_in_bytes", np.nan) / 1e6
    return lambda: jax.block_until_ready(program(*args)), temporary


def naive(codebook: np.ndarray, z: np.ndarray) -> Peer:
    """Return what one would write first."""

    def lookup(codebook: Any, z: Any) -> Any:
        lengths = (z**2).sum(1, keepdims=True), (codebook**2).sum(1)
        return jnp.argmin(lengths[0] - 2 * z @ codebook.T + lengths[1], axis=1)

    run, temporary = compiled(lookup, codebook, z)
    return Peer(run, temporary=(temporary,))


def torch(codebook: np.ndarray, z: np.ndarray) -> Peer:
    """Return the distances of torch."""
    import torch as library  # pyright: ignore[reportMissingImports]

    codes, vectors = library.as_tensor(codebook), library.as_tensor(z)
    return Peer(lambda: library.cdist(vectors, codes).argmin(1))


def vector_quantize_pytorch(codebook: np.ndarray, z: np.ndarray) -> Peer:
    """Return a layer with moving averages and a straight-through gradient."""
    import torch as library  # pyright: ignore[reportMissingImports]
    import vector_quantize_pytorch as peer  # pyright: ignore[reportMissingImports]

    codes, vectors = library.as_tensor(codebook)[None], library.as_tensor(z)[None]
    vectors.requires_grad_()
    weight = library.ones_like(vectors)

    def layer() -> Any:
        settings = dict(decay=0.99, rotation_trick=False)
        made = peer.VectorQuantize(z.shape[1], codebook_size=len(codebook), **settings)
        made._codebook.embed.data.copy_(codes)
        made._codebook.embed_avg.data.copy_(codes)
        made._codebook.cluster_size.data.fill_(1)
        return made

    evaluated, trained = layer().eval(), layer().train()

    @library.no_grad()
    def lookup() -> Any:
        return evaluated(vectors)[1][0]

    def step() -> None:
        vectors.grad = None
        quantized, _, commitment = trained(vectors)
        ((quantized * weight).sum() + commitment.sum()).backward()

    return Peer(lookup, step)


LIBRARIES: dict[str, Callable[[np.ndarray, np.ndarray], Peer]] = {
    "naive jax.numpy": naive,
    "torch": torch,
    "vector-quantize-pytorch": vector_quantize_pytorch,
}
