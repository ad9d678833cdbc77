"""Bits per dimension against counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genlib import likelihood


@pytest.mark.parametrize(
    ("bin_width", "bits"), [(2 / 256, 7.0), (1 / 256, 8.0), (1.0, 0.0), (1 / 32, 5.0)]
)
def test_the_offset_is_exact(bin_width, bits):
    """[-1, 1]-scaled 8-bit data: + 7."""
    got = likelihood.bits_per_dim(jnp.zeros(3), (4, 4, 3), bin_width=bin_width)
    assert got.tolist() == [bits] * 3
    traced = jax.jit(
        lambda w: likelihood.bits_per_dim(jnp.zeros(3), (4, 4, 3), bin_width=w)
    )
    np.testing.assert_allclose(traced(bin_width), bits, rtol=1e-6)


def test_uniform_data_needs_all_bits():
    """The uniform density on [-1, 1]^D: 8 bits for each of 256 levels."""
    shape = (8, 8, 3)
    log_prob = jnp.full(2, -np.prod(shape) * np.log(2.0))
    got = likelihood.bits_per_dim(log_prob, shape, bin_width=2 / 256)
    np.testing.assert_allclose(got, 8.0, rtol=1e-6)


def test_the_right_density_of_dequantized_data_gives_the_entropy(key):
    """A density that is constant on each bin has no gap."""
    chance = np.array([0.5, 0.25, 0.125, 0.125])
    x = jax.random.categorical(key, jnp.log(chance), shape=(20_000, 1))
    y = likelihood.dequantize(key, x, levels=4, low=0.0, high=2.0)
    log_prob = jnp.log(jnp.asarray(chance) / 0.5)[jnp.floor(y[:, 0] / 0.5).astype(int)]
    got = likelihood.bits_per_dim(log_prob, (1,), bin_width=0.5).mean()
    np.testing.assert_allclose(got, 1.75, atol=0.02)


def test_dequantized_levels_fill_their_bins(key):
    x = jnp.arange(256, dtype=jnp.uint8).reshape(16, 16)
    y = likelihood.dequantize(key, x)
    assert y.dtype == jnp.float32
    assert y.shape == x.shape
    np.testing.assert_array_equal(jnp.floor((y + 1) * 128), x)
    inside = (y + 1) * 128 - x
    assert 0 <= inside.min() < 0.05 < 0.95 < inside.max() < 1
    np.testing.assert_allclose(inside.mean(), 0.5, atol=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key: likelihood.bits_per_dim(jnp.ones(1), (0, 3)),
            r"shape must .*0, 3",
        ),
        (
            lambda key: likelihood.bits_per_dim(jnp.ones(1), (3,), bin_width=0.0),
            r"bin_width must be positive; it is 0\.0",
        ),
        (lambda key: likelihood.dequantize(key, jnp.ones(2)), r"integers.* float32"),
        (
            lambda key: likelihood.dequantize(key, jnp.array([3, 256])),
            r"within \[0, 256\); it holds 256",
        ),
        (
            lambda key: likelihood.dequantize(key, jnp.array([3, -1])),
            r"within \[0, 256\); it holds -1",
        ),
    ],
)
def test_bad_arguments(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(key)


@pytest.mark.parametrize("levels", [17, 256, 65536])
def test_dequantized_levels_stay_in_their_bins(levels, key):
    x = jnp.full(100_000, levels - 1)
    y = likelihood.dequantize(key, x, levels=levels)
    assert y.max() < 1
    assert y.min() >= 1 - 2 / levels * (1 + 1e-2)


def test_small_integers_do_not_wrap_around(key):
    x = jnp.array([0, 100], jnp.int8)
    assert likelihood.dequantize(key, x).shape == (2,)
    with pytest.raises(ValueError, match="it holds -1"):
        likelihood.dequantize(key, jnp.array([-1], jnp.int8))
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        likelihood.dequantize(key, x, dtype=jnp.bfloat16)
