"""Frequencies of rotary positions, and how they stretch to longer sequences."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from genlib.types import Array, Scalar, check_positive, concrete


class Frequencies(NamedTuple):
    """What a rotary encoding needs to know of a head.

    Attributes:
      inverse: angle by which a pair of features turns from one position to the next,
        radians `[pairs]`; float64 in NumPy unless it depends on what is traced.
      factor: factor on cosines and sines, of queries as of keys.
      score_factor: factor on the softmax scale.
    """

    inverse: Any
    factor: Any = 1.0
    score_factor: Any = 1.0


def rope_frequencies(features: int, base: float = 10_000.0) -> Frequencies:
    """Return the geometric frequencies of RoPE.

        w_i = base**(-2 i / d),  i = 0 .. d/2 - 1

    Args:
      features: d, how many features of a head turn; even.
      base: the longest period is nearly `2 pi base` positions.

    Raises:
      ValueError: if `features` is not even and positive, or `base` not positive.

    Source: arXiv:2104.09864.

    >>> rope_frequencies(4).inverse.tolist()
    [1.0, 0.01]
    """
    if features < 2 or features % 2:
        raise ValueError(f"features must be even and positive, got {features}")
    check_positive("base", base)
    return Frequencies(float(base) ** (-np.arange(0, features, 2) / features))


def linear_frequencies(
    features: int, factor: float, base: float = 10_000.0
) -> Frequencies:
    """Return the frequencies of RoPE whose positions are interpolated.

        w_i / s

    Args:
      features: d, even.
      factor: s, how many times longer than in training sequences are.
      base: of `rope_frequencies`.

    Raises:
      ValueError: as `rope_frequencies`, or if `factor` is not positive.

    Source: position interpolation, arXiv:2306.15595.

    >>> linear_frequencies(4, 4.0).inverse.tolist()
    [0.25, 0.0025]
    """
    check_positive("factor", factor)
    return Frequencies(rope_frequencies(features, base).inverse / factor)


def ntk_frequencies(
    features: int, factor: float, base: float = 10_000.0
) -> Frequencies:
    """Return the frequencies of NTK-aware RoPE, whose base is `base s**(d / (d - 2))`.

        w_i s**(-2 i / (d - 2))

    The lowest frequency is divided by s, the highest stays.

    Args:
      features: d, even, at least 4.
      factor: s, how many times longer than in training sequences are.
      base: of `rope_frequencies`.

    Raises:
      ValueError: if `features` is not even and at least 4, or `factor` or `base` not
        positive.

    Source: arXiv:2309.00071, section 3.1.

    >>> ntk_frequencies(4, 4.0).inverse.tolist()
    [1.0, 0.0025]
    """
    check_positive("factor", factor)
    return _rebased(features, factor, base)


def dynamic_ntk_frequencies(
    features: int,
    length: Scalar | Array,
    train_length: int,
    factor: float = 1.0,
    base: float = 10_000.0,
) -> Frequencies:
    """Return NTK-aware frequencies that stretch with the length of the sequence.

    They are `ntk_frequencies` of the factor

        max(1, s n / n_train - (s - 1))

    and so those of training up to its length. All keys and queries of one attention
    need those of one length: keys that were turned by those of a shorter one, and kept,
    are wrong.

    Args:
      features: d, even, at least 4.
      length: n, a scalar, which may be traced.
      train_length: n_train.
      factor: s.
      base: of `rope_frequencies`.

    Raises:
      ValueError: as `ntk_frequencies`, or if `train_length` is not positive.

    Source: arXiv:2309.00071, section 3.3.

    >>> dynamic_ntk_frequencies(4, 4096, 2048, factor=1.0).inverse.tolist()
    [1.0, 0.005]
    """
    check_positive("factor", factor)
    check_positive("train_length", train_length)
    numpy = jnp if concrete(length) is None else np
    ratio = factor * length / train_length - (factor - 1.0)
    return _rebased(features, numpy.maximum(ratio, 1.0), base)


def _rebased(features: int, factor: Any, base: float) -> Frequencies:
    if features < 4 or features % 2:
        raise ValueError(f"features must be even and at least 4, got {features}")
    powers = np.arange(0, features, 2) / (features - 2)
    return Frequencies(rope_frequencies(features, base).inverse * factor**-powers)
