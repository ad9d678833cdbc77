"""Dynamic loss scaling, for gradients that are computed in float16."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp

from genlib.types import Array


class ScaleState(NamedTuple):
    """Where dynamic loss scaling stands.

    Attributes:
      scale: float32 scalar, the factor on the loss.
      finite_steps: int32 scalar, finite steps since the scale last changed.
    """

    scale: Array
    finite_steps: Array


@dataclasses.dataclass(frozen=True)
class LossScale:
    """Scale the loss so that small float16 gradients do not vanish.

    The loss is multiplied by the scale before it is differentiated, and the gradient is
    divided by it in float32, before clipping. A gradient that overflows divides the
    scale by `factor` and its step is skipped; `interval` finite steps in a row multiply
    it by `factor` (arXiv:1710.03740, sec. 3.2). Only float16 needs it: bfloat16 has the
    range of float32.

    Args:
      initial: the first scale. All scales are powers of two: scaling is exact.
      factor: by which the scale moves.
      interval: finite steps before the scale grows.
      minimum: smallest scale.
      maximum: largest scale.

    Raises:
      ValueError: if a scale or `factor` is no power of two, `factor` is not above 1,
        `interval` is below 1 or not minimum <= initial <= maximum.

    >>> scaling = LossScale(initial=8.0, interval=2)
    >>> state = scaling.update(scaling.init(), jnp.array(False))
    >>> float(state.scale)
    4.0
    """

    initial: float = 2.0**15
    factor: float = 2.0
    interval: int = 2000
    minimum: float = 1.0
    maximum: float = 2.0**24

    def __post_init__(self) -> None:
        for field in ("initial", "factor", "minimum", "maximum"):
            value = getattr(self, field)
            if math.frexp(value)[0] != 0.5 or not 2.0**-126 <= value < 2.0**127:
                raise ValueError(
                    f"{field} must be a power of two that float32 holds; it is {value}"
                )
        if self.factor <= 1:
            raise ValueError(f"factor must be above 1; it is {self.factor}")
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1; it is {self.interval}")
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                "initial must be from minimum to maximum; they are "
                f"{self.minimum}, {self.initial}, {self.maximum}"
            )

    def init(self) -> ScaleState:
        """Return the state of a new run."""
        scale = jnp.asarray(self.initial, jnp.float32)
        return ScaleState(scale, jnp.zeros((), jnp.int32))

    def update(self, state: ScaleState, finite: Array) -> ScaleState:
        """Return the state after a step whose gradient was finite, or was not."""
        steps = state.finite_steps + 1
        grows = steps >= self.interval
        larger = jnp.minimum(state.scale * self.factor, self.maximum)
        smaller = jnp.maximum(state.scale / self.factor, self.minimum)
        after = jnp.where(grows, larger, state.scale)
        return ScaleState(
            scale=jnp.where(finite, after, smaller),
            finite_steps=jnp.where(finite & ~grows, steps, 0).astype(jnp.int32),
        )
