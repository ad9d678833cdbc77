"""log |det (I + J)| for the Jacobian J of a contraction, three ways."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.types import Array, Key, Scalar, expand_like

# `(parts, x) -> g(x)`: parts is a pytree of all that g depends on and x is [B, ...].
Contraction = Callable[[Any, Array], Array]


def exact(g: Contraction, parts: Any, x: Array) -> tuple[Array, Array]:
    """Return g(x) and log |det (I + J)| by the whole Jacobian.

    D products with J and D^3 operations for D numbers per example.

    >>> value, log_det = exact(lambda a, x: a * x, 0.5, jnp.ones((1, 2)))
    >>> log_det == 2 * jnp.log(1.5)
    Array([ True], dtype=bool)
    """
    value, push = jax.linearize(lambda x: g(parts, x), x)
    columns = jax.vmap(push)(basis(x))
    size = len(columns)
    jacobian = jnp.moveaxis(columns.reshape(size, len(x), size), 0, -1)
    return value, jnp.linalg.slogdet(jnp.eye(size, dtype=x.dtype)[None] + jacobian)[1]


def series(
    g: Contraction,
    parts: Any,
    x: Array,
    probes: Array,
    last: Array,
    terms: int,
    keep: Scalar,
) -> tuple[Array, Array]:
    """Return g(x) and sum_k (-1)^(k+1) v . J^k v / (k P(K >= k)) up to k = K.

    P(K >= k) is 1 up to `terms` and then falls by `keep` with each term. The gradient
    is that of the same terms, v . J^(k-1) dJ v, so that no loop is differentiated and
    the memory is that of two calls of g (arXiv:1906.02735, eq. 8).

    Args:
      g: the contraction.
      parts: what it depends on.
      x: [B, ...].
      probes: v, [V, B, ...]; the estimates of all V are added.
      last: K of each example, [B].
      terms: how many are there with probability 1.
      keep: in (0, 1].

    >>> double = lambda a, x: a * x
    >>> x = jnp.ones((1, 1))
    >>> series(double, 0.5, x, basis(x), jnp.array([2]), 2, 1.0)[1].item()
    0.375
    """
    value, push = jax.linearize(lambda x: g(parts, x), x)
    fixed_parts, fixed_x = jax.lax.stop_gradient((parts, x))
    _, pull = jax.vjp(lambda x: g(fixed_parts, x), fixed_x)
    back = jax.vmap(lambda v: pull(v)[0])
    keep = jnp.asarray(jax.lax.stop_gradient(keep), x.dtype)

    def add_term(state: tuple[Array, ...]) -> tuple[Array, ...]:
        k, power, total, gathered = state
        weight = keep ** -jnp.maximum(k - terms, 0).astype(x.dtype)
        weight = jnp.where(k <= last, jnp.where(k % 2 == 1, weight, -weight), 0)
        gathered = gathered + expand_like(weight, x)[None] * power
        power = back(power)
        return k + 1, power, total + weight / k * dot(probes, power), gathered

    start = jnp.ones((), last.dtype), probes, jnp.zeros(len(x), x.dtype), 0 * probes
    *_, total, gathered = jax.lax.while_loop(
        lambda state: state[0] <= last.max(), add_term, start
    )
    tangent = dot(jax.lax.stop_gradient(gathered), jax.vmap(push)(probes))
    return value, total + (tangent - jax.lax.stop_gradient(tangent))


def basis(x: Array) -> Array:
    """Return the basis vectors of one example as probes, [D, B, ...].

    >>> basis(jnp.ones((5, 2, 3))).shape
    (6, 5, 2, 3)
    """
    size = math.prod(x.shape[1:])
    vectors = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    return jnp.broadcast_to(vectors, (size, *x.shape))


def random_signs(keys: Key, x: Array) -> Array:
    """Return one probe v with E v v^T = I for each example, [1, B, ...].

    >>> from genlib.types import example_keys
    >>> x = jnp.ones((5, 2))
    >>> random_signs(example_keys(jax.random.key(0), x), x).shape
    (1, 5, 2)
    """
    draw = lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype)
    return jax.vmap(draw)(keys)[None]


def dot(a: Array, b: Array) -> Array:
    """Return sum_v a_v . b_v for each example of two arrays [V, B, ...].

    >>> dot(jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4)))
    Array([12., 12.], dtype=float32)
    """
    return (a * b).sum((0, *range(2, a.ndim)))
