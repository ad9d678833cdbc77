"""Codebooks on eight devices learn what they do on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from laws.registry import jit_once

from genlib import quantize

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
Z = np.random.default_rng(0).normal(size=(16, 6, 4)).astype("f")
MASK = np.random.default_rng(1).random((16, 6)) < 0.7
LAYER = quantize.ema_vq(12, decay=0.5, init="kmeans", steps=3, reset=0.8)
STEPS = 4


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def collectives(compiled):
    """Count the collectives of a program by name."""
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf" ({names})(?:-start)?\(", compiled.as_text())
    return {name: found.count(name) for name in set(found)}


def train(key, z, mask, axis_name=None):
    """Return parameters after a start and some steps, and what is found on the way."""
    params = LAYER.init(key, z, mask=mask, axis_name=axis_name)

    def step(params, key):
        out = LAYER.quantize(params, z, mask=mask, key=key, axis_name=axis_name)
        moved = LAYER.update(params, out.statistics)
        codes = LAYER.lookup(moved, jnp.arange(12))
        reset = jnp.abs(codes - out.statistics.candidates).max(-1) < 1e-5
        return moved, (out.perplexity, out.statistics, reset)

    return params, jax.lax.scan(step, params, jax.random.split(key, STEPS))


@pytest.mark.parametrize("masked", [False, True])
def test_start_averages_and_resets_are_those_of_one_device(masked, mesh, key):
    mask = MASK if masked else None
    one = jit_once(train)(key, Z, mask)
    assert 0 < one[1][1][2].mean() < 1  # some codes were reset

    rows = NamedSharding(mesh, ROWS)
    spread = jax.device_put((Z, mask), rows)
    parallel = jit_once(train)(key, *spread)
    mapped = jit_once(
        jax.shard_map(
            lambda key, z, mask: train(key, z, mask, "data"),
            mesh=mesh,
            in_specs=(WHOLE, ROWS, ROWS if masked else WHOLE),
            out_specs=WHOLE,
        )
    )(key, *spread)
    for many in (parallel, mapped):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            many,
            one,
        )


def test_an_update_is_one_all_reduce(mesh, key):
    params = LAYER.init(key, Z)

    def update(params, z, axis_name=None):
        out = LAYER.quantize(params, z, key=key, axis_name=axis_name)
        return LAYER.update(params, out.statistics)

    def averages(params, z):
        indices = jnp.zeros(z.shape[:-1], jnp.int32)
        batch = quantize.codebook_statistics(z, indices, 12)
        return quantize.ema_update(params["statistics"], batch)

    mapped = jax.shard_map(
        lambda params, z: update(params, z, "data"),
        mesh=mesh,
        in_specs=(WHOLE, ROWS),
        out_specs=WHOLE,
    )
    z = jax.device_put(Z, NamedSharding(mesh, ROWS))
    whole = NamedSharding(mesh, WHOLE)
    for function in (averages, update, mapped):
        # The passes that join collectives are optimisations.
        compiled = jax.jit(function, out_shardings=whole).lower(params, z).compile()
        assert collectives(compiled) == {"all-reduce": 1}
