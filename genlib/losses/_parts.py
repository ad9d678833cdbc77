"""What the losses of this room share: their checks and their squared errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.noise import Path
from genlib.prediction import Prediction, target
from genlib.types import Array, Key, compute_dtype

Predict = Callable[[Array, Array], Array]


def floating_batch(x: Any, name: str = "x_0") -> Array:
    """Return a batch as an array, or raise a ValueError unless it is floating."""
    if jnp.ndim(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating data [B, ...]; it is "
            f"{x.dtype}{list(jnp.shape(x))}"
        )
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def source(key: Key, x_0: Array, x_1: Array | None) -> Array:
    """Return the other end of the path, wide: `x_1` if given, else normal noise."""
    dtype = compute_dtype(x_0.dtype)
    if x_1 is None:
        return jax.random.normal(key, x_0.shape, dtype)
    if jnp.shape(x_1) != x_0.shape:
        raise ValueError(
            f"x_1 must have the shape {x_0.shape} of x_0; it is {jnp.shape(x_1)}"
        )
    return floating_batch(x_1, "x_1").astype(dtype)


def returned(value: Array, x: Array, name: str = "predict") -> Array:
    """Return what a network gave, wide, or refuse another shape than it was given."""
    if value.shape != x.shape:
        raise ValueError(
            f"{name} must return the shape {x.shape} of its input; "
            f"it returned {value.shape}"
        )
    return value.astype(compute_dtype(x.dtype))


def mean_square(x: Array) -> Array:
    """Return the mean square of each example, [B]."""
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))


def prediction_error(
    predict: Predict,
    path: Path,
    kind: Prediction,
    t: Array,
    x_t: Array,
    x_0: Array,
    eps: Array,
    dtype: Any,
) -> Array:
    """Return the mean squared error of a network against the target of (x_0, eps).

    All arrays are wide; the network sees `dtype`.
    """
    x_in, t_in = kind.inputs(path(t), x_t, t)
    x_in = x_in.astype(dtype)
    value = returned(predict(x_in, t_in), x_in)
    return mean_square(value - target(path, x_0, eps, t, kind))
