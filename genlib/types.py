"""The few nouns that every room shares, and the checks at their doors."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array
Key = jax.Array
Scalar = float | jax.Array

__all__ = [
    "Array",
    "ArrayLike",
    "Denoiser",
    "Key",
    "Scalar",
    "StatefulDenoiser",
    "check_positive",
    "check_start",
    "check_typed_key",
    "compute_dtype",
    "concrete",
    "example_keys",
    "expand_like",
    "float_array",
    "is_concrete",
    "safe_sqrt",
]


class Denoiser(Protocol):
    """The one type that samplers, guidance and likelihoods speak: `(x_t, t) -> x_0`.

    `x_t` is [B, ...]; `t` is a scalar or [B]; the result estimates E[x_0 | x_t] and has
    the shape and dtype of `x_t`. Conditioning is closed over.
    """

    def __call__(self, x_t: Array, t: Array, /) -> Array: ...


@dataclasses.dataclass(frozen=True, eq=False)
class StatefulDenoiser:
    """A denoiser that remembers its last calls, as guidance with momentum does.

    `samplers.sample` carries the memory from call to call, so that everything stays a
    pure function. Called like any other denoiser it starts with fresh memory.

    Attributes:
      init: `x -> memory`, a pytree, for x_t [B, ...] in the dtype of the computation.
      apply: `(x_t, t, memory) -> (x_0, memory)`, with memory of the same structure.
      check_start: raises a ValueError if x_0 is unknown at a time from which sampling
        is to start.

    >>> average = StatefulDenoiser(  # half of each new x_0
    ...     init=jnp.zeros_like,
    ...     apply=lambda x_t, t, memory: 2 * ((memory + x_t) / 2,),
    ... )
    >>> average(jnp.ones(1), jnp.float32(0.5))
    Array([0.5], dtype=float32)
    """

    init: Callable[[Array], Any]
    apply: Callable[[Array, Array, Any], tuple[Array, Any]]
    check_start: Callable[[ArrayLike], None] = lambda t: None

    def __call__(self, x_t: Array, t: Array, /) -> Array:
        return self.apply(x_t, t, self.init(x_t))[0]


def check_positive(name: str, value: ArrayLike) -> None:
    """Raise a ValueError unless a concrete setting is positive.

    >>> check_positive("snr", 0.0)
    Traceback (most recent call last):
    ValueError: snr must be positive; it is 0.0
    """
    values = concrete(value)
    if values is not None and not (values > 0).all():
        raise ValueError(f"{name} must be positive; it is {value}")


def check_start(denoise: Denoiser, t: ArrayLike) -> None:
    """Raise a ValueError if a denoiser says that it knows nothing about x_0 at a time.

    Denoisers say so in an attribute `check_start(t)`, if they have one.

    >>> check_start(lambda x_t, t: x_t, 1.0)
    """
    getattr(denoise, "check_start", lambda t: None)(t)


def expand_like(t: ArrayLike, x: Array) -> Array:
    """Append axes to `t` so that it broadcasts against a batch `x`.

    Args:
      t: scalar or [B].
      x: [B, ...].

    Returns:
      `t` as a scalar, or as [B, 1, ..., 1] with the rank of `x`.

    Raises:
      ValueError: if `t` is neither a scalar nor one number per example.

    >>> expand_like(jnp.zeros(4), jnp.zeros((4, 8, 8, 1))).shape
    (4, 1, 1, 1)
    """
    t = jnp.asarray(t)
    if t.ndim == 0:
        return t
    if t.ndim != 1 or x.ndim == 0 or t.shape[0] != x.shape[0]:
        raise ValueError(
            f"t must be a scalar or one number per example of x {x.shape}; "
            f"its shape is {t.shape}"
        )
    return t.reshape(t.shape + (1,) * (x.ndim - 1))


def compute_dtype(dtype: Any) -> Any:
    """Return the dtype in which coefficients are computed: float32, or float64.

    >>> jnp.dtype(compute_dtype(jnp.bfloat16)).name
    'float32'
    """
    return jax.dtypes.canonicalize_dtype(jnp.promote_types(dtype, jnp.float32))


def float_array(x: ArrayLike) -> Array:
    """Return `x` as a float32 array, or float64 if it is one already.

    Schedules call this on their times, so that bfloat16 or integer times lose nothing.

    >>> float_array(3).dtype.name
    'float32'
    """
    x = jnp.asarray(x)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(compute_dtype(x.dtype) if floating else float)


def concrete(x: Any) -> np.ndarray | None:
    """Return the value of `x` on the host, or None where it is being traced.

    Checks of values (not of shapes) can only happen on concrete values.

    >>> concrete(jnp.ones(2)).tolist()
    [1.0, 1.0]
    >>> jax.jit(lambda x: x if concrete(x) is None else x + 1)(1.0).item()
    1.0
    """
    try:
        return np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return None


def check_typed_key(key: Any) -> None:
    """Raise a ValueError unless `key` is a typed key, or an array of them.

    >>> check_typed_key(0)
    Traceback (most recent call last):
    ValueError: key must be a typed key from jax.random.key
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(
        key.dtype, jax.dtypes.prng_key
    ):
        raise ValueError("key must be a typed key from jax.random.key")


def example_keys(key: Any, x: Array) -> Key:
    """Return one key for each example, which does not change with the batch around it.

    Args:
      key: one typed key, or one for each example [B].
      x: the batch [B, ...].

    Returns:
      Keys [B].

    Raises:
      ValueError: if `key` is neither.

    >>> example_keys(jax.random.key(0), jnp.ones((5, 2))).shape
    (5,)
    """
    check_typed_key(key)
    if not key.ndim:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    if key.shape != x.shape[:1]:
        raise ValueError(
            f"key must be one key or one for each of {x.shape[0]} examples; "
            f"its shape is {key.shape}"
        )
    return key


def safe_sqrt(x: Array) -> Array:
    """Return the square root, and 0 with derivative 0 where x is not positive.

    >>> jax.grad(safe_sqrt)(0.0).item()
    0.0
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def is_concrete(*trees: Any) -> bool:
    """Return whether no leaf of the trees is being traced.

    >>> is_concrete((1.0, jnp.ones(2)))
    True
    """
    return all(concrete(leaf) is not None for leaf in jax.tree.leaves(trees))
