"""The importance-weighted bound, and gradients of it with less variance."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from genlib.losses._latents import (
    Posterior,
    draw,
    like,
    log_density,
    normal_posterior,
    numbers,
    sample_keys,
    total,
)
from genlib.types import Array, Key

ESTIMATORS = ("standard", "stl", "dreg")


def iwae(
    key: Key,
    posterior: Posterior,
    log_joint: Callable[[Any, Any], Array],
    x: Any,
    *,
    samples: int,
    estimator: str = "standard",
) -> Array:
    """Return the importance-weighted bound of several latents, negative.

        loss = -log 1/K sum_k w_k,  w = p(x, z) / q(z|x),  z ~ q = N(mean, std^2)
                                                                   (arXiv:1509.00519),

    at least -log p(x) in expectation, and closer the larger K is. All estimators have
    this value, and the same gradient in the decoder: sum_k w~_k d log w_k, with
    w~ = w / sum(w). In the encoder, that of
      "standard" is the derivative of the value: more samples make it noisier, in
        proportion to its mean;
      "stl" (arXiv:1703.09194) leaves the derivative of log q in mean and std out, whose
        mean is 0 if K = 1; for K > 1 the gradient is biased. It is exactly 0 at the
        exact posterior;
      "dreg" (arXiv:1810.04152) is sum_k w~_k^2 (d log w_k / d z_k) d z_k: unbiased, 0
        at the exact posterior too, and less noisy with more samples.

    Args:
      key: typed PRNG key, for the latents.
      posterior: the encoder, `x -> (mean, log_std)`, [B, ...] or pytrees of such.
      log_joint: decoder and prior, `(z, x) -> log p(x|z) + log p(z)`, nats [B], without
        a mixing of examples; z has the dtype of mean.
      x: data, B examples.
      samples: K.
      estimator: of the gradient in the encoder.

    Returns:
      Nats [B], float32 (float64 for float64 means).

    Raises:
      ValueError: if `samples` is less than 1, `estimator` is none of these, the
        posterior's shapes differ, or `log_joint` does not return one number per
        example.

    >>> from genlib import flows
    >>> log_prior = lambda z: flows.normal().log_prob({}, z)
    >>> log_joint = lambda z, x: log_prior(z) + log_prior(x - z)  # x ~ N(0, 2)
    >>> exact = lambda x: (x / 2, jnp.full_like(x, -0.5 * jnp.log(2.0)))
    >>> key, x = jax.random.key(0), jnp.zeros((1, 1))
    >>> iwae(key, exact, log_joint, x, samples=4).round(4)  # ln(4 pi) / 2
    Array([1.2655], dtype=float32)
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}; it is {estimator!r}")
    keys = sample_keys(key, samples)
    mean, log_std = normal_posterior(posterior(x))
    z, eps = jax.vmap(lambda key: draw(key, mean, log_std))(keys)
    log_q = jax.vmap(lambda eps: log_density(eps, log_std))(eps)

    def joint(z: Any) -> Array:
        one = lambda z: numbers(log_joint(like(z, mean), x), mean, "log_joint")
        return jax.vmap(one)(z)

    if estimator == "standard":
        return -_log_mean(joint(z) - log_q)
    fixed, log_q = stop_gradient((z, log_q))
    d_log_q = jax.tree.map(
        lambda e, s: stop_gradient(-e * jnp.exp(-s.astype(e.dtype))[None]), eps, log_std
    )

    def along(slope: Any, z: Any) -> Array:
        """Return 0, with derivative `slope` in z: [K, B]."""
        moved = jax.tree.map(lambda d, z, z_0: d * (z - z_0), slope, z, fixed)
        return jax.vmap(total)(moved)

    def log_weight(z: Any) -> Array:
        """Return log w, where log q changes with z but not with mean and std."""
        return joint(z) - (log_q + along(d_log_q, z))

    if estimator == "stl":
        return -_log_mean(log_weight(z))
    log_w, pull_back = jax.vjp(log_weight, fixed)
    weights = jax.nn.softmax(stop_gradient(log_w), axis=0)
    (slope,) = stop_gradient(pull_back(jnp.square(weights)))
    return -(_log_mean(log_w) + along(slope, z).sum(0))


def _log_mean(log_w: Array) -> Array:
    """Return the log of the mean of weights over samples, [B]."""
    return jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))
