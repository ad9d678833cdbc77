"""The divergence of a field: exactly, or by a random probe.

| function                                   | what it does                            |
|--------------------------------------------|-----------------------------------------|
| `exact_trace()`                            | the sum over all basis vectors          |
| `hutchinson(key)`                          | an unbiased estimate by a random probe  |
| `Divergence`                               | the type of both                        |
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from genlib.types import Array, Key, check_typed_key, example_keys

__all__ = ["Divergence", "exact_trace", "hutchinson"]

Field = Callable[[Array], Array]
# `(field, x) -> (field(x), div field(x) [B])`, for fields that do not mix examples.
Divergence = Callable[[Field, Array], tuple[Array, Array]]


def exact_trace(*, mode: str = "forward", chunk: int | None = None) -> Divergence:
    """Sum the diagonal of the Jacobian, one basis vector after another.

    div f(x) = sum_i e_i . (df/dx) e_i: about D + 1 evaluations for x of D numbers.

    Args:
      mode: "forward" (Jacobian-vector products) or "reverse" (vector-Jacobian ones).
      chunk: how many basis vectors to take at once; all D by default, which needs D
        times the memory.

    Returns:
      `(field, x) -> (field(x), div)` with x [B, ...] and div [B].

    Raises:
      ValueError: for another mode, or a chunk that is not positive.

    >>> value, div = exact_trace()(lambda x: x**2, jnp.array([[1.0, 2.0]]))
    >>> div
    Array([6.], dtype=float32)
    """
    _check_mode(mode)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1; it is {chunk}")

    def divergence(field: Field, x: Array) -> tuple[Array, Array]:
        value, push = _linear(field, x, mode)
        dimension = math.prod(x.shape[1:])

        def diagonal(i: Array) -> Array:
            basis = jax.nn.one_hot(i, dimension, dtype=x.dtype)
            basis = jnp.broadcast_to(basis.reshape((1, *x.shape[1:])), x.shape)
            return _dot(basis, push(basis))

        indices = jnp.arange(dimension)
        terms = jax.lax.map(diagonal, indices, batch_size=chunk or dimension)
        return value, terms.sum(0)

    return divergence


def hutchinson(
    key: Key, *, mode: str = "forward", probe: str = "rademacher"
) -> Divergence:
    """Estimate the divergence by one random probe for each example.

    div f(x) = E v . (df/dx) v for E v v^T = I (arXiv:1810.01367), at the cost of about
    two evaluations. The probe is drawn from the key alone, so that it stays the same
    throughout a solve, as an ODE needs; average over keys to reduce the variance.

    Args:
      key: one typed key, or one for each example [B].
      mode: "forward" (Jacobian-vector products) or "reverse" (vector-Jacobian ones);
        both give the same number.
      probe: "rademacher" (signs; least variance, exact for diagonal Jacobians) or
        "gaussian".

    Returns:
      `(field, x) -> (field(x), div)` with x [B, ...] and div [B].

    Raises:
      ValueError: for another mode or probe, or a key that is not typed; when called,
        for keys that are not one for each example.

    >>> divergence = hutchinson(jax.random.key(0))
    >>> divergence(lambda x: x**2, jnp.array([[1.0, 2.0]]))[1]
    Array([6.], dtype=float32)
    """
    _check_mode(mode)
    draws = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}
    if probe not in draws:
        raise ValueError(f"probe must be one of {[*draws]}; it is {probe!r}")
    check_typed_key(key)

    def divergence(field: Field, x: Array) -> tuple[Array, Array]:
        keys = example_keys(key, x)
        v = jax.vmap(lambda k: draws[probe](k, x.shape[1:], x.dtype))(keys)
        value, push = _linear(field, x, mode)
        return value, _dot(v, push(v))

    return divergence


def _linear(field: Field, x: Array, mode: str) -> tuple[Array, Field]:
    """Return field(x) and the product with its Jacobian, or with the transpose."""
    if mode == "forward":
        return jax.linearize(field, x)
    value, pull = jax.vjp(field, x)
    return value, lambda v: pull(v)[0]


def _dot(a: Array, b: Array) -> Array:
    return (a * b).sum(tuple(range(1, a.ndim)))


def _check_mode(mode: str) -> None:
    if mode not in ("forward", "reverse"):
        raise ValueError(f'mode must be "forward" or "reverse"; it is {mode!r}')
