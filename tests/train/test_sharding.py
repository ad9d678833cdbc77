"""Data parallelism on eight CPU devices against the same step on one."""

import jax
import numpy as np
import optax
import pytest

from genlib import train
from tests.train import toy
from tests.train.toy import assert_close, assert_identical

TX = optax.adam(1e-2)


@pytest.fixture
def mesh():
    assert jax.device_count("cpu") == 8
    return train.make_mesh(8, devices=jax.devices("cpu"))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("loss_fn", [toy.loss_fn, toy.noisy_loss_fn])
def test_data_parallel_equals_one_device(key, mesh, loss_fn, accumulate):
    step = train.make_step(loss_fn, TX, accumulate=accumulate, clip_norm=1.0)
    start = train.init(key, toy.params(), TX)
    one, many = start, train.replicate(start, mesh)
    one_step, many_step = jax.jit(step), train.jit_step(step, mesh)
    compiled = []
    for index in range(3):
        batch = toy.batch(index)
        one, a = one_step(one, batch)
        with toy.compilations() as events:
            many, b = many_step(many, train.shard_batch(batch, mesh))
        compiled.append(len(events) > 0)
        np.testing.assert_allclose(b["grad_norm"] / a["grad_norm"], 1, atol=1e-5)
    assert_close((many.params, many.ema), (one.params, one.ema))
    assert_close(b, a, 1e-5)
    assert compiled == [True, False, False]
    assert all(x.is_fully_replicated for x in jax.tree.leaves(many))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_rows_stay_on_their_devices(key, mesh, accumulate):
    """Only sums cross devices, whatever the number of microbatches."""
    step = train.make_step(toy.loss_fn, TX, accumulate=accumulate)
    state = train.replicate(train.init(key, toy.params(), TX), mesh)
    batch = train.shard_batch(toy.batch(0), mesh)
    text = train.jit_step(step, mesh).lower(state, batch).compile().as_text()
    assert "all-reduce" in text
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in text


def test_no_transfer_is_implicit_and_the_state_is_donated(key, mesh):
    step = train.make_step(toy.noisy_loss_fn, TX, accumulate=4, clip_norm=1.0)
    start = train.init(key, toy.params(), TX)
    state = first = train.replicate(start, mesh)
    step = train.jit_step(step, mesh)
    with jax.transfer_guard("disallow"):
        for index in range(3):
            state, _ = step(state, train.shard_batch(toy.batch(index), mesh))
    assert all(x.is_deleted() for x in jax.tree.leaves((first.params, first.ema)))
    assert_identical(start, train.init(key, toy.params(), TX))


def test_donation_can_be_declined(key, mesh):
    state = train.replicate(train.init(key, toy.params(), TX), mesh)
    step = train.jit_step(train.make_step(toy.loss_fn, TX), mesh, donate=False)
    step(state, train.shard_batch(toy.batch(0), mesh))
    assert_identical(state, train.init(key, toy.params(), TX))


def test_shard_batch_splits_rows_in_order(mesh):
    batch = toy.batch(0)
    split = train.shard_batch(batch, mesh)
    for name, leaf in split.items():
        np.testing.assert_array_equal(leaf, batch[name])
        assert [s.data.shape[0] for s in leaf.addressable_shards] == [4] * 8
    again = train.shard_batch(split, mesh)
    assert_identical(again, split)


@pytest.mark.parametrize("rows", [(), (6,), (9, 2)])
@pytest.mark.parametrize("kind", [np.zeros, jax.numpy.zeros])
def test_shard_batch_wants_rows_that_divide(mesh, rows, kind):
    with pytest.raises(ValueError, match="batch/x must have a leading axis"):
        train.shard_batch({"x": kind(rows)}, mesh)


def test_mesh_axes_are_auto_and_take_given_devices():
    mesh = train.make_mesh(devices=jax.devices()[:2])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 4


@pytest.mark.parametrize("data", [3, 0, 16])
def test_mesh_of_another_size_says_what_to_do(data):
    with pytest.raises(ValueError, match=r"sizes must"):
        train.make_mesh(data, devices=jax.devices("cpu"))
