"""Entropies of codes whose number may be far too large to list them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.quantize._usage import histogram, perplexity
from genlib.types import Array

# A histogram of more values than this is larger than a batch of indices usually is.
LARGE = 2**16


def index_perplexity(indices: Array, size: int, axis_name: Any = None) -> Array:
    """Return the perplexity of indices [...] below `size`, float32 [].

    >>> index_perplexity(jnp.array([7, 2**30, -1]), 2**31)
    Array(2., dtype=float32)
    """
    if size <= LARGE:
        return perplexity(histogram(indices, size, axis_name=axis_name))
    indices = indices.ravel()
    if axis_name is not None:
        indices = jax.lax.all_gather(indices, axis_name, tiled=True)
    # Indices that occur are numbered anew: no more than there are vectors.
    indices = jnp.sort(indices)
    changes = jnp.append(False, indices[1:] != indices[:-1])
    number = jnp.where(indices < 0, -1, jnp.cumsum(changes, dtype=jnp.int32))
    result = perplexity(histogram(number, max(len(number), 1)))
    # The same on all devices; the mean tells the compiler so.
    return result if axis_name is None else jax.lax.pmean(result, axis_name)


def bit_entropy(logits: Array) -> Array:
    """Return the entropy in nats of bits that are 1 with probability sigmoid(logit).

    >>> bit_entropy(jnp.array([0.0, -1e30]))
    Array([0.6931472, 0.       ], dtype=float32)
    """
    size = jnp.abs(_sure(logits))
    return jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)


def mean_entropy(
    logits: Array, group_size: int, mask: Array | None, axis_name: Any = None
) -> Array:
    """Return the entropy in nats of the mean over vectors of p(code | vector).

    Bits are independent given the vector, so that the joint probabilities of two halves
    of a group, averaged over vectors, are one matrix product: nothing is of the size of
    vectors times codes. The entropies of groups add up, which bounds the joint entropy
    of all bits from above.

    Args:
      logits: [..., bits], of vectors that are not masked.
      group_size: how many neighbouring bits are taken jointly.
      mask: bool [...] or None.
      axis_name: of the devices' parts.

    >>> mean_entropy(jnp.array([[99.0, 99.0], [-99.0, -99.0]]), 2, None)
    Array(0.6931472, dtype=float32)
    """
    rows = _sure(logits).reshape(-1, logits.shape[-1] // group_size, group_size)
    weight = jnp.ones(len(rows)) if mask is None else mask.ravel()
    weight = weight.astype(rows.dtype)
    left = _joint(rows[..., : group_size // 2]) * weight[:, None, None]
    right = _joint(rows[..., group_size // 2 :])
    sums = jnp.einsum("ngi,ngj->gij", left, right, precision="highest")
    n = weight.sum()
    if axis_name is not None:
        sums, n = jax.lax.psum((sums, n), axis_name)
    p = sums / jnp.where(n > 0, n, 1)
    return jax.scipy.special.entr(jnp.where(p == 0, 1, p)).sum()


def _joint(logits: Array) -> Array:
    """Return the probabilities [..., 2^b] of the values of independent bits."""
    # One product of matrices, in logs: sure bits have log 0, which loses nothing.
    bits = logits.shape[-1]
    ones = np.arange(2**bits) >> np.arange(bits)[:, None] & 1
    table = jnp.asarray(np.concatenate([1 - ones, ones]), logits.dtype)
    logs = jax.nn.log_sigmoid(jnp.concatenate([-logits, logits], axis=-1))
    return jnp.exp(jnp.matmul(logs, table, precision="highest"))


def _sure(logits: Array) -> Array:
    """Return finite logits of the same probabilities, which are 0 and 1 from 1e4."""
    return jnp.clip(logits, -1e4, 1e4)
