"""Sinusoidal features of a number: of times, and of the places of an image."""

import einops
import jax.numpy as jnp
import numpy as np

from genlib.types import Array, ArrayLike, float_array


def timestep_embedding(
    t: ArrayLike,
    features: int,
    max_period: float = 10_000.0,
    time_scale: float = 1000.0,
) -> Array:
    """Embed times as cosines and sines of geometrically spaced frequencies.

    `[cos(w_k s t), sin(w_k s t)]` with `w_k = max_period**(-k / (features / 2))` for
    `k = 0 .. features / 2 - 1`, and `s = time_scale`.

    Args:
        t: times of any shape `[...]`; integers are allowed.
        features: number of features, even and positive.
        max_period: the longest period over `2 pi`, in units of `time_scale * t`.
        time_scale: factor on `t`; 1000 suits times in [0, 1], 1 suits step indices.

    Returns:
        `[..., features]`, float32 (float64 for float64 times): half-precision
        phases would be wrong by whole turns.

    Raises:
        ValueError: if `features` is not even and positive.

    Source: arXiv:1706.03762 section 3.5, arXiv:2006.11239 appendix B.

    >>> timestep_embedding(0.0, 4).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    if features < 2 or features % 2:
        raise ValueError(f"features must be even and positive, got {features}")
    t = float_array(t)
    half = features // 2
    frequencies = jnp.asarray(max_period ** (-np.arange(half) / half), t.dtype)
    phase = time_scale * jnp.multiply.outer(t, frequencies)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def position_embedding(height: int, width: int, features: int) -> Array:
    """Embed the places of a grid: half the features see the row, half the column.

    Each half is `timestep_embedding` of the integer coordinate, so that a grid of
    another size or shape needs no new parameters.

    Args:
        height: number of rows.
        width: number of columns.
        features: number of features, a positive multiple of 4.

    Returns:
        `[height * width, features]` in row-major order, float32.

    Raises:
        ValueError: if `features` is not a positive multiple of 4.

    Source: arXiv:2010.11929 (the fixed 2-D variant), arXiv:2212.09748.

    >>> position_embedding(2, 3, 8).shape
    (6, 8)
    """
    if features < 4 or features % 4:
        raise ValueError(f"features must be a positive multiple of 4, got {features}")
    rows = timestep_embedding(jnp.arange(height), features // 2, time_scale=1.0)
    columns = timestep_embedding(jnp.arange(width), features // 2, time_scale=1.0)
    rows = einops.repeat(rows, "h c -> (h w) c", w=width)
    columns = einops.repeat(columns, "w c -> (h w) c", h=height)
    return jnp.concatenate([rows, columns], axis=-1)
