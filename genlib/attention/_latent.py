"""Multi-head latent attention: keys and values of all heads from one small vector."""

from typing import Any

import jax.numpy as jnp

from genlib.attention._attention import attention
from genlib.attention._scores import dot, finite_rows
from genlib.types import Array, Scalar


def latent_attention(
    q_nope: Array,
    q_rope: Array,
    c: Array,
    k_rope: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    absorb: bool | None = None,
    scale: Scalar | None = None,
    **options: Any,
) -> Any:
    """Attend to keys and values that are all projections of one latent vector.

        k_i = [c w_uk_i, k_rope],   v_i = c w_uv_i          for head i
        o_i = softmax(scale [q_nope_i, q_rope_i] k_i) v_i

    Expanded, this is attention with as many key heads as query heads. Absorbed, the
    projections are moved to the other side, `q_nope_i (c w_uk_i) = (q_nope_i w_uk_i^T)
    c`, and all heads look at one key `[c, k_rope]` whose value is `c`: the same numbers
    from `d_c + d_r` of them for each position. With T queries and S keys the two take

        S N d_c (d_n + d_v) + T S N (d_n + d_r + d_v)       expanded
        T N d_c (d_n + d_v) + T S N (2 d_c + d_r)           absorbed

    products each, so that one query over many keys is best absorbed.

    Args:
      q_nope: queries without position `[B, T, N, d_n]`.
      q_rope: rotated queries `[B, T, N, d_r]`.
      c: latents `[B, S, d_c]`, after their norm.
      k_rope: rotated keys `[B, S, d_r]`, one for all heads.
      w_uk: `[d_c, N, d_n]`.
      w_uv: `[d_c, N, d_v]`.
      absorb: whether to absorb; None is what takes fewer products.
      scale: factor on the products; by default `(d_n + d_r)**-0.5`.
      **options: as of `attention`: masks, positions, `impl`, ...

    Returns:
      `[B, T, N, d_v]` in the dtype of the queries; with `return_lse` also `[B, T, N]`.

    Raises:
      ValueError: if shapes or dtypes do not fit, and as `attention`.

    Source: arXiv:2405.04434, section 2.1.

    >>> q, c, w = jnp.ones((1, 1, 2, 3)), jnp.ones((1, 5, 4)), jnp.ones((4, 2, 3))
    >>> latent_attention(q, q[..., :2], c, c[..., :2], w, w, absorb=True).shape
    (1, 1, 2, 3)
    """
    _check(q_nope, q_rope, c, k_rope, w_uk, w_uv)
    if scale is None:
        scale = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    if absorb is None:
        absorb = _absorbed_is_cheaper(q_nope, q_rope, c, w_uv)
    if absorb:
        q = _project("btnd,cnd->btnc", q_nope, w_uk)
        k, v = jnp.concatenate([c, k_rope], -1)[:, :, None], c[:, :, None]
    else:
        q = q_nope
        rope = jnp.broadcast_to(k_rope[:, :, None], (*c.shape[:2], *q_rope.shape[2:]))
        k = jnp.concatenate([_project("bsc,cnd->bsnd", c, w_uk), rope], -1)
        v = _project("bsc,cnd->bsnd", c, w_uv)
    result = attention(jnp.concatenate([q, q_rope], -1), k, v, scale=scale, **options)
    if not absorb:
        return result
    out, *lse = result if isinstance(result, tuple) else (result,)
    out = _project("btnc,cnd->btnd", out, w_uv)
    return (out, *lse) if lse else out


def _absorbed_is_cheaper(q_nope: Array, q_rope: Array, c: Array, w_uv: Array) -> bool:
    (queries, _, d_n), (keys, d_c) = q_nope.shape[1:], c.shape[1:]
    d_r, d_v = q_rope.shape[-1], w_uv.shape[-1]
    expanded = keys * d_c * (d_n + d_v) + queries * keys * (d_n + d_r + d_v)
    absorbed = queries * d_c * (d_n + d_v) + queries * keys * (2 * d_c + d_r)
    return absorbed < expanded


def _project(equation: str, rows: Array, w: Array) -> Array:
    """Return products of rows and a matrix, NaN for a row that is not finite.

    The matrix has a gradient from every row; one that nothing sees must not spoil it.
    """
    bad, (rows,) = finite_rows(rows)
    y = dot(equation, rows, w).astype(rows.dtype)
    return jnp.where(bad.reshape(bad.shape + (1,) * (y.ndim - bad.ndim)), jnp.nan, y)


def _check(
    q_nope: Array, q_rope: Array, c: Array, k_rope: Array, w_uk: Array, w_uv: Array
) -> None:
    arrays = {
        "q_nope": (q_nope, "B T N d_n"),
        "q_rope": (q_rope, "B T N d_r"),
        "c": (c, "B S d_c"),
        "k_rope": (k_rope, "B S d_r"),
        "w_uk": (w_uk, "d_c N d_n"),
        "w_uv": (w_uv, "d_c N d_v"),
    }
    sizes: dict[str, int] = {}
    for name, (x, axes) in arrays.items():
        names = axes.split()
        known = [sizes.get(axis, axis) for axis in names]
        fits = jnp.ndim(x) == len(names) and all(
            sizes.setdefault(axis, size) == size
            for axis, size in zip(names, x.shape, strict=True)
        )
        if not fits or x.dtype != q_nope.dtype:
            raise ValueError(
                f"{name} must be [{axes.replace(' ', ', ')}] = {known} of dtype "
                f"{q_nope.dtype}, got {x.dtype} of shape {jnp.shape(x)}"
            )
