"""Latents of a normal posterior: how they are drawn, and their density."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows import normal
from genlib.types import Array, Key, compute_dtype

Posterior = Callable[[Any], tuple[Any, Any]]


def reparameterize(key: Key, mean: Any, log_std: Any) -> Any:
    """Draw z = mean + std eps with eps ~ N(0, I), through which gradients flow.

    Source: arXiv:1312.6114.

    Args:
      key: typed PRNG key.
      mean: [B, ...], or a pytree of such arrays.
      log_std: log of the standard deviations, like `mean`.

    Returns:
      Latents with the shapes and dtypes of `mean`.

    Raises:
      ValueError: if shapes differ, or are not of floating batches.

    >>> mean = jnp.ones((1, 2))
    >>> jax.grad(lambda m: reparameterize(jax.random.key(0), m, 0 * mean).sum())(mean)
    Array([[1., 1.]], dtype=float32)
    """
    mean, log_std = normal_posterior((mean, log_std))
    return like(draw(key, mean, log_std)[0], mean)


def normal_posterior(value: Any) -> tuple[Any, Any]:
    """Return (mean, log_std), or raise a ValueError if the two do not fit."""
    mean, log_std = (jax.tree.map(jnp.asarray, tree) for tree in value)
    shapes = [jax.tree.map(lambda leaf: str(leaf.shape), t) for t in (mean, log_std)]
    floating = all(
        leaf.ndim > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        for leaf in jax.tree.leaves((mean, log_std))
    )
    if shapes[0] != shapes[1] or not floating:
        raise ValueError(
            "mean and log_std must be floating [B, ...] of the same shapes; they are "
            f"{shapes[0]} and {shapes[1]}"
        )
    return mean, log_std


def sample_keys(key: Key, samples: int) -> Key:
    """Return the key of each sample, [samples]."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1; it is {samples}")
    return jax.random.split(key, samples)


def draw(key: Key, mean: Any, log_std: Any) -> tuple[Any, Any]:
    """Return z = mean + std eps and eps, wide."""
    wide = lambda m: jax.ShapeDtypeStruct(m.shape, compute_dtype(m.dtype))
    eps = normal().sample(key, {}, jax.tree.map(wide, mean))
    shift = lambda m, s, e: m + jnp.exp(s.astype(e.dtype)) * e
    return jax.tree.map(shift, mean, log_std, eps), eps


def log_density(eps: Any, log_std: Any) -> Array:
    """Return log q(z) of z = mean + std eps, [B]: without z - mean, which cancels."""
    return normal().log_prob({}, eps) - total(log_std)


def total(tree: Any) -> Array:
    """Return the wide sum of all numbers of each example, [B]."""
    wide = (leaf.astype(compute_dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree))
    return jnp.stack([leaf.sum(tuple(range(1, leaf.ndim))) for leaf in wide]).sum(0)


def like(z: Any, mean: Any) -> Any:
    """Return latents in the dtypes of `mean`, as networks see them."""
    return jax.tree.map(lambda leaf, m: leaf.astype(m.dtype), z, mean)


def numbers(value: Array, mean: Any, name: str) -> Array:
    """Return what a log-density gave, wide, if it is one number for each example."""
    shape = jax.tree.leaves(mean)[0].shape[:1]
    if jnp.shape(value) != shape:
        raise ValueError(
            f"{name} must return one number per example, {shape}; it returned "
            f"{jnp.shape(value)}"
        )
    return value.astype(compute_dtype(value.dtype))
