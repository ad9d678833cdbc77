"""What the named flows are built with."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from genlib import flows

MIXINGS = {
    "permutation": (flows.permutations, flows.permute),
    "plu": (flows.rotations, flows.plu_conv),
}


def network(
    make: Callable[[int], flows.Conditioner],
    default: int,
    width: int | None,
    conditioner: flows.Conditioner | None,
) -> flows.Conditioner:
    """Return the conditioner that was given, or make one of a width."""
    if conditioner is None:
        return make(default if width is None else width)
    if width is not None:
        raise ValueError(
            "width must be left out beside a conditioner, which has its own; "
            f"it is {width}"
        )
    return conditioner


def for_shape(make: Callable[..., flows.Bijector]) -> flows.Bijector:
    """Return the layer that `make(*shape)` is for the shape of the example that comes.

    Permutations and masks have sizes that only the data know. The layer must keep the
    shape, and is made once for each shape and dtype: jax remembers a host array in the
    width in which it saw it first, so float64 needs rotations of its own.
    """
    made = functools.cache(lambda dtype, *shape: make(*shape))

    def at(x: Any) -> flows.Bijector:
        # The first call may be inside a trace; what is kept must not belong to it.
        with jax.ensure_compile_time_eval():
            return made(x.dtype, *x.shape[1:])

    return flows.Bijector(
        lambda key, x, cond=None: at(x).init(key, x, cond),
        lambda params, x, cond=None: at(x).forward(params, x, cond),
        lambda params, y, cond=None: at(y).inverse(params, y, cond),
    )


def mixed(
    step: flows.Bijector, mixing: str, depth: int, seed: int, **kwargs: Any
) -> flows.Bijector:
    """Scan over steps, each followed by a layer that mixes the last axis."""
    if mixing == "reverse":
        return flows.scan_chain(flows.chain(step, flows.reverse()), depth, **kwargs)
    if mixing not in MIXINGS:
        raise ValueError(
            f'mixing must be "reverse", "permutation" or "plu"; it is {mixing!r}'
        )
    draw, layer = MIXINGS[mixing]

    def make(*shape: int) -> flows.Bijector:
        rows = draw(seed, depth, shape[-1])
        after = lambda row: flows.chain(step, layer(row))
        return flows.scan_chain(after, depth, rows, **kwargs)

    return for_shape(make)
