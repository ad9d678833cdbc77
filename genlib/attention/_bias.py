"""Biases: what is added to scores, as a function of positions or as a table."""

from typing import Any

import jax.numpy as jnp

from genlib.attention._mask import pytree
from genlib.attention._mask_tables import table_axes
from genlib.attention._positions import Axes, OverPositions
from genlib.types import Array, ArrayLike


class Bias(OverPositions):
    """What is added to the scores: a function of positions, or a table.

    Called with positions of queries `[B or 1, 1, T, 1]` and of keys `[B or 1, 1, 1, S]`
    it returns floats that broadcast to `[B, heads, T, S]`, block by block where scores
    are computed block by block. Its floating leaves are differentiated.

    >>> import dataclasses
    >>> from genlib import tree
    >>> from genlib.attention import Bias, attention
    >>> @tree.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Near(Bias):
    ...     slope: float
    ...
    ...     def __call__(self, q, kv):
    ...         return -self.slope * abs(q - kv)
    >>> q = k = jnp.zeros((1, 2, 1, 4))
    >>> v = jnp.array([[1.0], [0.0]])[None, :, None]
    >>> attention(q, k, v, bias=Near(1e9)).ravel().tolist()
    [1.0, 0.0]
    """


@pytree
class _Table(Bias):
    table: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        return self.table

    def axes(self) -> list[Axes]:
        return [table_axes(self.table)]


def as_bias(bias: Bias | ArrayLike | None) -> Bias | None:
    """Return a bias as a `Bias`, and refuse what is neither one nor a table."""
    if bias is None or isinstance(bias, Bias):
        return bias
    if callable(bias):
        raise ValueError("bias must be an array or a `Bias`, got a function")
    table = jnp.asarray(bias)
    if table.ndim != 4 or not jnp.issubdtype(table.dtype, jnp.floating):
        raise ValueError(
            "bias must be floating [B, heads, T, S] with axes of 1 where it does not "
            f"differ, got {table.dtype} of shape {table.shape}"
        )
    return _Table(table)
