"""The variables in another order."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genlib.flows._bijector import Bijector, no_params, zero_log_det
from genlib.types import Array, concrete


def permute(permutation: ArrayLike) -> Bijector:
    """Put the last axis in another order: y_i = x_{permutation(i)}, log_det 0.

    Args:
      permutation: integers [D]. It may be traced, as a constant of `scan_chain` is;
        `permutations` makes random ones.

    Returns:
      A `Bijector` for x [B, ..., D] without parameters.

    Raises:
      ValueError: if `permutation` is none of 0, ..., D - 1, or x has another D.

    >>> permute([2, 0, 1]).forward({}, jnp.array([[10.0, 11.0, 12.0]]))[0].tolist()
    [[12.0, 10.0, 11.0]]
    """
    values = concrete(permutation)
    if values is not None and not (
        values.ndim == 1
        and np.issubdtype(values.dtype, np.integer)
        and np.array_equal(np.sort(values), np.arange(values.size))
    ):
        raise ValueError(
            f"permutation must hold each of 0, ..., D - 1 once; it is {permutation}"
        )
    # On the host, where that is possible: an order to sort is then no work of the flow.
    order = jnp.asarray(permutation) if values is None else values
    inverse_order = jnp.argsort(order) if values is None else np.argsort(values)

    def take(indices: ArrayLike) -> Any:
        def apply(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
            if x.ndim < 2 or x.shape[-1] != order.shape[0]:
                raise ValueError(
                    f"x must have {order.shape[0]} variables on its last axis, as "
                    f"permutation; its shape is {x.shape}"
                )
            y = jnp.take(x, indices, -1, unique_indices=True, mode="clip")
            return y, zero_log_det(x)

        return apply

    return Bijector(no_params, take(order), take(inverse_order))


def reverse(axis: int = -1) -> Bijector:
    """Put an axis in the reverse order: y_i = x_{D - 1 - i}, log_det 0.

    Args:
      axis: of x, the batch being the axis 0, which cannot be reversed.

    Returns:
      A `Bijector` without parameters.

    Raises:
      ValueError: if `axis` is the batch, or no axis of x.

    >>> reverse().forward({}, jnp.array([[1.0, 2.0, 3.0]]))[0].tolist()
    [[3.0, 2.0, 1.0]]
    """

    def apply(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
        if axis not in range(1, x.ndim) and axis not in range(1 - x.ndim, 0):
            raise ValueError(
                f"axis must be one of x {x.shape} beside the batch; it is {axis}"
            )
        return jnp.flip(x, axis), zero_log_det(x)

    return Bijector(no_params, apply, apply)


def permutations(seed: int, depth: int, dimension: int) -> np.ndarray:
    """Draw the orders of a stack of layers, as constants of `scan_chain`.

    Args:
      seed: of the draws.
      depth: how many.
      dimension: D.

    Returns:
      int32 [depth, D] on the host, each row a permutation of 0, ..., D - 1.

    Raises:
      ValueError: if `depth` or `dimension` is not positive.

    >>> np.sort(permutations(0, depth=2, dimension=3)).tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    if depth < 1 or dimension < 1:
        raise ValueError(
            f"depth and dimension must be positive; they are {depth}, {dimension}"
        )
    rows = np.tile(np.arange(dimension, dtype=np.int32), (depth, 1))
    return np.random.default_rng(seed).permuted(rows, axis=1)
