"""The nearest code: distances, ties, NaN, blocks, and devices that keep theirs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from laws.registry import jit_once

from genlib import quantize
from genlib.quantize import _nearest

CODES = np.random.default_rng(0).normal(size=(37, 3))
VECTORS = np.random.default_rng(1).normal(size=(5, 22, 3))

nearest = jit_once(quantize.nearest, static_argnames=("metric", "block"))


def distances(codes, z):
    return np.square(z[..., None, :].astype(float) - codes.astype(float)).sum(-1)


@jit_once
def by_blocks(codes, z):
    """All ways to cut [5, 22]: whole, shares of each row, single rows, and padded."""
    sizes = (None, 1000, 50, 10, 7, 1)
    return [quantize.nearest(codes, z, block=block) for block in sizes]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_agrees_with_distances_whatever_the_block(dtype):
    with jax.enable_x64(dtype == "float64"):
        codes, z = jnp.asarray(CODES, dtype), jnp.asarray(VECTORS, dtype)
        found = by_blocks(codes, z)
    exact = distances(np.asarray(codes), np.asarray(z)).argmin(-1)
    for indices in found:
        assert indices.dtype == jnp.int32
        np.testing.assert_array_equal(indices, exact)


@pytest.mark.parametrize("width", [1, 2, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_sizes(size, width):
    """Products of one or two numbers are compiled in other ways than those of many."""
    rng = np.random.default_rng(size)
    codes, z = (rng.normal(size=(n, width)).astype(np.float32) for n in (size, 40))
    indices = nearest(codes, z, block=16)
    exact = distances(codes, z)
    found = np.take_along_axis(exact, np.asarray(indices)[:, None], 1)[:, 0]
    np.testing.assert_allclose(found, exact.min(1), atol=1e-5)


def test_cosine_is_of_directions():
    lengths = np.geomspace(1e-20, 1e20, len(CODES))[:, None]
    indices = nearest(np.float32(CODES * lengths), np.float32(VECTORS), metric="cosine")
    unit = CODES / np.linalg.norm(CODES, axis=1, keepdims=True)
    np.testing.assert_array_equal(indices, (VECTORS @ unit.T).argmax(-1))


def test_zero_vectors_have_a_cosine():
    """A code of 0 is at right angles to all vectors, and a vector of 0 to all codes."""
    codes = np.float32([[0, -1], [0, 0], [0, 1], [0, 0]])
    z = np.float32([[0, 0], [1, 0], [0, 2], [0.3, -1], [3, -1e-3]])
    assert nearest(codes, z, metric="cosine").tolist() == [0, 0, 2, 0, 0]
    assert nearest(0 * codes, z, metric="cosine").tolist() == [0] * 5
    assert nearest(codes[[1, 2, 2, 2]], z, metric="cosine").tolist() == [0, 0, 1, 0, 0]


def test_the_first_of_equals():
    """T25, for equals of the same group, of other groups and of the padding."""
    codes = np.tile([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]], (25, 1))
    codes[:5] = 9.0  # so that equals start inside of a group
    codes[99] = 4.0
    z = np.array([[1.0, 0.0], [0.0, -0.5], [0.0, 0.0], [1.0, 1.0], [4.0, 4.0]])
    exact = distances(codes, z).argmin(1)
    assert exact.tolist() == [8, 7, 5, 6, 99]
    for block in (None, 2):
        np.testing.assert_array_equal(nearest(codes, z, block=block), exact)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_garbage_stays_in_its_row(metric):
    """T25; an argmin over NaN once returned 2147483647."""
    codes, z = np.float32(CODES), np.float32(VECTORS[0])
    clean = np.array(nearest(codes, z, metric=metric))
    z[3], z[7, 1], z[9] = np.nan, np.nan, [np.inf, -np.inf, 3e38]
    z[11] = 3e38
    found = np.array(nearest(codes, z, metric=metric))
    assert found[[3, 7]].tolist() == [0, 0]
    assert ((found >= 0) & (found < len(codes))).all()
    np.testing.assert_array_equal(
        *(np.delete(i, [3, 7, 9, 11]) for i in (found, clean))
    )


def test_nothing_in_nothing_out():
    assert quantize.nearest(CODES, jnp.zeros((0, 3))).shape == (0,)
    assert quantize.nearest(CODES, jnp.zeros((4, 0, 3)), block=1).shape == (4, 0)


def test_no_gradient():
    z = jnp.asarray(VECTORS, jnp.float32)
    total = lambda codes, z: quantize.nearest(codes, z, block=30).sum() * 1.0
    gradients = jit_once(jax.grad(total, (0, 1)))(jnp.asarray(CODES, jnp.float32), z)
    assert all((gradient == 0).all() for gradient in gradients)


def test_memory_is_bounded_by_the_block():
    """N x K scores are 67 MB; two blocks are 4.2 MB, and nothing else is large."""
    like = jax.ShapeDtypeStruct
    args = like((1024, 64), jnp.float32), like((16384, 64), jnp.float32)
    program = jax.jit(quantize.nearest).lower(*args).compile()
    held = program.memory_analysis().temp_size_in_bytes
    assert held < 2.2 * 4 * _nearest.CPU_SCORES


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((1024,), ("devices",)),
        ((24, 49), ("devices",)),  # padded: 49 is no multiple
        ((3, 8, 16), (None, "devices")),
    ],
)
def test_devices_keep_their_vectors(shape, spec):
    """No device sends vectors to another, and the result stays where they are."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec(*spec))
    whole = NamedSharding(mesh, PartitionSpec())
    z = np.random.default_rng(2).normal(size=(*shape, 3)).astype(np.float32)
    args = jax.device_put(np.float32(CODES), whole), jax.device_put(z, split)
    search = lambda codes, z: quantize.nearest(codes, z, block=64)
    program = jax.jit(search).lower(*args).compile()
    sent = re.findall("all-gather|all-to-all|collective-permute", program.as_text())
    assert not sent
    result = program(*args)
    assert result.sharding.is_equivalent_to(split, result.ndim)
    np.testing.assert_array_equal(result, distances(np.float32(CODES), z).argmin(-1))


