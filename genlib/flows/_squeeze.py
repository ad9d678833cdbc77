"""The same numbers in another shape."""

import math
from collections.abc import Sequence
from typing import Any

from genlib.flows._bijector import Bijector, no_params, zero_log_det
from genlib.types import Array


def squeeze(factor: int = 2, order: str = "glow") -> Bijector:
    """Turn squares of pixels into channels: [B, H, W, C] -> [B, H/f, W/f, f^2 C].

    Pixel (i, j) of a square and channel c go to the channel

    - "glow": c f^2 + i f + j, the order of Glow's code (arXiv:1807.03039);
    - "space_to_depth": (i f + j) C + c, patches as vision transformers flatten them.

    Models trained with one order are worthless with the other. `invert(squeeze())`
    unsqueezes; `chain(squeeze(p, "space_to_depth"), reshape(...))` makes patch tokens.

    Args:
      factor: f, at least 1.
      order: "glow" or "space_to_depth".

    Returns:
      A `Bijector` without parameters; log_det is 0.

    Raises:
      ValueError: for another factor or order, or a shape that does not divide.

    >>> import jax.numpy as jnp
    >>> image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> squeeze().forward({}, image)[0][0, 0, 0].tolist()
    [0.0, 1.0, 4.0, 5.0]
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1; it is {factor}")
    if order not in ("glow", "space_to_depth"):
        raise ValueError(f'order must be "glow" or "space_to_depth"; it is {order!r}')
    f = factor

    def forward(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
        if x.ndim != 4 or x.shape[1] % f or x.shape[2] % f:
            raise ValueError(
                f"x must be [B, H, W, C] with H and W divisible by {f}; its shape is "
                f"{x.shape}"
            )
        b, h, w, c = x.shape
        squares = x.reshape(b, h // f, f, w // f, f, c)
        axes = (0, 1, 3, 5, 2, 4) if order == "glow" else (0, 1, 3, 2, 4, 5)
        y = squares.transpose(axes).reshape(b, h // f, w // f, f * f * c)
        return y, zero_log_det(x)

    def inverse(params: Any, y: Array, cond: Any = None) -> tuple[Array, Array]:
        if y.ndim != 4 or y.shape[3] % f**2:
            raise ValueError(
                f"y must be [B, H, W, C] with C divisible by {f**2}; its shape is "
                f"{y.shape}"
            )
        b, h, w, c = y.shape
        c //= f * f
        if order == "glow":
            squares = y.reshape(b, h, w, c, f, f).transpose(0, 1, 4, 2, 5, 3)
        else:
            squares = y.reshape(b, h, w, f, f, c).transpose(0, 1, 3, 2, 4, 5)
        return squares.reshape(b, h * f, w * f, c), zero_log_det(y)

    return Bijector(no_params, forward, inverse)


def reshape(event_in: Sequence[int], event_out: Sequence[int]) -> Bijector:
    """Give every example another shape: [B, *event_in] -> [B, *event_out].

    Args:
      event_in: shape of one example at the forward side.
      event_out: shape of one example at the other side.

    Returns:
      A `Bijector` without parameters; log_det is 0.

    Raises:
      ValueError: if the shapes hold different counts of numbers, or x has another.

    >>> import jax.numpy as jnp
    >>> reshape((4, 4, 3), (16, 3)).forward({}, jnp.zeros((2, 4, 4, 3)))[0].shape
    (2, 16, 3)
    """
    shapes = tuple(event_in), tuple(event_out)
    if math.prod(shapes[0]) != math.prod(shapes[1]):
        raise ValueError(
            f"event_out must hold as many numbers as event_in {shapes[0]}; it is "
            f"{shapes[1]}"
        )

    def between(source: tuple[int, ...], target: tuple[int, ...]) -> Any:
        def apply(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
            if x.shape[1:] != source:
                raise ValueError(
                    f"x must have examples of shape {source}; its shape is {x.shape}"
                )
            return x.reshape(x.shape[0], *target), zero_log_det(x)

        return apply

    return Bijector(no_params, between(*shapes), between(*shapes[::-1]))
