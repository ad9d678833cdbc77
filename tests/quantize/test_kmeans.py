"""Codebooks fitted to a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import quantize

BLOBS = np.repeat([[0.0, 0], [10, 0], [0, 10]], 20, 0) + np.random.default_rng(
    0
).normal(size=(60, 2))


def test_float64_steps_are_those_of_the_definition(key, x64):
    z = np.random.default_rng(1).normal(size=(50, 3))
    start = np.asarray(quantize.kmeans(key, z, 5, steps=0))
    assert start.dtype == np.float64
    assert len({tuple(row) for row in start} & {tuple(row) for row in z}) == 5
    codes = start
    for _ in range(3):
        nearest = np.square(z[:, None] - codes).sum(-1).argmin(-1)
        codes = np.stack([z[nearest == k].mean(0) for k in range(5)])
    got = quantize.kmeans(key, z.reshape(10, 5, 3), 5, steps=3)
    np.testing.assert_allclose(got, codes, rtol=1e-12)


def test_masked_vectors_are_neither_starts_nor_members(key):
    z = np.full((90, 2), np.nan, "f")
    mask = np.arange(90) % 3 != 1
    z[mask] = BLOBS
    padded, traced = (
        function(key, z, mask)
        for function in (
            lambda key, z, mask: quantize.kmeans(key, z, 6, mask=mask),
            jit_once(lambda key, z, mask: quantize.kmeans(key, z, 6, mask=mask)),
        )
    )
    alone = quantize.kmeans(key, BLOBS.astype("f"), 6)
    np.testing.assert_allclose(padded, alone, rtol=1e-5)
    np.testing.assert_allclose(traced, alone, rtol=1e-5)


def test_equal_vectors_leave_codes_without_any_where_they_are(key):
    z = jnp.concatenate([jnp.zeros((8, 2)), jnp.ones((8, 2))])
    start, codes = (quantize.kmeans(key, z, 4, steps=steps) for steps in (0, 5))
    assert set(start[:, 0].tolist()) == {0, 1}
    np.testing.assert_array_equal(codes, start)


def test_directions_have_length_1(key):
    z = jnp.float32(BLOBS + 0.3) * 1e3
    codes, scaled = (quantize.kmeans(key, x, 4, metric="cosine") for x in (z, z * 64))
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(codes, scaled)


def test_fewer_vectors_than_codes_are_refused(key):
    z = jnp.ones((2, 3, 4))
    message = "z must have at least size = 7 vectors that are not masked.*it has 6"
    with pytest.raises(ValueError, match=message):
        quantize.kmeans(key, z, 7)
    mask = np.array([[True, False, True], [False, False, True]])
    with pytest.raises(ValueError, match=r"size = 4.*it has 3"):
        quantize.kmeans(key, z, 4, mask=mask)
    with pytest.raises(ValueError, match="size must be at least 1; it is 0"):
        quantize.kmeans(key, z, 0)
    with pytest.raises(ValueError, match="key must be a typed key"):
        quantize.kmeans(jax.random.PRNGKey(0), z, 2)
    with pytest.raises(ValueError, match="steps must not be negative"):
        quantize.kmeans(key, z, 2, steps=-1)
    with pytest.raises(ValueError, match="metric must be one of"):
        quantize.kmeans(key, z, 2, steps=0, metric="manhattan")
    # A traced mask cannot be counted: some codes start from the same vector.
    few = jit_once(lambda mask: quantize.kmeans(key, z, 4, mask=mask))(mask)
    np.testing.assert_array_equal(few, 1.0)


def test_no_gradient_flows_through_the_fit(key):
    gradient = jax.grad(lambda z: quantize.kmeans(key, z, 3, steps=1).sum())
    np.testing.assert_array_equal(jit_once(gradient)(jnp.float32(BLOBS)), 0)
