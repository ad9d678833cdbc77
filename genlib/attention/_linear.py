"""Baselines of linear cost, which are not softmax attention."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from genlib.types import Array, ArrayLike, compute_dtype

_CHUNK = 128  # queries whose scores are a table, between states that are carried on


def _elu_plus_one(x: Array) -> Array:
    return jax.nn.elu(x) + 1


def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    feature_map: Callable[[Array], Array] = _elu_plus_one,
    causal: bool = False,
    valid: ArrayLike | None = None,
) -> Array:
    """Return means of the values weighted by products of positive features.

        o_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)

    A baseline: it is not softmax attention, nor an approximation of it. Time and
    memory are linear in the lengths, for sums over j are shared by all queries; causal
    ones are carried from chunk to chunk. A query that sees nothing gets 0.

    Args:
      q: `[B, T, N, H]`, the last T of the S positions.
      k: `[B, S, K, H]`, K dividing N.
      v: `[B, S, K, V]`.
      feature_map: phi, from features on the last axis to nonnegative ones; by default
        elu(x) + 1.
      causal: whether queries see only keys at their own position and before.
      valid: bool `[B, S]`, which keys count; by default all.

    Returns:
      `[B, T, N, V]` in the dtype of q.

    Raises:
      ValueError: if shapes do not fit, or `causal` with T > S.

    Source: arXiv:2006.16236, eq. 5-12.

    >>> x = jnp.arange(12.0).reshape(1, 3, 1, 4)
    >>> out = linear_attention(x, x, x, causal=True)
    >>> bool(jnp.allclose(out[0, 0], x[0, 0]))  # the first sees itself
    True
    """
    k, v, _ = _checked(q, k, v, valid)
    if causal and q.shape[1] > k.shape[1]:
        raise ValueError(
            "q must be at most as long as k if causal, got lengths "
            f"{q.shape[1]} and {k.shape[1]}"
        )
    wide = compute_dtype(q.dtype)
    queries, keys = feature_map(q.astype(wide)), feature_map(k.astype(wide))
    if valid is not None:
        keys = jnp.where(jnp.asarray(valid)[..., None, None], keys, 0.0)
    # The sum of weights is that of one more feature of the values, which is 1.
    values = jnp.concatenate([v.astype(wide), jnp.ones((*v.shape[:3], 1), wide)], -1)
    queries = rearrange(queries, "b t (k g) f -> b t k g f", k=k.shape[2])
    if causal:
        sums = _causal(queries, keys, values)
    else:
        state = jnp.einsum("bskf,bskv->bkfv", keys, values)
        sums = jnp.einsum("btkgf,bkfv->btkgv", queries, state)
    weighted, total = sums[..., :-1], sums[..., -1:]
    empty = total == 0
    out = jnp.where(empty, 0.0, weighted / jnp.where(empty, 1.0, total))
    return rearrange(out, "b t k g v -> b t (k g) v").astype(q.dtype)


def _causal(q: Array, k: Array, v: Array) -> Array:
    """Return sums over the keys up to each query, `[B, T, K, G, V]`."""
    length = q.shape[1]
    before = k.shape[1] - length
    state = jnp.einsum("bskf,bskv->bkfv", k[:, :before], v[:, :before])
    size = max(1, min(_CHUNK, length))

    def chunks(x: Array) -> Array:
        ends = [(0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)]
        return rearrange(jnp.pad(x, ends), "b (n c) ... -> n b c ...", c=size)

    def step(state: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = chunk
        scores = jnp.tril(jnp.einsum("btkgf,bskf->bkgts", q, k))
        sums = jnp.einsum("bkgts,bskv->btkgv", scores, v)
        sums = sums + jnp.einsum("btkgf,bkfv->btkgv", q, state)
        return state + jnp.einsum("bskf,bskv->bkfv", k, v), sums

    parts = chunks(q), chunks(k[:, before:]), chunks(v[:, before:])
    sums = jax.lax.scan(step, state, parts)[1]
    return rearrange(sums, "n b c ... -> b (n c) ...")[:, :length]


def efficient_attention(
    q: Array, k: Array, v: Array, *, valid: ArrayLike | None = None
) -> Array:
    """Return values mixed by two softmaxes, of a query's features and of key lengths.

        o_i = softmax_features(q_i) (sum_j softmax_length(k)_j v_j^T)

    A baseline: it is not softmax attention. Time and memory are linear in the lengths.
    If no key is valid the result is 0.

    Args:
      q: `[B, T, N, H]`.
      k: `[B, S, K, H]`, K dividing N.
      v: `[B, S, K, V]`.
      valid: bool `[B, S]`, which keys count; by default all.

    Returns:
      `[B, T, N, V]` in the dtype of q.

    Raises:
      ValueError: if shapes do not fit.

    Source: arXiv:1812.01243.

    >>> x = jnp.ones((1, 3, 1, 4))
    >>> efficient_attention(x, x, x)[0, 0, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    k, v, keep = _checked(q, k, v, valid)
    wide = compute_dtype(q.dtype)
    keys, values = k.astype(wide), v.astype(wide)
    # No key is an empty softmax; where none counts all do, and the result is 0.
    some = keep.any(1, keepdims=True)
    where = (keep | ~some)[..., None, None]
    shares = jax.nn.softmax(jnp.where(where, keys, -jnp.inf), axis=1)
    shares = jnp.where(some[..., None, None], shares, 0.0)
    state = jnp.einsum("bskf,bskv->bkfv", shares, values)
    queries = jax.nn.softmax(q.astype(wide), axis=-1)
    queries = rearrange(queries, "b t (k g) f -> b t k g f", k=k.shape[2])
    out = jnp.einsum("btkgf,bkfv->btkgv", queries, state)
    return rearrange(out, "b t k g v -> b t (k g) v").astype(q.dtype)


def _checked(
    q: Array, k: Array, v: Array, valid: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Return k and v with 0 for keys that do not count, and which do [B or 1, S]."""
    if not (q.ndim == k.ndim == v.ndim == 4) or (
        (q.shape[0], q.shape[-1]) != (k.shape[0], k.shape[-1])
        or k.shape[:3] != v.shape[:3]
        or k.shape[2] == 0
        or q.shape[2] % k.shape[2]
    ):
        raise ValueError(
            "q [B, T, N, H], k [B, S, K, H] and v [B, S, K, V] must fit, K dividing N; "
            f"got {q.shape}, {k.shape}, {v.shape}"
        )
    if valid is None:
        return k, v, jnp.ones((1, k.shape[1]), bool)
    keep = jnp.asarray(valid)
    if keep.dtype != jnp.bool_ or keep.shape not in (k.shape[:2], (1, k.shape[1])):
        raise ValueError(
            f"valid must be bool {k.shape[:2]} or {(1, k.shape[1])}, got {keep.dtype} "
            f"of shape {keep.shape}"
        )
    rows = keep[..., None, None]
    return jnp.where(rows, k, 0), jnp.where(rows, v, 0), keep
