"""Rotary positions: exact angles, turned pairs, and what depends on distances alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.registry import jit_once

from genlib.attention import (
    dynamic_ntk_frequencies,
    grid_positions,
    rope_frequencies,
    rotate,
    rotate_axial,
    sinusoidal_positions,
)
from genlib.attention._angles import angles

FREQUENCIES = rope_frequencies(64)
INTERLEAVED = np.arange(64).reshape(2, 32).T.ravel()  # pairs (i, i + 32) side by side


def unit(rows: int, features: int = 64) -> np.ndarray:
    x = np.random.default_rng(rows).normal(size=(1, rows, 2, features))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def turned(x: np.ndarray, positions: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Return what complex numbers make of it, in float64, halves as pairs."""
    r = len(inverse)
    pairs = x[..., :r] + 1j * x[..., r : 2 * r]
    pairs = pairs * np.exp(1j * positions[..., None] * inverse)[..., None, :]
    return np.concatenate([pairs.real, pairs.imag, x[..., 2 * r :]], -1)


turn_at = jit_once(lambda x, positions: rotate(x, positions, FREQUENCIES))
angles_at = jit_once(lambda p: angles(p, FREQUENCIES.inverse, jnp.float32))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=4, max_size=4))
def test_angles_are_exact_at_all_positions(positions: list[int]) -> None:
    found = np.asarray(angles_at(jnp.array(positions, jnp.int32)), np.float64)
    # 2**31 radians in longdouble are exact to 1e-10.
    exact = np.array(positions, np.longdouble)[:, None] * FREQUENCIES.inverse
    np.testing.assert_allclose(np.cos(found), np.cos(exact).astype(float), atol=3e-7)
    np.testing.assert_allclose(np.sin(found), np.sin(exact).astype(float), atol=3e-7)


def test_scores_depend_on_the_distance_alone() -> None:
    x = unit(3)
    local = np.array([0, 7, 1000])
    exact = turned(x, local[None], FREQUENCIES.inverse)
    products = lambda y: np.einsum("btnd,bsnd->bnts", y, y)
    for offset in (0, 1000, 10**6, 2**31 - 1001):
        y = np.asarray(turn_at(x.astype(np.float32), local + offset), np.float64)
        np.testing.assert_allclose(products(y), products(exact), atol=2e-7)
        np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 1.0, atol=1e-6)
    # The angle at 1001 is wrong by 2.3 if it is computed in bfloat16; here bfloat16
    # inputs are the only error.
    half = turn_at(jnp.asarray(x, jnp.bfloat16), local + 1)
    exact = turned(x, local[None] + 1, FREQUENCIES.inverse)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float64), exact, atol=4e-3)


def test_position_0_and_features_that_do_not_turn_stay_as_they_are() -> None:
    x = jnp.asarray(unit(3, 70), jnp.bfloat16)
    y = turn_at(x, jnp.array([0, 5, 9]))
    assert (y[:, 0] == x[:, 0]).all()
    assert (y[..., 64:] == x[..., 64:]).all()
    assert not (y[:, 1:, :, :64] == x[:, 1:, :, :64]).all(-1).any()


def test_layouts_are_permutations_of_each_other() -> None:
    x, positions = unit(3).astype(np.float32), jnp.array([[3, 1, 4]])

    def both(x):
        side = rotate(x[..., INTERLEAVED], positions, FREQUENCIES, layout="interleaved")
        return rotate(x, positions, FREQUENCIES)[..., INTERLEAVED], side

    np.testing.assert_array_equal(*jit_once(both)(x))


def test_axes_turn_pairs_of_their_own() -> None:
    x, places = unit(6).astype(np.float32), grid_positions(2, 3)
    rows, columns, alike = (rope_frequencies(n) for n in (40, 16, 32))

    def turns(x):
        side = lambda f, *args: f(*args, layout="interleaved")
        by_rows = side(rotate, x[..., :40], places[:, 0], rows)
        by_columns = side(rotate, x[..., 40:56], places[:, 1], columns)
        found = side(rotate_axial, x, places, [rows, columns])
        yield found, jnp.concatenate([by_rows, by_columns, x[..., 56:]], -1)
        one = rotate_axial(x, places, alike)[..., INTERLEAVED]
        yield one, side(rotate_axial, x[..., INTERLEAVED], places, alike)

    for found, expected in jit_once(lambda x: list(turns(x)))(x):
        np.testing.assert_allclose(found, expected, atol=1e-7)
    assert (places == [*np.ndindex(2, 3)]).all()


def test_traced_positions_frequencies_and_gradients() -> None:
    x, positions = unit(3).astype(np.float32), jnp.array([[5, 100, 3000]])

    def both(x, positions, length):
        make = lambda length: dynamic_ntk_frequencies(64, length, 512)
        y = rotate(x, positions, make(length))
        fixed = rotate(x, positions, make(2048))
        again = rotate(x, positions, FREQUENCIES)
        return (
            y,
            fixed,
            jax.vjp(lambda x: rotate(x, positions, FREQUENCIES), x)[1](again),
        )

    y, fixed, back = jit_once(both)(x, positions, 2048)
    # Frequencies in float32 are 1e-7 of them wrong.
    np.testing.assert_allclose(y, fixed, atol=3e-4)
    np.testing.assert_allclose(back[0], x, atol=1e-6)  # the inverse is the transpose


def test_float64(x64) -> None:
    x, positions = unit(3), np.array([0, 7, 10**6])
    y = rotate(jnp.asarray(x), positions, FREQUENCIES)
    assert y.dtype == jnp.float64
    exact = turned(x, positions[None], FREQUENCIES.inverse)
    np.testing.assert_allclose(y, exact, atol=1e-14)
    wide = sinusoidal_positions(jnp.array([10**6]), 64)
    np.testing.assert_allclose(
        wide[0, 1::2], np.cos(10**6 * FREQUENCIES.inverse), atol=1e-9
    )


def test_sinusoidal_positions_are_the_papers() -> None:
    positions = np.array([[0, 1], [50, 10**6]])
    table = sinusoidal_positions(positions, 64)
    assert table.dtype == jnp.float32
    phase = positions[..., None] * FREQUENCIES.inverse
    np.testing.assert_allclose(table[..., ::2], np.sin(phase), atol=3e-7)
    np.testing.assert_allclose(table[..., 1::2], np.cos(phase), atol=3e-7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.ones((3, 2, 4))}, r"x must be \[B, T, heads, features\]"),
        ({"positions": np.arange(2)}, r"positions must be \[3\] or \[2, 3\], got"),
        ({"positions": np.ones((3, 3), int)}, r"positions must be \[3\] or \[2, 3\]"),
        ({"positions": np.ones(3)}, "positions must be integers, got float"),
        ({"frequencies": rope_frequencies(6)}, "of at most 2 pairs of features, got 3"),
        ({"layout": "halves"}, "layout must be"),
    ],
)
def test_errors_name_the_argument(change: dict, words: str) -> None:
    call = {"x": np.ones((2, 3, 1, 4)), "positions": np.arange(3)}
    call |= {"frequencies": rope_frequencies(4)} | change
    with pytest.raises(ValueError, match=words):
        rotate(**call)


def test_errors_of_axes() -> None:
    x, two = jnp.ones((1, 6, 1, 8)), rope_frequencies(4)
    with pytest.raises(ValueError, match="one for each of 2 axes, got 1"):
        rotate_axial(x, grid_positions(2, 3), [two])
    with pytest.raises(ValueError, match=r"positions must be \[6, axes\]"):
        rotate_axial(x, jnp.arange(6), two)
