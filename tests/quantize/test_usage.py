"""Histograms of indices: edge cases, and batches split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from laws.registry import jit_once

from genlib import quantize, train


def test_golden_batch():
    counts = quantize.histogram(np.array([0, 1, 1, 2, 2, 0]), 4)
    assert counts.tolist() == [2, 2, 2, 0]
    assert counts.dtype == jnp.float32
    np.testing.assert_allclose(quantize.perplexity(counts), 3.0, rtol=1e-6)
    assert quantize.usage(counts).item() == 0.75


def test_nothing_counted_is_no_code():
    for indices in (np.full(3, -1), np.zeros(0, int)):
        counts = quantize.histogram(indices, 4)
        assert counts.tolist() == [0] * 4
        assert quantize.perplexity(counts).item() == 0
        assert quantize.usage(counts).item() == 0


def test_one_code_is_used_evenly():
    counts = quantize.histogram(np.zeros((2, 3), int), 1)
    assert counts.tolist() == [6]
    assert quantize.perplexity(counts).item() == quantize.usage(counts).item() == 1


def test_masked_indices_and_those_of_no_code_are_not_counted():
    indices = np.array([[0, 1], [-1, 2]])
    mask = np.array([[True, False], [True, True]])
    assert quantize.histogram(indices, 3, mask=mask).tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_narrow_indices_count_in_wide_codebooks(dtype):
    # 300 is no int8, and -1 is not 255.
    counts = quantize.histogram(np.array([0, 100, 100], dtype), 300)
    assert counts[jnp.array([0, 100, 255])].tolist() == [1, 2, 0]
    assert counts.sum() == 3


def test_traced_indices_out_of_range_are_not_counted():
    counts = jit_once(quantize.histogram, static_argnums=1)(np.array([-7, 0, 3, 9]), 3)
    assert counts.tolist() == [1, 0, 0]


def test_counts_do_not_stop_where_float32_does():
    indices = np.zeros(2**24 + 2, np.int8)
    counts = jit_once(quantize.histogram, static_argnums=1)(indices, 1)
    assert int(counts[0]) == 2**24 + 2
    assert np.float32(2**24) + np.float32(1) == 2**24  # as ones would add up


def test_histograms_of_several_codebooks():
    counts = jnp.array([[4.0, 0, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(quantize.perplexity(counts), [1, 2, 0], rtol=1e-6)
    np.testing.assert_allclose(quantize.usage(counts), [1 / 3, 2 / 3, 0], rtol=1e-6)
    # Counts far apart in size do not lose the entropy of the small.
    uneven = jnp.array([1e30, 1e30, 1.0])
    np.testing.assert_allclose(quantize.perplexity(uneven), 2, rtol=1e-6)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="indices must be integers; they are float"):
        quantize.histogram(np.ones(2), 3)
    with pytest.raises(ValueError, match=r"within 0 .. 2, or -1 .*; one is 3"):
        quantize.histogram(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="size must be at least 1; it is 0"):
        quantize.histogram(np.zeros(0, int), 0)
    with pytest.raises(ValueError, match=r"mask must be bool\[2, 3\]"):
        quantize.histogram(np.zeros((2, 3), int), 3, mask=np.ones((2, 1), bool))


def test_devices_count_together():
    indices = np.random.default_rng(0).integers(-1, 7, 64).astype(np.int32)
    mask = np.arange(64) % 5 > 0
    want = quantize.histogram(indices, 7, mask=mask)
    rows = PartitionSpec(("data", "fsdp"))
    mesh = train.make_mesh(data=4, fsdp=2)
    split = jax.device_put((indices, mask), NamedSharding(mesh, rows))
    count = lambda indices, mask, axes=None: quantize.histogram(
        indices, 7, mask=mask, axis_name=axes
    )
    mapped = jax.shard_map(
        lambda indices, mask: count(indices, mask, ("data", "fsdp")),
        mesh=mesh,
        in_specs=rows,
        out_specs=PartitionSpec(),
    )
    for way in (count, mapped):
        np.testing.assert_array_equal(jit_once(way)(*split), want)
