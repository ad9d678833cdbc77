"""Layers that drop variables or add them."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows._base import Base
from genlib.flows._bijector import (
    Bijector,
    Params,
    beside,
    check_features,
    check_key,
)
from genlib.flows._density import Density
from genlib.types import Array, Key


def slicing(count: int, decoder: Base | Density) -> Bijector:
    """Drop variables, which are drawn again on the way back.

        x = (a, b) -> a,  contribution log p(b | a)              (arXiv:2007.02731),

    exact, as b is certain. The inverse draws b ~ p(b | a) with the contribution
    -log p(b | a).

    Args:
      count: how many of the last axis are dropped, its last ones.
      decoder: p(b | a), a base or a density that takes a as its `cond`, for example
        `normal(conditioner=...)`, with the `cond` of the layer beside it.

    Returns:
      A stochastic `Bijector` for x [B, ..., D] with the parameters of `decoder`.

    Raises:
      ValueError: if `count` is not positive or leaves no variable, or the inverse has
        no key.

    >>> from genlib import flows
    >>> layer = slicing(1, flows.normal())
    >>> y, log_det = layer.forward({}, jnp.array([[5.0, 0.0]]))
    >>> y.tolist(), round(log_det.item(), 4)  # -ln(2 pi) / 2
    ([[5.0]], -0.9189)
    """
    if count < 1:
        raise ValueError(f"count must be positive; it is {count}")
    log_prob, draw = _functions(decoder)

    def parts(x: Array) -> tuple[Array, Array]:
        if check_features("x", x).shape[-1] <= count:
            raise ValueError(
                f"x must have more than {count} variables on its last axis; its shape "
                f"is {x.shape}"
            )
        return x[..., :-count], x[..., -count:]

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        a, b = parts(x)
        return decoder.init(key, b, beside(a, cond))

    def forward(
        params: Params, x: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        a, b = parts(x)
        return a, log_prob(params, b, beside(a, cond), key)

    def inverse(
        params: Params, y: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        key = check_key(key, "a layer that adds variables")
        like = jax.ShapeDtypeStruct((*y.shape[:-1], count), y.dtype)
        b, log_p = draw(key, params, like, beside(y, cond))
        return jnp.concatenate([y, b], -1), -log_p

    return Bijector(init, forward, inverse, stochastic=True)


def augment(count: int, noise: Base | Density) -> Bijector:
    """Add variables, which are dropped on the way back.

        x -> (x, u),  u ~ q(u | x),  contribution -log q(u | x)   (arXiv:2002.07101),

    which makes the log-likelihood a lower bound in expectation. The inverse drops u,
    with the contribution log q(u | x). More variables than the data has let a flow
    change topology; q may be fixed, as `normal()`.

    Args:
      count: how many are added at the end of the last axis.
      noise: q(u | x), a base or a density that takes x as its `cond`, with the `cond`
        of the layer beside it.

    Returns:
      A stochastic `Bijector` for x [B, ..., D] with the parameters of `noise`.

    Raises:
      ValueError: if `count` is not positive, or there is no key.

    >>> from genlib import flows
    >>> layer = augment(2, flows.normal())
    >>> y, _ = layer.forward({}, jnp.ones((1, 1)), key=jax.random.key(0))
    >>> y.shape, layer.inverse({}, y)[0].tolist()
    ((1, 3), [[1.0]])
    """
    _, drop, add, _ = slicing(count, noise)

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        key_init, key_noise = jax.random.split(key)
        u = jax.random.normal(key_noise, (*x.shape[:-1], count), x.dtype)
        return noise.init(key_init, u, beside(check_features("x", x), cond))

    return Bijector(init, add, drop, stochastic=True)


def _functions(distribution: Base | Density) -> tuple[Any, Any]:
    """Return its log-density, and a draw with the log-density of what is drawn."""
    if isinstance(distribution, Base):

        def log_prob(params: Params, b: Array, a: Array, key: Key | None) -> Array:
            return distribution.log_prob(params, b, a)

        def draw(key: Key, params: Params, like: Any, a: Array) -> tuple[Any, Array]:
            b = distribution.sample(key, params, like, a)
            return b, distribution.log_prob(params, b, a)

        return log_prob, draw

    def draw_flow(key: Key, params: Params, like: Any, a: Array) -> tuple[Any, Array]:
        return distribution.sample_and_log_prob(
            key, params, like.shape, a, dtype=like.dtype
        )

    return distribution.log_prob, draw_flow
