"""Encodings of positions, each a few lines around `attention`."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from genlib.attention._attention import attention
from genlib.attention._bias import Bias
from genlib.attention._encoding import Encoding, check_sides
from genlib.attention._frequencies import Frequencies
from genlib.attention._mask import Mask
from genlib.attention._masks import causal, window
from genlib.attention._rope import Layout, rotate, rotate_axial
from genlib.types import Array, ArrayLike, check_positive, compute_dtype


def no_positions() -> Encoding:
    """Tell attention nothing of positions, but what a mask says.

    Source: NoPE, arXiv:2305.19466.

    >>> q = jnp.ones((1, 4, 2, 8))
    >>> no_positions().attend(q, q, q, mask=causal()).shape
    (1, 4, 2, 8)
    """
    return Encoding(_kept, _attend)


def biased(bias: Bias) -> Encoding:
    """Tell attention of positions by a bias on its scores, as `alibi(num_heads)`.

    Raises:
      ValueError: if `bias` is not a `Bias`; when it attends, if it is given another.

    >>> from genlib.attention import alibi
    >>> q = jnp.ones((1, 4, 2, 8))
    >>> biased(alibi(2)).attend(q, q, q, mask=causal()).shape
    (1, 4, 2, 8)
    """
    if not isinstance(bias, Bias):
        raise ValueError(f"bias must be a `Bias`, got {type(bias).__name__}")

    def attend(*args: Any, **options: Any) -> Any:
        if options.get("bias") is not None:
            raise ValueError("bias must be None, as the encoding is itself a bias")
        return _attend(*args, **options | {"bias": bias})

    return Encoding(_kept, attend)


def rotary(
    frequencies: Frequencies | Sequence[Frequencies],
    *,
    layout: Layout = "half",
    grid: tuple[int, ...] | None = None,
) -> Encoding:
    """Turn queries and keys by their positions.

    Args:
      frequencies: as from `rope_frequencies`; with a grid, of every axis alike or one
        for each axis. Their `score_factor` multiplies the scale.
      layout: as in `rotate`.
      grid: lengths of the axes, as `(height, width)`, if positions count the places of
        a grid row by row: they then turn by `rotate_axial`.

    Raises:
      ValueError: if frequencies of several axes differ in their `score_factor`, or
        come without a grid; when it attends, as `rotate`.

    Source: arXiv:2104.09864.

    >>> from genlib.attention import rope_frequencies
    >>> encoding = rotary(rope_frequencies(8))
    >>> q = jnp.ones((1, 4, 2, 8))
    >>> encoding.attend(q, encoding.keys(q), q, mask=causal()).shape
    (1, 4, 2, 8)
    """
    each = [frequencies] if isinstance(frequencies, Frequencies) else frequencies
    if grid is None and len(each) != 1:
        raise ValueError(f"frequencies must be one without a grid, got {len(each)}")
    factor = each[0].score_factor
    if len(each) > 1 and any(f.score_factor != factor for f in each):
        raise ValueError("frequencies of all axes must have one score_factor")

    def turned(x: Array, positions: Any) -> Array:
        if grid is None:
            return rotate(x, positions, each[0], layout=layout)
        return rotate_axial(x, _places(positions, grid), frequencies, layout=layout)

    def keys(k: Array, positions: Any = None) -> Array:
        return turned(k, np.arange(k.shape[1]) if positions is None else positions)

    def attend(
        q: Array,
        k: Array,
        v: Array,
        q_positions: Any = None,
        kv_positions: Any = None,
        *,
        scale: Any = None,
        **options: Any,
    ) -> Any:
        mine, _ = check_sides(q, k, q_positions, kv_positions)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        options["scale"] = scale * factor
        return _attend(turned(q, mine), k, v, q_positions, kv_positions, **options)

    return Encoding(keys, attend)


def log_n(encoding: Encoding, train_length: int) -> Encoding:
    """Sharpen attention as it sees more than in training.

        q -> q max(1, ln n / ln n_train),   n = 1 + the position of the query

    so that its entropy stays where the number of keys grows.

    Args:
      encoding: any.
      train_length: n_train, at least 2.

    Raises:
      ValueError: if `train_length` is below 2.

    Source: https://kexue.fm/archives/8823.

    >>> q = jnp.ones((1, 4, 2, 8))
    >>> log_n(no_positions(), 512).attend(q, q, q, mask=causal()).shape
    (1, 4, 2, 8)
    """
    log_n_factor(1, train_length)

    def attend(
        q: Array,
        k: Array,
        v: Array,
        q_positions: Any = None,
        kv_positions: Any = None,
        **options: Any,
    ) -> Any:
        mine, _ = check_sides(q, k, q_positions, kv_positions)
        factor = log_n_factor(mine + 1, train_length).astype(compute_dtype(q.dtype))
        sharper = (q * factor[:, :, None, None]).astype(q.dtype)
        return encoding.attend(sharper, k, v, q_positions, kv_positions, **options)

    return Encoding(encoding.keys, attend)


def log_n_factor(n: ArrayLike, train_length: int) -> Array:
    """Return the factor by which scores of n keys are sharpened.

        max(1, ln n / ln n_train)

    Args:
      n: integers of any shape, how many keys are seen.
      train_length: n_train, at least 2.

    Returns:
      float32 (float64 under x64), in the shape of `n`.

    Raises:
      ValueError: if `train_length` is below 2.

    Source: https://kexue.fm/archives/8823.

    >>> log_n_factor(1024, 512).round(4).item()
    1.1110999584197998
    """
    if not train_length >= 2:
        raise ValueError(f"train_length must be at least 2, got {train_length}")
    counted = jnp.maximum(jnp.asarray(n), 1).astype(float)
    return jnp.maximum(jnp.log(counted) / math.log(train_length), 1.0)


def hwfa(
    depth: int,
    frequencies: Frequencies,
    train_length: int,
    size: int | None = None,
) -> list[tuple[Encoding, Mask]]:
    """Return the encoding and mask of each layer of hybrid window-full attention.

    All layers but the last see a window of w keys, with rotary positions; the last
    sees all keys before it, with no positions and sharpened by log n. All that a
    window layer learns is local, and so is as right in longer sequences.

    Args:
      depth: layers L.
      frequencies: of the rotary positions.
      train_length: n_train.
      size: w; by default the largest for which all windows together reach no further
        than three quarters of the training length: `(w - 1) (L - 1) + 1 <= 3 n_train /
        4`.

    Returns:
      A pair for each layer.

    Raises:
      ValueError: if `depth` is not positive, `train_length` below 2, or if such a
        window is of one key.

    Source: https://kexue.fm/archives/9603.

    >>> from genlib.attention import rope_frequencies, visible
    >>> layers = hwfa(24, rope_frequencies(64), 512)
    >>> rows = [visible(mask, jnp.array([500]), jnp.arange(512)) for _, mask in layers]
    >>> len(layers), rows[0].sum().item(), rows[-1].sum().item()
    (24, 17, 501)
    """
    check_positive("depth", depth)
    full = log_n(no_positions(), train_length), causal()
    if depth == 1:
        return [full]
    if size is None:
        size = (3 * train_length // 4 - 1) // (depth - 1) + 1
        if size < 2:
            raise ValueError(
                f"train_length must give {depth} layers a window of 2, got "
                f"{train_length}"
            )
    return [(rotary(frequencies), causal() & window(size))] * (depth - 1) + [full]


def _kept(k: Array, positions: Any = None) -> Array:
    return k


def _attend(
    q: Array,
    k: Array,
    v: Array,
    q_positions: Any = None,
    kv_positions: Any = None,
    *,
    attend: Any = attention,
    **options: Any,
) -> Any:
    options |= {"q_positions": q_positions, "kv_positions": kv_positions}
    return attend(q, k, v, **options)


def _places(positions: ArrayLike, grid: tuple[int, ...]) -> Array:
    """Return the coordinates in a grid of positions that count it row by row."""
    rest, places = jnp.asarray(positions), []
    for length in grid[:0:-1]:
        rest, place = jnp.divmod(rest, length)
        places.append(place)
    return jnp.stack([rest, *places[::-1]], -1)
