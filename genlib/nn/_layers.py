"""The few pieces that the networks share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from genlib.types import Array, Key

POLICIES = (
    "nothing_saveable",
    "everything_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)
ZEROS = nnx.initializers.zeros_init()
LECUN = nnx.initializers.lecun_normal()


def modulate(x: Array, scale: Array, shift: Array) -> Array:
    """Return `x * (1 + scale) + shift`, so that zero parameters change nothing."""
    return x * (1 + scale) + shift


def check_positive(**counts: int) -> None:
    """Refuse a count that is not positive, by its name."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be positive, got {count}")


def check_rate(dropout: float) -> None:
    """Refuse a dropout rate outside [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


def check_remat(remat: bool | str) -> bool | str:
    """Refuse what is neither a bool nor the name of a policy, and return it."""
    if isinstance(remat, str) and remat not in POLICIES:
        raise ValueError(f"remat must be a bool or one of {POLICIES}, got {remat!r}")
    return remat


def recompute(
    block: Callable[..., Any], remat: bool | str, *, prevent_cse: bool = True
) -> Callable[..., Any]:
    """Return `block` with a backward pass that recomputes what `remat` says."""
    if not remat:
        return block
    policy = getattr(jax.checkpoint_policies, remat) if isinstance(remat, str) else None
    return jax.checkpoint(block, policy=policy, prevent_cse=prevent_cse)


def keep_rows(x: Array) -> Array:
    """Keep the rows of a batch on the devices that `train.make_mesh` gives them.

    Left alone the compiler may copy the rows to all devices and split features instead,
    because parameters are split that way. Tokens `[B, T, features]` are also split over
    the axis "sequence", where it divides them. Without such a mesh, or inside
    `shard_map`, it is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    auto = {
        axis: mesh.shape[axis]
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind is AxisType.Auto
    }
    rows = tuple(axis for axis in ("data", "fsdp") if axis in auto)
    if not rows or x.shape[0] % math.prod(auto[axis] for axis in rows):
        return x
    tokens = auto.get("sequence", 1)
    split = x.ndim == 3 and tokens > 1 and x.shape[1] % tokens == 0
    spec = PartitionSpec(rows, "sequence") if split else PartitionSpec(rows)
    return jax.lax.with_sharding_constraint(x, spec)


def drop(key: Key | None, x: Array, rate: float) -> Array:
    """Zero a fraction `rate` of the entries and scale up the rest; without key, x."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def split_key(key: Key | None, count: int) -> list[Key | None]:
    """Return `count` keys, or `count` times None without a key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def check_image(x: Array, channels: int, name: str = "x") -> None:
    """Refuse what is not floating `[B, H, W, channels]`."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got {x.dtype}")
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(
            f"{name} must be [B, H, W, C] with C = {channels}, got shape {x.shape}"
        )


def check_halves(x: Array, levels: int) -> None:
    """Refuse images that cannot be halved between all levels."""
    factor = 2 ** (levels - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"x must have a height and width divisible by {factor} for "
            f"{levels} levels, got shape {x.shape}"
        )
