"""The evidence of a latent-variable model by importance sampling."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows import normal
from genlib.tree import is_float
from genlib.types import Array, Key, compute_dtype


def importance_weighted(
    key: Key,
    posterior: Callable[[Any], tuple[Any, Any]],
    log_joint: Callable[[Any, Any], Array],
    x: Any,
    *,
    samples: int,
    chunk: int | None = None,
) -> Array:
    """Return an estimate of log p(x) of a variational autoencoder, in nats.

        log 1/K sum_k p(x, z_k) / q(z_k|x),  z_k ~ q = N(mean, std^2)
                                                                   (arXiv:1509.00519).

    In expectation it is a lower bound, which rises with K to log p(x).

    Args:
      key: typed PRNG key, for the latents.
      posterior: the encoder, `x -> (mean, log_std)`, [B, ...] or pytrees of such.
      log_joint: decoder and prior, `(z, x) -> log p(x|z) + log p(z)`, nats [B]; z has
        the dtype of mean.
      x: data, B examples.
      samples: K.
      chunk: how many samples are in memory at once, a divisor of K; all by default. The
        latents that are drawn do not depend on it.

    Returns:
      Nats [B], float32 (float64 for float64 means).

    Raises:
      ValueError: if `samples` is less than 1, `chunk` does not divide it, the
        posterior's shapes differ, or `log_joint` does not return one number per
        example.

    >>> from genlib import flows
    >>> log_prior = lambda z: flows.normal().log_prob({}, z)
    >>> log_joint = lambda z, x: log_prior(z) + log_prior(x - z)  # x ~ N(0, 2)
    >>> prior = lambda x: (0 * x, 0 * x)
    >>> key, x = jax.random.key(0), jnp.zeros((1, 1))
    >>> likelihood = importance_weighted(key, prior, log_joint, x, samples=4096)
    >>> abs(likelihood.item() + 1.2655) < 0.03  # ln(4 pi) / 2
    True
    """
    chunk = samples if chunk is None else chunk
    if samples < 1:
        raise ValueError(f"samples must be at least 1; it is {samples}")
    if chunk < 1 or samples % chunk:
        raise ValueError(f"chunk must divide the {samples} samples; it is {chunk}")
    mean, log_std = (jax.tree.map(jnp.asarray, tree) for tree in posterior(x))
    like = jax.tree.map(_wide, mean)
    shapes = [jax.tree.map(lambda leaf: str(leaf.shape), t) for t in (mean, log_std)]
    if shapes[0] != shapes[1] or not all(map(is_float, jax.tree.leaves(mean))):
        raise ValueError(
            "posterior must return floating mean and log_std, [B, ...] of the same "
            f"shapes; they are {shapes[0]} and {shapes[1]}"
        )
    batch = jax.tree.leaves(like)[0].shape[:1]
    dtype = jnp.result_type(*jax.tree.leaves(like))

    def log_weight(key: Key) -> Array:
        eps = normal().sample(key, {}, like)
        z = jax.tree.map(
            lambda m, s, e: (m + jnp.exp(s.astype(e.dtype)) * e).astype(m.dtype),
            mean,
            log_std,
            eps,
        )
        log_p = log_joint(z, x)
        if jnp.shape(log_p) != batch:
            raise ValueError(
                f"log_joint must return one number per example, {batch}; it returned "
                f"{jnp.shape(log_p)}"
            )
        # log q(z) = log N(eps; 0, I) - log |dz / d eps|
        log_volume = jax.tree.map(
            lambda s, e: s.astype(e.dtype).sum(range(1, s.ndim)), log_std, eps
        )
        log_volume = jnp.stack(jax.tree.leaves(log_volume)).sum(0)
        return log_p - normal().log_prob({}, eps) + log_volume

    def add(log_sum: Array, keys: Key) -> tuple[Array, None]:
        log_w = jax.nn.logsumexp(jax.vmap(log_weight)(keys), axis=0)
        return jnp.logaddexp(log_sum, log_w.astype(dtype)), None

    keys = jax.random.split(key, samples).reshape(-1, chunk)
    log_sum, _ = jax.lax.scan(add, jnp.full(batch, -jnp.inf, dtype), keys)
    return log_sum - math.log(samples)


def _wide(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, compute_dtype(leaf.dtype))
