"""The leaves of a state as a checkpoint knows them: by path, shape and dtype."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib import tree


class WrongModelError(ValueError):
    """A checkpoint whose leaves are not those that are asked for."""


def on_device(values: Any) -> dict[str, jax.Array]:
    """Return the leaves of `values` under their paths, all of them jax arrays.

    Raises:
      ValueError: if there is none, or if one is no array or would lose bits as one.
    """
    leaves = tree.named(values)
    if not leaves or "" in leaves:
        raise ValueError(f"state must hold arrays under names; it is {values}")
    for name, leaf in leaves.items():
        dtype = leaf.dtype if isinstance(leaf, np.ndarray | np.generic) else None
        if dtype is not None and dtype == jax.dtypes.canonicalize_dtype(dtype):
            leaves[name] = jax.device_put(leaf)
        elif not isinstance(leaf, jax.Array):
            what = f"{dtype} without jax_enable_x64" if dtype else type(leaf)
            raise ValueError(f"state must hold jax arrays; {name} is {what}")
    return leaves


def describe(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Return the type of each leaf, such as float32[3,3]."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in leaves.items()
    }


def compare(stored: dict[str, str], wanted: dict[str, str], where: Any) -> None:
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


def target(
    leaf: Any, name: str, stored: Mapping[str, str], *, cast: bool
) -> jax.ShapeDtypeStruct:
    """Return what to restore for `leaf`: its shape and dtype, on its sharding.

    With `cast` a float has the dtype in which it was stored.

    Raises:
      WrongModelError: if it is stored in 64 bits and arrays here have 32.
    """
    dtype = leaf.dtype
    if name in stored and not stored[name].startswith("key<"):
        as_stored = jnp.dtype(stored[name].partition("[")[0])
        if as_stored != jax.dtypes.canonicalize_dtype(as_stored):
            raise WrongModelError(
                f"{name} was stored as {as_stored}: set jax_enable_x64 to read it"
            )
        kinds = (
            jnp.floating,
            jnp.complexfloating,
        )  # a cast from one to the other loses
        for kind in kinds if cast else ():
            if jnp.issubdtype(leaf.dtype, kind) and jnp.issubdtype(as_stored, kind):
                dtype = as_stored
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)


def chosen(leaves: Mapping[str, Any], only: str | Sequence[str] | None) -> set[str]:
    """Return the paths in which one of the regular expressions is found.

    Raises:
      ValueError: if one is found in none.
    """
    if only is None:
        return set(leaves)
    names = set()
    for pattern in [only] if isinstance(only, str) else only:
        found = {name for name in leaves if re.search(pattern, name)}
        if not found:
            raise ValueError(
                f"only must be found in the path of a leaf; {pattern!r} is in none of "
                f"{', '.join([*leaves][:3])}, ..."
            )
        names |= found
    return names
