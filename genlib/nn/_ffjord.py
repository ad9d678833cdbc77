"""Networks as velocity fields, and the continuous flow that they make."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib import flows
from genlib.nn._adapters import check_params, sized
from genlib.nn._conditioner_parts import Activation
from genlib.nn._layers import LECUN, ZEROS, check_positive, keep_rows
from genlib.types import Array, Key


def vector_field(
    make: Callable[[tuple[int, ...], int, nnx.Rngs], nnx.Module],
) -> flows.VectorField:
    """Turn the making of a network into a velocity field for `flows.continuous`.

    Every network here that is called as `module(x, t, labels)` will do.

    Args:
        make: `(shape, cond_features, rngs) -> module` for examples of a shape, where
            `module(x, t, cond)` takes x `[B, *shape]` and a scalar t and returns the
            shape of x; `cond_features` is K for cond `[B, K]`, and 0 for None and for
            labels `[B]`.

    Returns:
        A `flows.VectorField`, whose module is described once for each shape.

    Raises:
        ValueError: when called, if cond is neither None nor `[B]` nor `[B, K]`.

    >>> from genlib.nn import MLP
    >>> field = vector_field(
    ...     lambda shape, cond, rngs: MLP(*shape, 16, 1, time_scale=1.0, rngs=rngs)
    ... )
    >>> flow = flows.continuous(field)
    >>> params = jax.eval_shape(flow.init, jax.random.key(0), jnp.ones((2, 3)))
    >>> params["input"]["kernel"].shape
    (3, 16)
    """
    network = sized(make)

    def sizes(x: Array, cond: Any) -> tuple[tuple[int, ...], int]:
        if cond is not None and cond.ndim not in (1, 2):
            raise ValueError(f"cond must be [B] or [B, K]; its shape is {cond.shape}")
        if cond is not None and len(cond) != len(x):
            raise ValueError(
                f"cond must have {len(x)} rows, as x has; its shape is {cond.shape}"
            )
        return x.shape[1:], 0 if cond is None or cond.ndim == 1 else cond.shape[1]

    def init(key: Key, x: Array, cond: Any = None) -> Any:
        return network(*sizes(x, cond))[0](key)

    def apply(params: Any, x: Array, t: Array, cond: Any = None) -> Array:
        _, call, shapes = network(*sizes(x, cond))
        shape = None if cond is None else cond.shape
        check_params(f"a field for x {x.shape} and cond {shape}", params, shapes)
        return call(params, x, t, cond)

    return flows.VectorField(init, apply)


def ffjord(
    width: int = 64,
    depth: int = 3,
    *,
    activation: Activation = jax.nn.softplus,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    **settings: Any,
) -> flows.Bijector:
    """Move vectors along a learned differential equation.

        dx/dt = network(x, t),  h <- act((W h + b) sigmoid(V c + a) + U c),
        c = (t, cond),

    in each layer; the last one has no activation and starts at zero, so that a new
    model is the identity. Both directions solve the equation, each at the cost that
    `flows.continuous` states.

    Args:
        width: of the hidden layers.
        depth: number of hidden layers.
        activation: after each of them; smooth, as the divergence depends on its slope.
        dtype: of the network; by default what inputs and parameters promote to.
        param_dtype: dtype of the parameters.
        **settings: those of `flows.continuous`: `t_end`, `divergence`, `steps`,
            `remat`, and the tolerances of adaptive steps.

    Returns:
        A `flows.Bijector` for x `[B, ...]`, taken as vectors, and cond None or
        `[B, K]`.

    Raises:
        ValueError: if a size is not positive, and as `flows.continuous`.

    Source: arXiv:1810.01367.

    >>> flow = ffjord(width=16, depth=1)
    >>> x = jnp.array([[1.0, 2.0]])
    >>> flow.forward(flow.init(jax.random.key(0), x), x)[0]
    Array([[1., 2.]], dtype=float32)
    """
    check_positive(width=width, depth=depth)

    def make(shape: tuple[int, ...], cond: int, rngs: nnx.Rngs) -> nnx.Module:
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        return _Field(
            math.prod(shape), width, depth, cond, activation, rngs=rngs, **kwargs
        )

    return flows.continuous(vector_field(make), **settings)


class _Field(nnx.Module):
    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        cond: int,
        activation: Activation,
        **kwargs: Any,
    ):
        kwargs["context"] = cond + 1
        self.activation = activation
        self.layers = nnx.List(
            [
                _ConcatSquash(size if first else width, width, **kwargs)
                for first in (True, *[False] * (depth - 1))
            ]
        )
        self.out = _ConcatSquash(width, size, init=ZEROS, **kwargs)

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        context = jnp.full((len(x), 1), t, x.dtype)
        if cond is not None:
            if cond.ndim != 2:
                raise ValueError(f"cond must be [B, K]; its shape is {cond.shape}")
            context = jnp.concatenate([context, cond.astype(x.dtype)], 1)
        h = x.reshape(len(x), -1)
        for layer in self.layers:
            h = self.activation(layer(keep_rows(h), context))
        return self.out(keep_rows(h), context).reshape(x.shape)


class _ConcatSquash(nnx.Module):
    def __init__(
        self,
        size: int,
        features: int,
        context: int,
        *,
        init: nnx.Initializer = LECUN,
        **kwargs: Any,
    ):
        self.linear = nnx.Linear(size, features, kernel_init=init, **kwargs)
        self.gate = nnx.Linear(context, features, **kwargs)
        self.shift = nnx.Linear(
            context, features, use_bias=False, kernel_init=init, **kwargs
        )

    def __call__(self, h: Array, context: Array) -> Array:
        scale = jax.nn.sigmoid(self.gate(context))
        return self.linear(h) * scale + self.shift(context)
