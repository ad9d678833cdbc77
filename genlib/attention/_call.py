"""A call of attention once its arguments are checked: what every `impl` is given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.attention._bias import Bias, as_bias
from genlib.attention._mask import Mask
from genlib.attention._mask_tables import dense
from genlib.attention._positions import leaf_axes
from genlib.types import Array, ArrayLike, Scalar, compute_dtype, concrete


class Call(NamedTuple):
    """The checked arguments of one attention.

    Attributes:
      q: `[B, T, N, H]`.
      k: `[B, S, K, H]`, K dividing N: query head n looks at key head `n // (N // K)`.
      v: `[B, S, K, V]`.
      mask: or None, everything is seen.
      bias: or None.
      scale: factor on the products of queries and keys, a scalar.
      softcap: bound c of the scores, a scalar, or None.
      sink: logits `[N]` of a key whose value is 0, or None.
      q_positions: int32 `[B or 1, T]`, a NumPy array where known before tracing.
      kv_positions: int32 `[B or 1, S]`, likewise.
      counted: whether positions are those of a sequence counted from its start, the
        queries its last ones, as they are if no one gives any.
    """

    q: Array
    k: Array
    v: Array
    mask: Mask | None
    bias: Bias | None
    scale: Any
    softcap: Any
    sink: Array | None
    q_positions: Any
    kv_positions: Any
    counted: bool

    @property
    def dtype(self) -> Any:
        """What scores, softmax and sums are computed in."""
        return compute_dtype(self.q.dtype)


def make_call(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | ArrayLike | None,
    bias: Bias | ArrayLike | None,
    scale: Scalar | None,
    softcap: Scalar | None,
    sink: ArrayLike | None,
    q_positions: ArrayLike | None,
    kv_positions: ArrayLike | None,
) -> Call:
    """Return the checked arguments, or raise a ValueError that names the wrong one."""
    q, k, v = (jnp.asarray(x) for x in (q, k, v))
    _check_arrays(q, k, v)
    if mask is not None and not isinstance(mask, Mask):
        if callable(mask):
            raise ValueError("mask must be a mask or bools; make one by `predicate`")
        mask = dense(mask)
    bias = as_bias(bias)
    wide = compute_dtype(q.dtype)
    if sink is not None:
        sink = jnp.asarray(sink)
        if sink.shape != q.shape[2:3]:
            raise ValueError(
                f"sink must be one logit for each of {q.shape[2]} heads, got shape "
                f"{sink.shape}"
            )
        sink = sink.astype(wide)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    for name, value in (("scale", scale), ("softcap", softcap)):
        if value is not None and jnp.ndim(value):
            raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
    cap = None if softcap is None else concrete(softcap)
    if cap is not None and not 0 < cap < np.inf:
        raise ValueError(f"softcap must be positive and finite, got {softcap}")
    sides = _positions(q, k, q_positions, kv_positions)
    for name, tree in (("mask", mask), ("bias", bias)):
        _check_axes(name, tree, q.shape[:3], k.shape[1:3])
        _check_table(name, tree, q, k, sides)
    counted = all(
        isinstance(side, np.ndarray) and (side == default).all()
        for side, default in zip(sides, _counted(q, k), strict=True)
    )
    return Call(q, k, v, mask, bias, scale, softcap, sink, *sides, counted)


def _check_arrays(q: Array, k: Array, v: Array) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floating [batch, length, heads, features], got "
                f"{x.dtype} of shape {x.shape}"
            )
        if x.dtype != q.dtype:
            raise ValueError(
                f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
            )
    if k.shape[:3] != v.shape[:3] or k.shape[0] != q.shape[0]:
        raise ValueError(
            "k and v must be [B, S, K, features] with the batch of q; shapes are q "
            f"{q.shape}, k {k.shape}, v {v.shape}"
        )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q and k must have equal features, got {q.shape[-1]} and {k.shape[-1]}"
        )
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"the heads of q must be a multiple of those of k, got {q.shape[2]} and "
            f"{k.shape[2]}"
        )


def _positions(q: Array, k: Array, mine: Any, other: Any) -> tuple[Any, Any]:
    """Return int32 positions [B or 1, length]; queries are the last by default."""
    if (mine is None) != (other is None):
        raise ValueError("give both q_positions and kv_positions, or neither")
    if mine is None:
        mine, other = _counted(q, k)
    sides = []
    for name, x, like in (("q_positions", mine, q), ("kv_positions", other, k)):
        kind = jnp.result_type(x)
        shapes = [(n, like.shape[1]) for n in (1, like.shape[0])]
        if not jnp.issubdtype(kind, jnp.integer) or (
            jnp.shape(x) not in [*shapes, shapes[0][1:]]
        ):
            raise ValueError(
                f"{name} must be integers [{like.shape[1]}] or {list(shapes[-1])}, "
                f"got {kind} of shape {jnp.shape(x)}"
            )
        known = concrete(x)
        x = jnp.asarray(x, jnp.int32) if known is None else known.astype(np.int32)
        if known is not None and (x != known).any():
            raise ValueError(f"{name} must be of 32 bits, got up to {abs(known).max()}")
        sides.append(x if x.ndim == 2 else x[None])
    return sides[0], sides[1]


def _counted(q: Array, k: Array) -> tuple[np.ndarray, np.ndarray]:
    places = np.arange(k.shape[1], dtype=np.int32)
    return np.arange(-q.shape[1], 0, dtype=np.int32) + len(places), places


def _check_table(name: str, tree: Any, q: Array, k: Array, sides: Any) -> None:
    """Raise a ValueError unless a mask or bias broadcasts to `[B, heads, T, S]`.

    A larger batch, as of the lengths of `prefix`, would make a result of that batch.
    """
    if tree is None:
        return
    mine, other = (jax.ShapeDtypeStruct(x.shape, jnp.int32) for x in sides)
    table = jax.eval_shape(
        lambda q, kv: tree(q[:, None, :, None], kv[:, None, None, :]), mine, other
    )
    most = q.shape[0], q.shape[2], q.shape[1], k.shape[1]
    fits = len(table.shape) == 4 and all(
        n in (1, length) or (axis == 1 and n == k.shape[2])
        for axis, (n, length) in enumerate(zip(table.shape, most, strict=True))
    )
    kind = jnp.bool_ if isinstance(tree, Mask) else jnp.floating
    if not fits or not jnp.issubdtype(table.dtype, kind):
        raise ValueError(
            f"{name} must give {kind.__name__} that broadcast to {list(most)}, batch, "
            f"heads, queries and keys, got {table.dtype} of shape {list(table.shape)}"
        )


def _check_axes(name: str, tree: Any, q: Any, kv: Any) -> None:
    for leaf, axes in zip(jax.tree.leaves(tree), leaf_axes(tree), strict=True):
        for axis, length, side in zip(axes, (q[1], kv[0]), "qk", strict=True):
            if axis is not None and leaf.shape[axis] != length:
                raise ValueError(
                    f"{name} must fit {length} rows of {side}, got shape "
                    f"{list(leaf.shape)}"
                )
        if axes != (None, None) and leaf.shape[0] not in (1, q[0]):
            raise ValueError(
                f"{name} must have the batch {q[0]} or 1, got shape {list(leaf.shape)}"
            )
        if jnp.ndim(leaf) == 4 and leaf.shape[1] not in (1, q[2], kv[1]):
            raise ValueError(
                f"{name} must have 1, {kv[1]} or {q[2]} heads, got shape "
                f"{list(leaf.shape)}"
            )
