"""What all ways of computing attention share: products, masks, softmax."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.attention._mask import Mask
from genlib.types import Array, compute_dtype


def seen(
    mask: Mask, q_positions: Array, kv_positions: Array, heads: tuple[int, int]
) -> Array:
    """Return which scores count, bool broadcasting to `[B, K, G, T, S]`."""
    table = mask(q_positions[:, None, :, None], kv_positions[:, None, None, :])
    return by_group(table, heads)


def by_group(table: Array, heads: tuple[int, int]) -> Array:
    """Split the heads of a table `[B, heads, T, S]` into those of keys and groups."""
    groups, size = heads
    table = jnp.asarray(table)
    if table.shape[1] == groups * size:
        return table.reshape(table.shape[0], groups, size, *table.shape[2:])
    if table.shape[1] not in (1, groups):
        raise ValueError(
            f"mask and bias must have 1, {groups} or {groups * size} heads, got "
            f"{table.shape[1]}"
        )
    return table[:, :, None]  # one for all heads, or one for each key head


def dot(equation: str, x: Array, y: Array) -> Array:
    """Return an einsum that sums in at least float32."""
    wide = compute_dtype(x.dtype)
    narrow = lambda x, y: jnp.einsum(equation, x, y, preferred_element_type=wide)
    if x.dtype != jnp.float16:
        return narrow(x, y)
    # CPUs have no products of float16 that are summed in float32.
    widened = lambda x, y: jnp.einsum(equation, x.astype(wide), y.astype(wide))
    return jax.lax.platform_dependent(x, y, cpu=widened, default=narrow)


def finite_rows(*arrays: Array) -> tuple[Array, list[Array]]:
    """Return which rows hold a NaN or an infinity, and the arrays with 0 for those.

    A weight of 0 times NaN is NaN, in products and in their gradients. So what is
    computed is finite, and a query that sees such a row is made NaN afterwards.
    """
    bad = jnp.stack([~jnp.isfinite(x).all(-1) for x in arrays]).any(0)
    rows = [jnp.where(bad[..., None], jnp.zeros((), x.dtype), x) for x in arrays]
    return bad, rows


def row_max(x: Array) -> Array:
    """Return the maximum over the last axis, -inf where that is empty.

    By halves: XLA compares the numbers of a row one after another on CPUs.
    """
    while x.shape[-1] % 2 == 0 and x.shape[-1] > 64:
        x = jnp.maximum(*jnp.split(x, 2, -1))
    return x.max(-1, initial=-jnp.inf)


@jax.custom_jvp
def softmax_parts(logits: Array, sink: Any) -> tuple[Array, Array]:
    """Return weights over the last axis and their log-sum-exp; none is 0 and -inf.

    Args:
      logits: `[B, K, T, S]`, -inf where masked.
      sink: `[K, T]` or None.
    """
    top = row_max(logits)
    if sink is not None:
        top = jnp.maximum(top, sink[None])
    base = jnp.where(jnp.isneginf(top), 0.0, top)
    parts = jnp.exp(logits - base[..., None])
    total = parts.sum(-1)
    if sink is not None:
        total = total + jnp.exp(sink[None] - base)
    empty = total == 0
    safe = jnp.where(empty, 1.0, total)
    lse = jnp.where(empty, -jnp.inf, base + jnp.log(safe))
    return parts / safe[..., None], lse


@softmax_parts.defjvp
def _softmax_derivative(given: Any, rates: Any) -> Any:
    """Return `weights (dl - mean)` and `mean`, in fewer passes than autodiff."""
    (_, sink), (d_logits, d_sink) = given, rates
    weights, lse = softmax_parts(*given)
    mean = (weights * d_logits).sum(-1)
    if sink is not None:
        known = jnp.where(jnp.isneginf(lse), jnp.inf, lse)
        rest = jnp.exp(sink[None] - known)
        mean = mean + rest * d_sink[None]
    return (weights, lse), (weights * (d_logits - mean[..., None]), mean)
