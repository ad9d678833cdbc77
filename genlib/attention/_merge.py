"""Attention over parts of the keys, put together."""

import jax
import jax.numpy as jnp

from genlib.types import Array, compute_dtype


def merge(*parts: tuple[Array, Array]) -> tuple[Array, Array]:
    """Combine attention over disjoint sets of keys into attention over all of them.

        lse = log sum_p exp(lse_p),    out = sum_p exp(lse_p - lse) out_p

    This is exact, and differentiable in everything. A part that saw nothing (0 and
    -inf) changes nothing. A sink is a key too: give it to one part.

    Args:
      *parts: `(out, lse)` of `attention(..., return_lse=True)`: `[B, T, N, V]` and
        `[B, T, N]`.

    Returns:
      `(out, lse)` of the whole, in the dtypes of the parts.

    Raises:
      ValueError: if there is no part, or shapes differ.

    Source: arXiv:2205.14135 (in blocks of keys); arXiv:2310.01889 (among devices).

    >>> from genlib.attention import attention
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 4, 1, 8))
    >>> left, right = (
    ...     attention(q, k[:, part], v[:, part], return_lse=True)
    ...     for part in (slice(0, 1), slice(1, 4))
    ... )
    >>> bool(jnp.allclose(merge(left, right)[0], attention(q, k, v), atol=1e-6))
    True
    """
    if not parts:
        raise ValueError("parts must be at least one (out, lse), got none")
    outs = [jnp.asarray(out) for out, _ in parts]
    logs = [jnp.asarray(lse) for _, lse in parts]
    for out, lse in zip(outs, logs, strict=True):
        if out.shape != outs[0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                "parts must have outs of one shape [B, T, N, V] and lses [B, T, N], "
                f"got {[(o.shape, x.shape) for o, x in zip(outs, logs, strict=True)]}"
            )
    wide = compute_dtype(jnp.result_type(*outs, *logs))
    lses = jnp.stack(logs).astype(wide)
    top = jax.lax.stop_gradient(lses.max(0))
    base = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(lses - base[None])
    total = weights.sum(0)
    empty = total == 0
    safe = jnp.where(empty, 1.0, total)
    shares = (weights / safe[None])[..., None]
    out = (shares * jnp.stack(outs).astype(wide)).sum(0)
    lse = jnp.where(empty, -jnp.inf, base + jnp.log(safe))
    return out.astype(outs[0].dtype), lse
