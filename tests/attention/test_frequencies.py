"""Frequencies of rotary positions against other libraries' numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import (
    dynamic_ntk_frequencies,
    linear_frequencies,
    llama3_frequencies,
    ntk_frequencies,
    rope_frequencies,
    yarn_frequencies,
)

PLAIN = rope_frequencies(64).inverse


def test_ntk_scales_the_base() -> None:
    inverse = ntk_frequencies(64, 4.0).inverse
    assert inverse[1] ** -32 == pytest.approx(41829.366, abs=1e-3)
    assert inverse[0] == PLAIN[0]
    np.testing.assert_allclose(PLAIN[-1] / inverse[-1], 4.0, rtol=1e-14)


def test_ntk_of_transformers() -> None:
    inverse = ntk_frequencies(16, 4.0).inverse
    assert inverse[1] ** -8 == pytest.approx(48760.54616818, rel=1e-12)
    assert inverse[1] == pytest.approx(0.259412817, abs=1e-9)
    linear = linear_frequencies(16, 4.0).inverse
    np.testing.assert_allclose(inverse[-1], linear[-1], rtol=1e-14)
    assert inverse[-1] == pytest.approx(7.90569e-05, abs=1e-10)


def test_dynamic_ntk_follows_the_length() -> None:
    fixed = lambda length: dynamic_ntk_frequencies(16, length, 2048, 4.0).inverse
    assert fixed(8192)[1] == pytest.approx(0.2192124724, abs=1e-7)
    assert (fixed(100) == rope_frequencies(16).inverse).all()
    lengths = jnp.array([100, 2048, 8192])
    traced = jit_once(lambda lengths: jnp.stack([fixed(n) for n in lengths]))(lengths)
    exact = np.stack([fixed(int(n)) for n in lengths])
    np.testing.assert_allclose(traced, exact, rtol=1e-6)


def test_yarn_blends_between_pairs_10_and_23() -> None:
    yarn = yarn_frequencies(64, 40.0, 4096)
    ratio = yarn.inverse / PLAIN
    assert (ratio[:11] == 1).all()
    assert (ratio[11:] < 1).all()
    np.testing.assert_allclose(ratio[23:], 1 / 40, rtol=1e-14)
    assert (ratio[:23] > 1 / 40 + 1e-3).all()
    assert yarn.factor == pytest.approx(1.368888, abs=1e-6)
    assert yarn.score_factor == 1


def test_yarn_of_transformers() -> None:
    yarn = yarn_frequencies(16, 4.0, 512)
    expected = [1, 0.25693506, 0.0625, 0.0138349654, 0.0024999999]
    np.testing.assert_allclose(yarn.inverse[:5], expected, rtol=1e-7)
    assert yarn.factor == pytest.approx(1.138629436, abs=1e-9)


@pytest.mark.parametrize(("mscale", "score"), [(0.707, 1.5896), (1.0, 1.8739)])
def test_yarn_of_deepseek_has_two_factors(mscale: float, score: float) -> None:
    make = lambda **options: yarn_frequencies(
        64, 40.0, 4096, mscale=mscale, mscale_all=mscale, **options
    )
    assert make().factor == 1
    assert make().score_factor == pytest.approx(score, abs=5e-5)
    given = make(attention_factor=1.25)
    assert given.factor == 1.25
    assert given.score_factor == make().score_factor


def test_yarn_of_nothing_is_plain() -> None:
    yarn = yarn_frequencies(64, 1.0, 4096, mscale_all=1.0)
    np.testing.assert_allclose(yarn.inverse, PLAIN, rtol=1e-14)
    assert (yarn.factor, yarn.score_factor) == (1, 1)
    # Both ends of the ramp at one pair.
    step = yarn_frequencies(2, 2.0, 7, beta_fast=1.2)
    assert np.isfinite(step.inverse).all()


def test_llama3_of_transformers() -> None:
    inverse = llama3_frequencies(16, 8.0, 512, 1e4).inverse
    assert inverse[3] == pytest.approx(0.0184966773, rel=2e-7)  # theirs is float32
    assert inverse[4] == pytest.approx(0.00125, rel=1e-14)
    assert (inverse[:3] == rope_frequencies(16).inverse[:3]).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rope_frequencies(7), "features must be even and positive, got 7"),
        (lambda: rope_frequencies(8, 0.0), "base must be positive; it is 0.0"),
        (lambda: linear_frequencies(8, -1.0), "factor must be positive; it is -1.0"),
        (lambda: ntk_frequencies(2, 4.0), "features must be even and at least 4"),
        (lambda: dynamic_ntk_frequencies(8, 9, 0), "train_length must be positive"),
        (lambda: yarn_frequencies(8, 4.0, 512, 1.0), "base must be above 1"),
        (
            lambda: yarn_frequencies(8, 4.0, 512, beta_fast=1.0),
            "beta_fast must be above beta_slow",
        ),
        (lambda: llama3_frequencies(8, low=4.0), "high must be above low"),
    ],
)
def test_errors_name_the_argument(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
