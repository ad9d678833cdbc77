"""Attention in other libraries.

| library  | what is timed                                            |
|----------|----------------------------------------------------------|
| `jax.nn` | `dot_product_attention`: all scores at once on a CPU     |
| `torch`  | `scaled_dot_product_attention`: its fused kernel         |
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Peer(NamedTuple):
    """Hold what is timed, to be called without arguments.

    forward: `() -> output`; both: `() -> gradients` of q, k and v, of a given gradient
    of the output; temporary: MB that compiled programs need, None if not compiled.
    """

    forward: Callable[[], Any]
    both: Callable[[], Any]
    temporary: tuple[float, ...] | None = None


def compiled(function: Callable[..., jax.Array], arrays: Sequence[jax.Array]) -> Peer:
    """Return a function of q, k and v, compiled with and without its derivative."""
    q, k, v, given = arrays
    pulled = lambda q, k, v, given: jax.vjp(function, q, k, v)[1](given)
    programs = (
        jax.jit(function).lower(q, k, v).compile(),
        jax.jit(pulled).lower(q, k, v, given).compile(),
    )
    analyses = [program.memory_analysis() for program in programs]
    return Peer(
        lambda: jax.block_until_ready(programs[0](q, k, v)),
        lambda: jax.block_until_ready(programs[1](q, k, v, given)),
        tuple(getattr(x, "temp_size_in_bytes", np.nan) / 1e6 for x in analyses),
    )


def jax_nn(arrays: Sequence[jax.Array]) -> Peer:
    """Return the function of jax.nn."""
    attend = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return compiled(attend, arrays)


def torch(arrays: Sequence[jax.Array]) -> Peer:
    """Return the kernel of torch on the same numbers, heads before rows as it wants."""
    import torch as library  # pyright: ignore[reportMissingImports]

    dtype = getattr(library, arrays[0].dtype.name)
    q, k, v, given = (
        library.tensor(np.asarray(x.swapaxes(1, 2), np.float32)).to(dtype)
        for x in arrays
    )
    attend = library.nn.functional.scaled_dot_product_attention
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    @library.no_grad()
    def forward() -> Any:
        out = attend(q, k, v, is_causal=True)
        return jnp.asarray(out.float().numpy()).swapaxes(1, 2)

    def both() -> Any:
        out = attend(*leaves, is_causal=True)
        return library.autograd.grad(out, leaves, given)

    return Peer(forward, both)


LIBRARIES: dict[str, Callable[[Sequence[jax.Array]], Peer]] = {
    "jax.nn": jax_nn,
    "torch": torch,
}
