"""The few pieces that the networks share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

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
    because parameters are split that way. Without such a mesh, or inside `shard_map`,
    it is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    auto = {
        axis: mesh.shape[axis]
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if axis in ("data", "fsdp") and kind is AxisType.Auto
    }
    if not auto or x.shape[0] % math.prod(auto.values()):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(auto)))


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


class SelfAttention(nnx.Module):
    """Let every token of `[B, T, features]` look at all others, with several heads."""

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        init: nnx.Initializer = LECUN,
        out_init: nnx.Initializer = LECUN,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or features % num_heads:
            raise ValueError(
                f"num_heads must divide the {features} features, got {num_heads}"
            )
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.num_heads = num_heads
        self.qkv = nnx.Linear(features, 3 * features, kernel_init=init, **kwargs)
        self.out = nnx.Linear(features, features, kernel_init=out_init, **kwargs)

    def __call__(self, x: Array) -> Array:
        # Heads come first, so that devices which split this axis hold whole heads.
        q, k, v = rearrange(
            self.qkv(x), "b t (n s d) -> s b t n d", s=3, n=self.num_heads
        )
        return self.out(rearrange(_attend(q, k, v), "b t n d -> b t (n d)"))


def _attend(q: Array, k: Array, v: Array) -> Array:
    if q.dtype == jnp.float16:
        # On a CPU jax.nn has no float16 products that are summed in float32.
        wide = lambda *args: jax.nn.dot_product_attention(
            *(x.astype(jnp.float32) for x in args)
        ).astype(jnp.float16)
        attend = jax.nn.dot_product_attention
        return jax.lax.platform_dependent(q, k, v, cpu=wide, default=attend)
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v)
    # jax.nn takes the softmax in float32 even of float64 logits.
    logits = jnp.einsum("btnd,bsnd->bnts", q / math.sqrt(q.shape[-1]), k)
    return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(logits), v)
