"""The networks that the tests of this room run, with parameters that are nowhere zero.

Values come from NumPy: compiling the initialisers would take longer than all tests.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from genlib import nn

CLASSES = 5
SHAPE = (2, 4, 4, 3)

# These programs run once: compiling them fast matters more than running them fast.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def mlp(**kwargs: Any) -> nn.MLP:
    return nn.MLP(48, 16, 2, rngs=nnx.Rngs(0), **{"num_classes": CLASSES, **kwargs})


def unet(**kwargs: Any) -> nn.UNet:
    settings = {
        "multipliers": (1, 2),
        "blocks": 1,
        "attention_at": (4,),
        "image_size": 4,
        "head_dim": 8,
        "num_classes": CLASSES,
    }
    return nn.UNet(3, 8, rngs=nnx.Rngs(0), **{**settings, **kwargs})


def dit(**kwargs: Any) -> nn.DiT:
    settings = {"patch_size": 2, "num_heads": 2, "depth": 2, "num_classes": CLASSES}
    return nn.DiT(3, 16, rngs=nnx.Rngs(0), **{**settings, **kwargs})


NETWORKS = {"mlp": mlp, "unet": unet, "dit": dit}


def filled(make: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """Return the module that `make` makes, with every parameter random."""
    rng = np.random.default_rng(seed)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    values = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype),
        state,
    )
    return nnx.merge(graphdef, values)


def build(make: Callable[[], nnx.Module]) -> tuple[dict, Callable]:
    """Return `from_nnx` of a filled module."""
    return nn.from_nnx(filled(make))


def batch(shape: tuple[int, ...] = SHAPE, dtype: Any = jnp.float32, seed: int = 1):
    """Return x, t and labels for a network of this room."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    t = jnp.asarray(rng.uniform(size=shape[0]), dtype)
    labels = jnp.asarray(rng.integers(0, CLASSES, shape[0]))
    return x, t, labels


def equations(jaxpr: Any) -> list[Any]:
    """Return all equations of a jaxpr, inner jaxprs included."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += equations(inner)
    return found
