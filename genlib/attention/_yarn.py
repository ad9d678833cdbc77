"""Frequencies that stretch only where a turn was not seen whole in training."""

import math

import numpy as np

from genlib.attention._frequencies import Frequencies, rope_frequencies
from genlib.types import check_positive


def yarn_frequencies(
    features: int,
    factor: float,
    train_length: int,
    base: float = 10_000.0,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    mscale: float = 1.0,
    mscale_all: float = 0.0,
    attention_factor: float | None = None,
) -> Frequencies:
    """Return the frequencies of YaRN, and its two factors.

        w_i (1 - r_i) + (w_i / s) r_i,   m(a) = 0.1 a ln(s) + 1  (1 for s <= 1)

    where the ramp r goes from 0 at the pair that turns `beta_fast` times within the
    training length to 1 at that which turns `beta_slow` times. Cosines and sines are
    multiplied by `m(mscale) / m(mscale_all)`, and the softmax scale by
    `m(mscale_all)**2`: the paper has all of the temperature in the first of them,
    DeepSeek's models all of it in the second (`mscale = mscale_all`).

    Args:
      features: d, even.
      factor: s, how many times longer than in training sequences are.
      train_length: positions in training.
      base: of `rope_frequencies`.
      beta_fast: turns.
      beta_slow: turns.
      mscale: of the factor on cosines and sines.
      mscale_all: of the factor on the softmax scale, which the other is divided by.
      attention_factor: the factor on cosines and sines itself, in place of theirs.

    Raises:
      ValueError: if `features` is not even and positive, if a number that must be
        positive is not, or if `base` is not above 1 or `beta_fast` not above
        `beta_slow`.

    Source: arXiv:2309.00071, section 3.4; the second factor, DeepSeek-V2.

    >>> yarn = yarn_frequencies(64, 40.0, 4096)
    >>> plain = rope_frequencies(64)
    >>> (plain.inverse / yarn.inverse)[[0, -1]].round(6).tolist()
    [1.0, 40.0]
    """
    check_positive("factor", factor)
    check_positive("train_length", train_length)
    if not base > 1:
        raise ValueError(f"base must be above 1, got {base}")
    if not beta_fast > beta_slow > 0:
        raise ValueError(
            "beta_fast must be above beta_slow, which must be positive; got "
            f"{beta_fast} and {beta_slow}"
        )
    inverse = rope_frequencies(features, base).inverse

    def pair(turns: float) -> float:
        period = train_length / (2 * math.pi * turns)
        return features * math.log(period) / (2 * math.log(base))

    low = max(math.floor(pair(beta_fast)), 0)
    high = min(math.ceil(pair(beta_slow)), features - 1)
    # A width of 0 is a step: what the reference makes of it by adding 0.001 as well.
    width = max(high - low, 0.001)
    ramp = np.clip((np.arange(features // 2) - low) / width, 0.0, 1.0)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if attention_factor is None:
        attention_factor = magnitude(mscale) / magnitude(mscale_all)
    return Frequencies(
        inverse * (1 - ramp) + inverse / factor * ramp,
        attention_factor,
        magnitude(mscale_all) ** 2,
    )


def llama3_frequencies(
    features: int,
    factor: float = 8.0,
    train_length: int = 8192,
    base: float = 500_000.0,
    *,
    low: float = 1.0,
    high: float = 4.0,
) -> Frequencies:
    """Return the frequencies of Llama 3.1.

    A pair that turns more than `high` times within the training length keeps its
    frequency, one that turns less than `low` times has it divided by `factor`, and
    between them

        w (g + (1 - g) / s),   g = (turns - low) / (high - low)

    Args:
      features: d, even.
      factor: s, how many times longer than in training sequences are.
      train_length: positions in training.
      base: of `rope_frequencies`.
      low: turns.
      high: turns.

    Raises:
      ValueError: if `features` is not even and positive, if a number that must be
        positive is not, or if `high` is not above `low`.

    Source: Llama 3.1, arXiv:2407.21783.

    >>> llama3 = llama3_frequencies(128)
    >>> (llama3.inverse / rope_frequencies(128, 5e5).inverse)[[0, -1]].tolist()
    [1.0, 0.125]
    """
    check_positive("factor", factor)
    check_positive("train_length", train_length)
    if not high > low > 0:
        raise ValueError(
            f"high must be above low, which must be positive; got {high} and {low}"
        )
    inverse = rope_frequencies(features, base).inverse
    turns = train_length * inverse / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return Frequencies(inverse * (kept + (1 - kept) / factor))
