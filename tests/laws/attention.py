"""Masks and options of attention that the battery runs over, and its oracle."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib import attention as attn

B, T, S, N, K, H, V = 2, 24, 40, 4, 2, 8, 6
rng = np.random.default_rng(0)

SEGMENTS = np.sort(rng.integers(0, 4, (B, S)))[:, ::-1].copy()
TABLE = rng.random((B, N, T, S)) < 0.4
TABLE[0, 1, 3] = False  # one head of one query sees nothing
BLOCKS = np.repeat(np.repeat(rng.random((1, 1, 3, 5)) < 0.5, 8, 2), 8, 3)

MASKS: dict[str, Callable[[], attn.Mask | None]] = {
    "none": lambda: None,
    "causal": attn.causal,
    "window": lambda: attn.window(7),
    "causal-window": lambda: attn.causal() & attn.window(7),
    "far": lambda: attn.causal() & ~attn.window(9),
    "prefix": lambda: attn.prefix(11),
    "lengths": lambda: attn.prefix(np.array([0, 23])),
    "prefix-lm": lambda: attn.causal() | attn.prefix(np.array([20, 0])),
    "block-causal": lambda: attn.block_causal(6),
    "segments": lambda: attn.segments(SEGMENTS[:, -T:], SEGMENTS),
    "causal-segments": lambda: (
        attn.causal() & attn.segments(SEGMENTS[:, -T:], SEGMENTS)
    ),
    "padding": lambda: attn.padding(np.arange(S) < np.array([[S], [17]])),
    "dense": lambda: attn.dense(TABLE),
    "dense-kv-heads": lambda: attn.dense(TABLE[:, :K]),
    "dense-keys": lambda: attn.dense(TABLE[:, :1, :1]),
    "dense-queries": lambda: attn.dense(TABLE[:1, :, :, :1]),
    "dense-blocks": lambda: attn.dense(BLOCKS),
    "predicate": lambda: attn.predicate(lambda q, k: (q - k) % 3 == 0) & attn.causal(),
    "not-any": lambda: ~(attn.window(5) | attn.prefix(3)),
    "nothing": lambda: attn.window(1) & ~attn.window(1),
}


class Inputs(NamedTuple):
    q: Any
    k: Any
    v: Any
    bias: Any
    sink: Any
    d_out: Any
    d_lse: Any


def inputs(dtype: Any = np.float64) -> Inputs:
    """Return what attention is called with, and the cotangents of its results."""
    rng = np.random.default_rng(1)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, V), (1, N, T, S), (N,))
    shapes += ((B, T, N, V), (B, T, N))
    return Inputs(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))


def positions() -> tuple[np.ndarray, np.ndarray]:
    """Return the positions that queries and keys have by default."""
    return np.arange(S - T, S), np.arange(S)


def table(mask: attn.Mask | None) -> np.ndarray:
    """Return what a mask lets be seen, `[B, N, T, S]`."""
    if mask is None:
        return np.ones((B, N, T, S), bool)
    seen = np.asarray(attn.visible(mask, *positions()))
    if seen.shape[1] == K:
        seen = seen.repeat(N // K, 1)
    return np.broadcast_to(seen, (B, N, T, S))


def oracle(
    x: Inputs,
    seen: np.ndarray,
    *,
    bias: bool = False,
    sink: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return output, log-sum-exp and gradients, from their formulas in float64."""
    x = Inputs(*(np.asarray(leaf, np.float64) for leaf in x))
    heads = lambda y: np.moveaxis(y.repeat(N // y.shape[2], 2), 2, 1)
    q, k, v, d_out = (heads(y) for y in (x.q, x.k, x.v, x.d_out))
    d_lse = np.moveaxis(x.d_lse, 2, 1)
    scale = H**-0.5 if scale is None else scale
    scores = scale * q @ np.swapaxes(k, 2, 3)
    slope = np.ones_like(scores)
    if softcap is not None:
        slope = 1 - np.tanh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    if bias:
        scores = scores + x.bias
    scores = np.where(seen, scores, -np.inf)
    more = x.sink[None, :, None, None] if sink else -np.inf
    more = np.broadcast_to(more, (*scores.shape[:3], 1))
    lse = np.logaddexp.reduce(np.concatenate([scores, more], -1), -1)
    base = np.where(np.isneginf(lse), 0, lse)[..., None]
    weights, rest = np.exp(scores - base), np.exp(more - base)[..., 0]
    out = weights @ v
    d_weights = d_out @ np.swapaxes(v, 2, 3)
    mean = (weights * d_weights).sum(-1)
    d_scores = weights * (d_weights - mean[..., None] + d_lse[..., None])
    d_raw = scale * d_scores * slope
    ungroup = lambda y, n: y.reshape(B, n, N // n, *y.shape[2:]).sum(2)
    gradients = {
        "q": np.moveaxis(d_raw @ k, 1, 2),
        "k": np.moveaxis(ungroup(np.swapaxes(d_raw, 2, 3) @ q, K), 1, 2),
        "v": np.moveaxis(ungroup(np.swapaxes(weights, 2, 3) @ d_out, K), 1, 2),
    }
    if bias:
        gradients["bias"] = d_scores.sum(0, keepdims=True)
    if sink:
        gradients["sink"] = (rest * (d_lse - mean)).sum((0, 2))
    return np.moveaxis(out, 1, 2), np.moveaxis(lse, 1, 2), gradients


def run(
    x: Inputs, mask: attn.Mask | None, *, bias: bool = False, sink: bool = False, **kw
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Return output, log-sum-exp and gradients of `attention`, in one program."""

    def call(leaves: dict[str, Any]) -> Any:
        return attn.attention(**leaves, mask=mask, return_lse=True, **kw)

    names = ("q", "k", "v", *(["bias"] * bias), *(["sink"] * sink))
    leaves = {name: jnp.asarray(getattr(x, name)) for name in names}
    (out, lse), pull = jax.vjp(call, leaves)
    d_out = jnp.asarray(x.d_out).astype(out.dtype)
    (gradients,) = pull((d_out, jnp.asarray(x.d_lse).astype(lse.dtype)))
    return out, lse, gradients
