"""Rotary positions whose distances stop growing, or grow slower, beyond a window."""

from typing import Any

import jax.numpy as jnp

from genlib.attention._angles import angles
from genlib.attention._attention import attention
from genlib.attention._encoding import Encoding, check_sides
from genlib.attention._frequencies import Frequencies
from genlib.attention._mask import Mask
from genlib.attention._mask_tables import dense
from genlib.attention._masks import causal, window
from genlib.attention._merge import merge
from genlib.attention._rope import Layout, cos_sin, turn
from genlib.types import Array, compute_dtype


def rerope(
    frequencies: Frequencies,
    near: int,
    leak: float | None = None,
    *,
    layout: Layout = "half",
    bidirectional: bool = False,
) -> Encoding:
    """Encode distances as rotary positions do, rectified beyond a window of them.

        r -> min(r, w)                        ReRoPE
        r -> r if r < w else w + (r - w) / k  leaky ReRoPE

    No rotation of keys gives both the near and the far distances, so each kind is an
    attention of its own over its own keys, and the two are merged by their
    log-sum-exp: exact, by any `impl`, and in linear memory where that is. Keys are kept
    as they are and turned at every call; a query of one position over them is the same
    as in the whole sequence.

    Args:
      frequencies: of training, not stretched.
      near: w, the distances that stay, at least 1.
      leak: k, at least 1 (which is plain RoPE), or None for ReRoPE.
      layout: as in `rotate`.
      bidirectional: whether later keys are seen, at distances -min(|r|, w) and so on;
        without it a query sees none of them, whatever the mask.

    Raises:
      ValueError: if `near` is no integer, or it or `leak` is below 1.

    Source: ReRoPE, https://kexue.fm/archives/9708.

    >>> from genlib.attention import rope_frequencies
    >>> encoding = rerope(rope_frequencies(8), near=4)
    >>> q = jnp.ones((1, 16, 2, 8))
    >>> encoding.attend(q, q, q).shape
    (1, 16, 2, 8)
    """
    if near < 1 or near != int(near):
        raise ValueError(f"near must be an integer of at least 1, got {near}")
    if leak is not None and not leak >= 1:
        raise ValueError(f"leak must be at least 1, or None, got {leak}")
    pace = 0.0 if leak is None else 1.0 / leak
    slow = frequencies._replace(inverse=frequencies.inverse * pace)

    def attend(
        q: Array,
        k: Array,
        v: Array,
        q_positions: Any = None,
        kv_positions: Any = None,
        *,
        mask: Any = None,
        scale: Any = None,
        sink: Any = None,
        return_lse: bool = False,
        attend: Any = attention,
        **options: Any,
    ) -> Any:
        mine, other = check_sides(q, k, q_positions, kv_positions)
        if scale is None:
            scale = q.shape[-1] ** -0.5
        options |= {
            "q_positions": q_positions,
            "kv_positions": kv_positions,
            "scale": scale * frequencies.score_factor,
            "return_lse": True,
        }
        dtype = compute_dtype(q.dtype)
        turned = lambda x, angle: turn(x, *cos_sin(angle, frequencies), layout)
        at = lambda positions, f: angles(positions, f.inverse, dtype)
        parts = [
            attend(
                turned(q, at(mine, frequencies)),
                turned(k, at(other, frequencies)),
                v,
                mask=_both(mask, window(near) if bidirectional else near_past),
                sink=sink,
                **options,
            )
        ]
        far_k = turned(k, at(other, slow))
        edge = at(jnp.asarray(near), frequencies)[None, None]
        for sign, far in ((1, far_past), (-1, far_future))[: 1 + bidirectional]:
            # The angle of distance r = q - k is w + (r - w) / k for r > 0, and the
            # negative of that of -r for r < 0.
            far_q = turned(q, at(mine - sign * near, slow) + sign * edge)
            parts.append(attend(far_q, far_k, v, mask=_both(mask, far), **options))
        out, lse = merge(*parts)
        return (out, lse) if return_lse else out

    near_past = causal() & window(near)
    far_past = causal() & ~window(near)
    far_future = ~causal() & ~window(near)
    return Encoding(lambda k, positions=None: k, attend)


def _both(mask: Any, other: Mask) -> Mask:
    if mask is None:
        return other
    return (mask if isinstance(mask, Mask) else dense(mask)) & other
