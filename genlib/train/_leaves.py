"""The leaves of a state as a checkpoint knows them: by path, shape and dtype."""

from collections.abc import Mapping
from typing import Any

import jax

from genlib import tree
from genlib.train._state import State


class WrongModelError(ValueError):
    """A checkpoint whose leaves are not those that are asked for."""


def parts(state: State) -> dict[str, Any]:
    """Return the pieces that are stored one by one, so that one can be read alone."""
    training = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
    return {"params": state.params, "ema": state.ema, "training": training}


def describe(pieces: Mapping[str, Any]) -> dict[str, str]:
    """Return the type of each leaf, such as float32[3,3], under its path."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for piece, values in pieces.items()
        for name, leaf in tree.named(values, piece).items()
    }


def compare(stored: dict[str, str], wanted: dict[str, str], where: str) -> None:
    """Raise a `WrongModelError` that names the first leaves that differ."""
    names = [*wanted, *(name for name in stored if name not in wanted)]
    differ = [name for name in names if stored.get(name) != wanted.get(name)]
    if not differ:
        return
    lines = [
        f"{name} is {stored.get(name, 'absent')} in the checkpoint and "
        f"{wanted.get(name, 'absent')} here"
        for name in differ[:3]
    ]
    more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise WrongModelError(
        f"checkpoint {where} must be one of this model, optimizer and ema setting: "
        + "; ".join(lines)
        + more
    )


def target(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return what to restore for `leaf`: its shape and dtype, on its sharding."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
