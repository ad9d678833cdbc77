"""A flow and a base distribution: densities and samples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.flows._base import Base, normal
from genlib.flows._bijector import Bijector, Params
from genlib.flows._chain import call
from genlib.types import Array, Key, Scalar


class Density(NamedTuple):
    """A distribution that can be evaluated and sampled, made by `density`.

    Attributes:
      init: `(key, x, cond=None) -> params`, with `x` a batch of data.
      log_prob: `(params, x, cond=None, key=None) -> [B]`, nats, in at least float32.
        With stochastic layers, which need the key, an unbiased estimate, or a lower
        bound in expectation where integers are dequantised or variables are added.
      sample: `(key, params, shape, cond=None, *, dtype=float32, temperature=1) -> x`
        with `shape` and `dtype` of the data, batch first.
      sample_and_log_prob: the same, with log p of each sample [B].

    >>> from genlib import flows
    >>> uniform = flows.density(flows.sigmoid(), flows.uniform())
    >>> uniform.log_prob({}, jnp.zeros((1, 1))).item()  # the logistic's log 1/4
    -1.3862943649291992
    """

    init: Callable[..., Params]
    log_prob: Callable[..., Array]
    sample: Callable[..., Any]
    sample_and_log_prob: Callable[..., tuple[Any, Array]]


def density(bijector: Bijector, base: Base | None = None) -> Density:
    """Let a flow carry data to a base distribution.

        log p(x) = log base(z) + contribution of the flow,  z = forward(x)
                                                    (arXiv:1912.02762, eq. 1).

    Args:
      bijector: the flow; its latents z may be a pytree (see `split`).
      base: distribution of z, `normal()` by default.

    Returns:
      A `Density`, whose parameters are {"flow": ..., "base": ...} without empty ones.

    >>> from genlib import flows
    >>> model = density(flows.chain(flows.actnorm(), flows.reverse()))
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> params = model.init(jax.random.key(0), x)
    >>> model.log_prob(params, x).shape
    (2,)
    >>> model.sample(jax.random.key(1), params, (5, 2)).shape
    (5, 2)
    """
    base = normal() if base is None else base

    def forward(params: Params, x: Any, cond: Any, key: Key | None) -> Any:
        own = params.get("flow", {})
        return call(bijector, bijector.forward, own, x, cond, key)

    def init(key: Key, x: Any, cond: Any = None) -> Params:
        key_flow, key_base, key_call = jax.random.split(key, 3)
        own = bijector.init(key_flow, x, cond)
        z, _ = call(bijector, bijector.forward, own, x, cond, key_call)
        params = {"flow": own, "base": base.init(key_base, z, cond)}
        return {name: tree for name, tree in params.items() if jax.tree.leaves(tree)}

    def log_prob(
        params: Params, x: Any, cond: Any = None, key: Key | None = None
    ) -> Array:
        z, log_det = forward(params, x, cond, key)
        return base.log_prob(params.get("base", {}), z, cond) + log_det

    def draw(
        key: Key,
        params: Params,
        shape: Sequence[int],
        cond: Any = None,
        *,
        dtype: Any = jnp.float32,
        temperature: Scalar = 1.0,
    ) -> tuple[Any, Any, Array]:
        """Return latents, the sample, and the contribution of the inverse."""
        key_base, key_call = jax.random.split(key)
        like = jax.eval_shape(
            lambda: forward(params, jnp.zeros(shape, dtype), cond, key_call)[0]
        )
        own, own_flow = params.get("base", {}), params.get("flow", {})
        z = base.sample(key_base, own, like, cond, temperature=temperature)
        return z, *call(bijector, bijector.inverse, own_flow, z, cond, key_call)

    def sample(*args: Any, **settings: Any) -> Any:
        return draw(*args, **settings)[1]

    def sample_and_log_prob(
        key: Key,
        params: Params,
        shape: Sequence[int],
        cond: Any = None,
        *,
        temperature: Scalar = 1.0,
        **settings: Any,
    ) -> tuple[Any, Array]:
        settings["temperature"] = temperature
        z, x, log_det = draw(key, params, shape, cond, **settings)
        own = params.get("base", {})
        return x, base.log_prob(own, z, cond, temperature=temperature) - log_det

    return Density(init, log_prob, sample, sample_and_log_prob)
