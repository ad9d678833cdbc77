"""What autoencoders are made of: their networks, and the terms of their losses."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from genlib.nn._adapters import lazy
from genlib.types import Array, Key, compute_dtype

# (x_hat, x) -> one number for each example.
Distance = Callable[[Array, Array], Array]
Make = Callable[[nnx.Rngs], nnx.Module]


class AutoencoderLoss(NamedTuple):
    """What an autoencoder makes of a batch in training.

    Attributes:
      loss: one number for each example [B], in at least float32.
      terms: what it is made of by name, each [B], unweighted.
      x_hat: what the decoder returned.
      statistics: what the autoencoder's `update` learns from, () if it learns nothing.
    """

    loss: Array
    terms: dict[str, Array]
    x_hat: Array
    statistics: Any = ()


def network(make: Make) -> tuple[Callable[..., Any], Callable[..., Array]]:
    """Describe a network: `key -> params`, and `(params, x, key=None) -> y`.

    The key goes to networks that take one, for their dropout.

    >>> import jax
    >>> init, apply = network(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> params = init(jax.random.key(0))
    >>> apply(params, jnp.ones((4, 2)), jax.random.key(1)).shape
    (4, 3)
    """
    init, apply = lazy(make)
    module: Any = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    takes_key = "key" in inspect.signature(type(module).__call__).parameters

    def call(params: Any, x: Array, key: Key | None = None) -> Array:
        return apply(params, x, key=key) if takes_key else apply(params, x)

    return init, call


def like(z: Array, x: Array) -> Array:
    """Return numbers in the dtype of x, or as they are if x is not floating.

    >>> like(jnp.array([0.5]), jnp.array([1], jnp.int32))
    Array([0.5], dtype=float32)
    """
    return z.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else z


def over_axes(reduce: Callable[..., Array], x: Array) -> Array:
    """Reduce all axes but the first, by `jnp.sum` or `jnp.mean`: [B].

    >>> over_axes(jnp.sum, jnp.ones((0, 2, 3))).shape
    (0,)
    """
    return reduce(x, axis=tuple(range(1, x.ndim)))


def mean_squared_error(x_hat: Array, x: Array) -> Array:
    """Return the mean square of x_hat - x for each example [B], in at least float32.

    >>> mean_squared_error(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([1., 1.], dtype=float32)
    """
    wide = compute_dtype(x.dtype)
    squares = jnp.square(x_hat.astype(wide) - x.astype(wide))
    return over_axes(jnp.mean, squares)


def distance(name: str, measure: Distance, x_hat: Array, x: Array) -> Array:
    """Return a term of a loss [B], or say what is wrong with it.

    Raises:
      ValueError: if `x_hat` does not have the shape of `x`, or the term is not one
        number for each example.
    """
    if x_hat.shape != x.shape:
        raise ValueError(
            f"decoder must return the shape {x.shape} of x; it returned {x_hat.shape}"
        )
    return per_example(name, measure(x_hat, x), x)


def per_example(name: str, value: Array, x: Array) -> Array:
    """Return a term of a loss [B] in at least float32.

    Raises:
      ValueError: if it is not one number for each example.
    """
    if jnp.shape(value) != x.shape[:1]:
        raise ValueError(
            f"{name} must return one number for each of {x.shape[0]} examples; its "
            f"shape is {jnp.shape(value)}"
        )
    return value.astype(compute_dtype(value.dtype))
