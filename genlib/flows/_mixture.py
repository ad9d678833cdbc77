"""A mixture of Gaussians as the base of a flow."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows._actnorm import safe_log_std
from genlib.flows._base import Base
from genlib.flows._bijector import Params, wide
from genlib.types import Array, Key, Scalar


def mixture(components: int) -> Base:
    """Return a trained mixture of diagonal normal distributions.

        p(z) = sum_k softmax(logits)_k N(z; mean_k, (temperature scale_k)^2)
                                                                    (arXiv:1912.13025).

    `init` puts the means on examples of its batch, each another one, and the scales at
    the standard deviation of the batch: components that start alike stay alike. The
    weights start equal. The temperature narrows each component and keeps the weights.

    Args:
      components: K.

    Returns:
      A `Base` for arrays z [B, ...] with parameters {"logits": [K], "mean": [K, ...],
      "log_scale": [K, ...]}. K numbers are computed for each one of z.

    Raises:
      ValueError: if `components` is not positive; from `init`, if the batch has fewer
        examples; for pytrees.

    >>> base = mixture(2)
    >>> params = base.init(jax.random.key(0), jnp.array([[-1.0], [1.0]]))
    >>> sorted(params["mean"][:, 0].tolist())
    [-1.0, 1.0]
    """
    if components < 1:
        raise ValueError(f"components must be at least 1; it is {components}")

    def init(key: Key, z: Array, cond: Any = None) -> Params:
        z = wide(_array(z))
        if z.shape[0] < max(2, components):
            raise ValueError(
                f"z must have at least {max(2, components)} examples, for as many "
                f"components and a variance; its shape is {z.shape}"
            )
        rows = jax.random.choice(key, z.shape[0], (components,), replace=False)
        flat = z.reshape(z.shape[0], -1)
        log_scale = safe_log_std(flat)[1].reshape(1, *z.shape[1:])
        return {
            "logits": jnp.zeros(components, z.dtype),
            "mean": z[rows],
            "log_scale": jnp.broadcast_to(log_scale, (components, *z.shape[1:])),
        }

    def log_prob(
        params: Params, z: Array, cond: Any = None, *, temperature: Scalar = 1.0
    ) -> Array:
        z = wide(_array(z)).reshape(z.shape[0], 1, math.prod(z.shape[1:]))
        mean, log_scale = (
            params[name].astype(z.dtype).reshape(1, components, -1)
            for name in ("mean", "log_scale")
        )
        log_scale = log_scale + jnp.log(temperature)
        squares = jnp.square((z - mean) * jnp.exp(-log_scale))
        each = (-0.5 * (squares + math.log(2 * math.pi)) - log_scale).sum(2)
        weights = jax.nn.log_softmax(params["logits"].astype(z.dtype))
        return jax.nn.logsumexp(each + weights[None], 1)

    def sample(
        key: Key,
        params: Params,
        like: Any,
        cond: Any = None,
        *,
        temperature: Scalar = 1.0,
    ) -> Array:
        key_choice, key_noise = jax.random.split(key)
        shape, dtype = _array(like).shape, params["mean"].dtype
        chosen = jax.random.categorical(key_choice, params["logits"], shape=shape[:1])
        noise = jax.random.normal(key_noise, shape, dtype)
        scale = temperature * jnp.exp(params["log_scale"][chosen])
        return (params["mean"][chosen] + scale * noise).astype(like.dtype)

    return Base(init, log_prob, sample)


def _array(z: Any) -> Any:
    if len(jax.tree.leaves(z)) != 1 or not hasattr(z, "shape"):
        raise ValueError(
            f"z must be one array for a mixture; it is {jax.tree.structure(z)}"
        )
    return z
