"""The masked network of autoregressive flows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from genlib.flows import Conditioner
from genlib.nn._conditioner_parts import Activation, FirstLayer, Hidden, Network
from genlib.nn._conditioners import conditioner
from genlib.nn._layers import ZEROS, check_positive
from genlib.types import Array


def masked_conditioner(
    width: int = 64,
    depth: int = 2,
    *,
    activation: Activation = jax.nn.relu,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Conditioner:
    """Emit numbers for every variable that depend on the variables before it only.

    MADE: each hidden unit has a degree m and sees x_1 ... x_m; the numbers of variable
    i come from units of degree < i. Elsewhere the weights are multiplied by 0, so that
    derivatives are exactly 0. All variables see `cond`; for this some units have the
    degree 0, if there is one.

    Args:
        width: of the hidden layers: at least one unit of each degree, D - 1 (D with
            `cond`) for D variables.
        depth: number of hidden layers.
        activation: after each of them.
        dtype: of the computation; by default what inputs and parameters promote to.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Conditioner` for x `[B, ..., D]` and cond None, `[B, K]` or
        `[B, ..., K]`; of its D P outputs, P in a row belong to each variable. Another
        order of the variables is a `flows.permute` before the layer.

    Raises:
        ValueError: if `width` or `depth` is not positive; when called, if `width` is
            too small, or the number of outputs no multiple of D, and as `conditioner`.

    Source: arXiv:1502.03509.

    >>> network = masked_conditioner(width=16)
    >>> params = network.init(jax.random.key(0), jnp.ones((2, 3)), 6)
    >>> network.apply(params, jnp.ones((2, 3)), 6).shape
    (2, 6)
    """
    check_positive(width=width, depth=depth)
    kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

    def make(inputs: int, outputs: int, cond: int, rngs: nnx.Rngs) -> nnx.Module:
        if outputs % inputs:
            raise ValueError(
                f"features must be a multiple of the {inputs} variables; got {outputs}"
            )
        variables = np.arange(1, inputs + 1)
        hidden = _degrees(width, inputs, lowest=0 if cond or inputs == 1 else 1)
        numbers = np.repeat(variables, outputs // inputs)

        def linear(mask: np.ndarray, **more: Any) -> nnx.Linear:
            product = _masked_product(mask)
            more = {**more, **kwargs, "dot_general": product, "rngs": rngs}
            return nnx.Linear(*mask.shape, **more)

        first = linear(variables[:, None] <= hidden)
        inner = hidden[:, None] <= hidden
        layers = [Hidden(linear(inner), activation) for _ in range(depth - 1)]
        out = linear(hidden[:, None] < numbers, kernel_init=ZEROS)
        first = FirstLayer(first, cond, width, rngs=rngs, **kwargs)
        return Network(first, layers, activation, out)

    return conditioner(make)


def _degrees(width: int, dimension: int, lowest: int) -> np.ndarray:
    """Spread the degrees `lowest` to D - 1 (or one, if that is none) over the units."""
    count = max(dimension - lowest, 1)
    if width < count:
        raise ValueError(
            f"width must be at least {count}, so that each of {dimension} variables "
            f"can depend on all before it; it is {width}"
        )
    return lowest + np.arange(width) * count // width


def _masked_product(mask: np.ndarray) -> Callable[..., Array]:
    def product(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
        masked = kernel * mask.astype(kernel.dtype)
        return jax.lax.dot_general(x, masked, *args, **kwargs)

    return product
