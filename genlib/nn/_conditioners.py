"""Networks that emit the parameters of flows: zero at the start, so is the flow's move.

Every one of them is a `flows.Conditioner`: it learns the sizes of its input and output
from the layer that it feeds.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.flows import Conditioner
from genlib.nn._adapters import check_params, sized
from genlib.nn._conditioner_parts import (
    Activation,
    Block,
    FirstLayer,
    Hidden,
    Network,
)
from genlib.nn._layers import ZEROS, check_positive
from genlib.types import Array, Key


def conditioner(make: Callable[[int, int, int, nnx.Rngs], nnx.Module]) -> Conditioner:
    """Turn the making of an NNX module into a conditioner of flows.

    The module is made for the sizes of the layer that it feeds, and its graph is
    described once for each of them, however often it is called.

    Args:
        make: `(in_features, features, cond_features, rngs) -> module`, where
            `module(x, cond)` takes x `[B, ..., in_features]` and cond
            `[B, ..., cond_features]`, or None where `cond_features` is 0, and returns
            `[B, ..., features]`: zeros at the start, if a new layer of a flow is to be
            the identity. `MLP`, `UNet` and `DiT` take a time and do not fit.

    Returns:
        A `flows.Conditioner`.

    Raises:
        ValueError: if `make` is a module; when called, if `cond` is not a floating
            batch with as many rows as x, or the parameters were made for other sizes of
            x or cond.

    Source: arXiv:1605.08803 (networks that decide how a coupling moves).

    >>> class Linear(nnx.Module):
    ...     def __init__(self, size, features, cond_features, rngs):
    ...         self.out = nnx.Linear(size, features, kernel_init=ZEROS, rngs=rngs)
    ...
    ...     def __call__(self, x, cond):
    ...         return self.out(x)
    >>> network = conditioner(Linear)
    >>> params = network.init(jax.random.key(0), jnp.ones((2, 3)), 8)
    >>> network.apply(params, jnp.ones((2, 3)), 8).shape
    (2, 8)
    """

    if isinstance(make, nnx.Module):
        raise ValueError("make must be a function or a class of modules; it is one")
    network = sized(make)

    def sizes(x: Array, features: int, cond: Any) -> tuple[int, int, int]:
        if cond is None:
            return x.shape[-1], features, 0
        if cond.ndim < 2 or not jnp.issubdtype(cond.dtype, jnp.floating):
            raise ValueError(
                "cond must be a floating batch [B, ..., C] (jax.nn.one_hot of labels); "
                f"it is {cond.dtype} {cond.shape}"
            )
        if cond.shape[0] != x.shape[0]:
            raise ValueError(
                f"cond must have {x.shape[0]} rows, as x has; its shape is {cond.shape}"
            )
        return x.shape[-1], features, cond.shape[-1]

    def init(key: Key, x: Array, features: int, cond: Any = None) -> Any:
        return network(*sizes(x, features, cond))[0](key)

    def apply(params: Any, x: Array, features: int, cond: Any = None) -> Array:
        _, call, shapes = network(*sizes(x, features, cond))
        shape = None if cond is None else cond.shape
        what = f"a network for x {x.shape}, {features} outputs and cond {shape}"
        check_params(what, params, shapes)
        return call(params, x, cond)

    return Conditioner(init, apply)


def mlp_conditioner(
    width: int = 64,
    depth: int = 2,
    *,
    activation: Activation = jax.nn.relu,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Conditioner:
    """Condition on vectors by an MLP.

        h_1 = act(W_1 x + V cond + b_1),  h_i = act(W_i h_{i-1} + b_i),  W_out h + b_out

    with W_out = b_out = 0 at the start.

    Args:
        width: of the hidden layers.
        depth: number of hidden layers.
        activation: after each of them.
        dtype: of the computation; by default what inputs and parameters promote to.
            bfloat16 leaves the flow's own arithmetic in float32: enough for training,
            but round trips of deep flows are less exact.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Conditioner` for x `[B, ..., C]` and cond None, `[B, K]` or
        `[B, ..., K]`.

    Raises:
        ValueError: if `width` or `depth` is not positive, and as `conditioner`.

    Source: arXiv:1410.8516, arXiv:1605.08803.

    >>> network = mlp_conditioner(width=16)
    >>> params = network.init(jax.random.key(0), jnp.ones((2, 3)), 4)
    >>> network.apply(params, jnp.ones((2, 3)), 4).sum().item()
    0.0
    """
    check_positive(width=width, depth=depth)
    kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

    def make(inputs: int, outputs: int, cond: int, rngs: nnx.Rngs) -> nnx.Module:
        linear = functools.partial(nnx.Linear, rngs=rngs, **kwargs)
        first = FirstLayer(linear(inputs, width), cond, width, rngs=rngs, **kwargs)
        hidden = [Hidden(linear(width, width), activation) for _ in range(depth - 1)]
        out = linear(width, outputs, kernel_init=ZEROS)
        return Network(first, hidden, activation, out)

    return conditioner(make)


def conv_conditioner(
    width: int = 512,
    *,
    kernel_size: int = 3,
    activation: Activation = jax.nn.relu,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Conditioner:
    """Condition on images by Glow's three convolutions: 3x3, 1x1, and 3x3 from zero.

    Args:
        width: channels between them.
        kernel_size: of the first and the last.
        activation: after the first two.
        dtype: of the computation; by default what inputs and parameters promote to.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Conditioner` for x `[B, H, W, C]` and cond None, `[B, K]` (the same
        everywhere) or `[B, H, W, K]`, which enters the first layer linearly.

    Raises:
        ValueError: if `width` or `kernel_size` is not positive, when called with
            anything but images, and as `conditioner`.

    Source: arXiv:1807.03039.

    >>> network = conv_conditioner(width=16)
    >>> x = jnp.ones((2, 4, 4, 3))
    >>> params = network.init(jax.random.key(0), x, 6)
    >>> network.apply(params, x, 6).shape
    (2, 4, 4, 6)
    """
    check_positive(width=width, kernel_size=kernel_size)
    kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    window = (kernel_size, kernel_size)

    def make(inputs: int, outputs: int, cond: int, rngs: nnx.Rngs) -> nnx.Module:
        conv = functools.partial(nnx.Conv, kernel_size=window, rngs=rngs, **kwargs)
        first = FirstLayer(conv(inputs, width), cond, width, rngs=rngs, **kwargs)
        middle = Hidden(nnx.Linear(width, width, rngs=rngs, **kwargs), activation)
        out = conv(width, outputs, kernel_init=ZEROS)
        return Network(first, [middle], activation, out)

    return conditioner(make)


def resnet_conditioner(
    width: int = 64,
    depth: int = 2,
    *,
    kernel_size: int | None = None,
    activation: Activation = jax.nn.relu,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Conditioner:
    """Condition on vectors or images by residual blocks.

        h <- h + W_2 act(W_1 act(norm(h)))

    in each of `depth` blocks, with a LayerNorm over the features of each place, so that
    no example sees another. The last layer starts at zero.

    Args:
        width: features of the blocks.
        depth: number of blocks.
        kernel_size: None for vectors `[B, ..., C]` and dense layers; k for images
            `[B, H, W, C]` and k x k convolutions (RealNVP's have 3).
        activation: inside the blocks.
        dtype: of the computation; by default what inputs and parameters promote to.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Conditioner`; cond as for `conv_conditioner`.

    Raises:
        ValueError: if a size is not positive, and as `conditioner`.

    Source: arXiv:1605.08803 (images), arXiv:1906.04032 (vectors), whose batch
    normalisation the LayerNorm replaces.

    >>> network = resnet_conditioner(width=16, kernel_size=3)
    >>> x = jnp.ones((2, 4, 4, 3))
    >>> params = network.init(jax.random.key(0), x, 6)
    >>> network.apply(params, x, 6).shape
    (2, 4, 4, 6)
    """
    check_positive(width=width, depth=depth)
    if kernel_size is not None:
        check_positive(kernel_size=kernel_size)
    kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

    def make(inputs: int, outputs: int, cond: int, rngs: nnx.Rngs) -> nnx.Module:
        layer: Any = functools.partial(nnx.Linear, rngs=rngs, **kwargs)
        if kernel_size is not None:
            window = (kernel_size, kernel_size)
            layer = functools.partial(nnx.Conv, kernel_size=window, rngs=rngs, **kwargs)
        norm = functools.partial(
            nnx.LayerNorm, width, use_fast_variance=False, rngs=rngs, **kwargs
        )
        blocks = [
            Block(norm(), layer(width, width), layer(width, width), activation)
            for _ in range(depth)
        ]
        first = FirstLayer(layer(inputs, width), cond, width, rngs=rngs, **kwargs)
        out = layer(width, outputs, kernel_init=ZEROS)
        return Network(first, [*blocks, norm()], activation, out)

    return conditioner(make)