def test_batches_of_codebooks_and_parts_of_devices():
    """As `vmap` and `shard_map` see it, on either side of the default block."""
    rng = np.random.default_rng(3)
    codes = rng.normal(size=(8, 1024, 2)).astype(np.float32)
    z = rng.normal(size=(8, 600, 2)).astype(np.float32)
    exact = [distances(*pair).argmin(-1) for pair in zip(codes, z, strict=True)]
    both = jit_once(jax.vmap(quantize.nearest))(codes, z)
    np.testing.assert_array_equal(both, exact)
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("devices")
    part = lambda codes, z: quantize.nearest(codes[0], z[0])[None]
    parts = jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jit_once(parts)(codes, z), exact)


@pytest.mark.parametrize(
    ("codes", "z", "settings", "message"),
    [
        (
            np.ones((4, 3)),
            np.ones((5, 2)),
            {},
            r"z must be \[..., D\] with D = 3, the width of the codes; it is \[5, 2\]",
        ),
        (np.ones((0, 3)), np.ones((5, 3)), {}, r"1 to 2\^31 - 1 codes; it has 0"),
        (np.ones(3), np.ones((5, 3)), {}, r"codes \[K, D\]; it is float32\[3\]"),
        (np.ones((4, 3), int), np.ones((5, 3)), {}, r"it is int32\[4, 3\]"),
        (np.ones((4, 3)), np.ones((5, 3), int), {}, r"z must be floating point"),
        (
            np.ones((4, 3)),
            np.ones((5, 3)),
            {"metric": "l1"},
            "metric must be one of .*; it is 'l1'",
        ),
        (
            np.ones((4, 3)),
            np.ones((5, 3)),
            {"block": 0},
            "block must be at least 1; it is 0",
        ),
    ],
)
def test_refuses(codes, z, settings, message):
    with pytest.raises(ValueError, match=message):
        quantize.nearest(codes, z, **settings)


def test_refuses_more_codes_than_int32_can_number():
    many = jax.ShapeDtypeStruct((2**31, 1), jnp.bfloat16)
    with pytest.raises(ValueError, match="it has 2147483648"):
        jax.eval_shape(lambda codes: quantize.nearest(codes, jnp.ones((1, 1))), many)
