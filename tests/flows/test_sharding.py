"""Flows on eight devices: initialisation from data, and the train step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from laws.bijectors import DENSE
from laws.registry import jit_once

from genlib import flows, train

LAYER = flows.chain(
    flows.actnorm(),
    flows.coupling(flows.affine(), DENSE),
    flows.coupling(flows.affine(), DENSE, swap=True),
)
MODEL = flows.density(flows.chain(flows.scan_chain(LAYER, 2), flows.actnorm()))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(64, 4)) * [1, 2, 0.5, 3] + [0, 1, -1, 5]).astype("f")


@pytest.fixture(scope="module")
def params(batch):
    return jit_once(MODEL.init)(jax.random.key(0), batch)


def near(got, want, bound):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=bound), got, want)


def test_initialisation_sees_the_whole_sharded_batch(batch, params):
    mesh = train.make_mesh(data=4, fsdp=2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    got = jit_once(MODEL.init)(jax.random.key(0), jax.device_put(batch, rows))
    near(got, params, 1e-5)
    # One device's eighth of the batch has other statistics.
    alone = jit_once(MODEL.init)(jax.random.key(0), batch[:8])
    shifts = [tree["flow"]["1"]["shift"] for tree in (alone, params)]
    assert np.abs(shifts[0] - shifts[1]).max() > 0.01


def test_a_step_on_eight_devices_is_the_step_on_one(batch, params):
    def loss_fn(params, batch, key):
        loss = -MODEL.log_prob(params, batch)
        return loss.sum(), loss.size, {}

    step = train.make_step(loss_fn, optax.sgd(1e-2))
    state = train.init(jax.random.key(1), params, optax.sgd(1e-2))
    mesh = train.make_mesh(data=4, fsdp=2)
    alone, one = jit_once(step)(state, jnp.asarray(batch))
    parallel = train.jit_step(step, mesh, donate=False)
    spread, many = parallel(
        train.replicate(state, mesh), train.shard_batch(batch, mesh)
    )
    near(spread.params, alone.params, 1e-6)
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(many["grad_norm"], one["grad_norm"], rtol=1e-5)
