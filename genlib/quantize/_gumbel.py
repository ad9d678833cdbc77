"""A categorical bottleneck with samples that have a gradient."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._entropy import index_perplexity
from genlib.quantize._estimators import straight_through
from genlib.quantize._keys import global_keys
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_indices,
    check_mask,
    check_vectors,
    rows_of,
    without_masked,
)
from genlib.types import Array, ArrayLike, Key, Scalar, check_positive, compute_dtype

HIGHEST = jax.lax.Precision.HIGHEST


def gumbel(size: int, *, temperature: Scalar = 1.0, hard: bool = True) -> Quantizer:
    """Return a bottleneck that draws one of `size` codes, by Gumbel-softmax.

    logits = z weights, y = softmax((logits + g) / temperature) with g Gumbel noise, and
    codes = y codebook (arXiv:1611.01144; for images arXiv:2102.12092). There is no
    distance: weights and codebook are both trained through the reconstruction.

    Args:
      size: how many codes, K.
      temperature: of the softmax, may be traced, as for a schedule. As it goes to 0,
        soft samples become codes and gradients vary more.
      hard: whether y is the one-hot vector of its largest entry, with the gradient of
        the softmax; else a sample is a mixture of codes. Without a key it is always
        one code, the likeliest.

    Returns:
      A `Quantizer` with parameters {"weights" [D, K], "codebook" [K, D]} and the loss
      "kl" = KL(softmax(logits) || uniform), nats for each vector.

    Raises:
      ValueError: if `size` is less than 1 or `temperature` not positive.

    >>> quantizer = gumbel(8)
    >>> params = quantizer.init(jax.random.key(0), jnp.zeros((2, 4)))
    >>> quantizer.quantize(params, jnp.zeros((2, 4))).losses["kl"].round(4)
    Array([0., 0.], dtype=float32)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1; it is {size}")
    check_positive("temperature", temperature)

    def init(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        z = check_vectors(z)
        check_mask(mask, z.shape[:-1])
        width, dtype = z.shape[-1], compute_dtype(z.dtype)
        first, second = jax.random.split(key)
        weights = jax.random.normal(first, (width, size), dtype) / math.sqrt(width)
        return {
            "weights": weights,
            "codebook": jax.random.normal(second, (size, width), dtype),
        }

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        z = check_vectors(z, len(params["weights"]))
        mask = check_mask(mask, z.shape[:-1])
        logits = _logits(without_masked(z, mask), params["weights"])
        noisy = logits if key is None else logits + _noise(key, logits, axis_name)
        indices = jax.lax.argmax(noisy, noisy.ndim - 1, jnp.int32)
        # The division comes after the shift, or a small temperature overflows.
        shift = jax.lax.stop_gradient(noisy.max(-1, keepdims=True))
        y = jax.nn.softmax((noisy - shift) / temperature)
        if hard or key is None:
            y = straight_through(y, jax.nn.one_hot(indices, size, dtype=y.dtype))
        codes = jnp.matmul(y, params["codebook"], precision=HIGHEST)
        log_q = jax.nn.log_softmax(logits)
        kl = (jnp.exp(log_q) * log_q).sum(-1) + math.log(size)
        if mask is not None:
            indices = jnp.where(mask, indices, -1)
            codes = jnp.where(mask[..., None], codes, 0)
            kl = jnp.where(mask, kl, 0)
        perplexity = index_perplexity(indices, size, axis_name)
        return Quantized(codes.astype(z.dtype), indices, {"kl": kl}, perplexity, ())

    def lookup(params: Params, indices: ArrayLike) -> Array:
        return rows_of(params["codebook"], check_indices(indices, size))

    return Quantizer(init, quantize, lookup, lambda params, statistics: params, size)


def _logits(z: Array, weights: Array) -> Array:
    """Return z weights, held where they would overflow: long since one-hot there."""
    limit = math.sqrt(jnp.finfo(z.dtype).max)
    return jnp.matmul(jnp.clip(z, -limit, limit), weights, precision=HIGHEST)


def _noise(key: Key, logits: Array, axis_name: Any) -> Array:
    count, size = math.prod(logits.shape[:-1]), logits.shape[-1]
    draw = lambda key: jax.random.gumbel(key, (size,), logits.dtype)
    return jax.vmap(draw)(global_keys(key, count, axis_name)).reshape(logits.shape)
