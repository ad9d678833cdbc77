"""Time embeddings, label embeddings and label dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from genlib import nn
from tests.nn import oracles

TIMES = [0.0, 1e-4, 0.1, 0.5, 0.999, 1.0, -1.5]


def test_timestep_embedding_in_float64(x64):
    result = nn.timestep_embedding(jnp.array(TIMES), 32)
    assert result.dtype == jnp.float64
    np.testing.assert_allclose(result, oracles.waves(TIMES, 32), rtol=0, atol=1e-12)


def test_timestep_embedding_in_float32():
    times = np.float32(TIMES)
    result = nn.timestep_embedding(jnp.array(times), 32)
    # A phase of 1500 is known to half a unit in the last place per operation, 6e-5.
    np.testing.assert_allclose(result, oracles.waves(times, 32), rtol=0, atol=3e-4)


def test_timestep_embedding_settings(x64):
    result = nn.timestep_embedding(jnp.array(3.0), 4, max_period=100.0, time_scale=2.0)
    expected = [np.cos(6.0), np.cos(0.6), np.sin(6.0), np.sin(0.6)]
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_timestep_embedding_computes_in_float32(dtype):
    t = jnp.array([0, 1, 3], dtype)
    result = nn.timestep_embedding(t, 8)
    assert result.dtype == jnp.float32
    expected = nn.timestep_embedding(t.astype(jnp.float32), 8)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_timestep_embedding_takes_any_shape(shape):
    assert nn.timestep_embedding(jnp.zeros(shape), 6).shape == (*shape, 6)


@pytest.mark.parametrize("features", [0, 3, -2])
def test_timestep_embedding_refuses(features):
    with pytest.raises(ValueError, match=f"features must be even .* got {features}"):
        nn.timestep_embedding(0.5, features)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 2)])
def test_position_embedding(height, width):
    np.testing.assert_allclose(
        nn.position_embedding(height, width, 16),
        oracles.positions(height, width, 16),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("features", [0, 2, 6])
def test_position_embedding_refuses(features):
    with pytest.raises(ValueError, match=f"multiple of 4, got {features}"):
        nn.position_embedding(2, 2, features)


def test_label_embedding_looks_up_rows():
    embed = nn.LabelEmbedding(3, 4, rngs=nnx.Rngs(0))
    table = embed.table[...]
    assert table.shape == (4, 4)
    np.testing.assert_array_equal(
        embed(jnp.array([2, 3, 0])), table[jnp.array([2, 3, 0])]
    )
    traced = jax.jit(embed)(jnp.array([3, 4, -1]))
    np.testing.assert_array_equal(traced[0], table[3])
    assert jnp.isnan(traced[1:]).all()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (jnp.array([0, 11]), "labels must be in 0..10 .* got 11"),
        (jnp.array([-1, 3]), "labels must be in 0..10 .* got -1"),
        (jnp.array([0.0]), "labels must be integers .* float32"),
        (jnp.array([True]), "labels must be integers .* bool"),
        (jnp.array(3), r"labels must be integers of shape \[B\], .* \(\)"),
        (jnp.array([[3]]), r"labels must be integers of shape \[B\], .* \(1, 1\)"),
    ],
)
def test_check_labels_refuses(labels, match):
    with pytest.raises(ValueError, match=match):
        nn.check_labels(labels, 10)


def test_check_labels_refuses_a_dtype_without_room_for_the_null_class():
    labels = jnp.array([255], jnp.uint8)
    nn.check_labels(labels, 255)
    with pytest.raises(ValueError, match="holds 256, got uint8"):
        nn.check_labels(labels, 256)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
@pytest.mark.parametrize(("probability", "expected"), [(0.0, 2), (1.0, 10)])
def test_drop_labels_is_exact_at_both_ends(key, dtype, probability, expected):
    labels = jnp.full(10_000, 2, dtype)
    for p in (probability, jnp.float32(probability)):
        result = nn.drop_labels(key, labels, p, 10)
        assert result.dtype == dtype
        assert (result == expected).all()


drop = jax.jit(functools.partial(nn.drop_labels, num_classes=10))


@given(seed=st.integers(0, 2**31 - 1), probability=st.floats(0.01, 0.99))
def test_drop_labels_frequency(seed, probability):
    count = 20_000
    labels = np.arange(count) % 10
    result = np.asarray(drop(jax.random.key(seed), labels, probability))
    dropped = result == 10
    np.testing.assert_array_equal(result[~dropped], labels[~dropped])
    deviation = np.sqrt(count * probability * (1 - probability))
    assert abs(dropped.sum() - count * probability) < 5 * deviation


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_drop_labels_refuses(key, probability):
    with pytest.raises(ValueError, match=f"probability must be .* got {probability}"):
        nn.drop_labels(key, jnp.array([1]), probability, 10)


@pytest.fixture(scope="module")
def conditioning():
    return nn.Conditioning(8, 3, rngs=nnx.Rngs(0))


def test_conditioning_is_the_sum_of_its_parts(conditioning):
    t, labels = jnp.array([0.1, 0.7]), jnp.array([2, 3])
    total = conditioning.time(t) + conditioning.label(labels)
    result = conditioning(t, labels, 2)
    np.testing.assert_array_equal(result, jax.nn.silu(total))


def test_no_labels_are_null_labels(conditioning):
    t = jnp.array([0.1, 0.7])
    null = conditioning(t, jnp.full(2, 3), 2)
    np.testing.assert_array_equal(conditioning(t, None, 2), null)
    assert jnp.abs(null - conditioning(t, jnp.array([0, 1]), 2)).min() > 0


def test_scalar_time_is_everyones_time(conditioning):
    labels = jnp.array([0, 1])
    expected = conditioning(jnp.full(2, 0.25), labels, 2)
    for t in (0.25, np.float64(0.25), jnp.array(0.25)):
        np.testing.assert_array_equal(conditioning(t, labels, 2), expected)
