"""Normalisation by the first batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from laws.registry import jit_once

from genlib import flows

X = np.random.default_rng(0).standard_normal((64, 4)) * [1, 2, 0.5, 3] + [0, 1, -1, 5]


@pytest.mark.parametrize(
    ("ddof", "log_det", "std"), [(1, -1.1108885, 0.992157), (0, -1.0793918, 1.0)]
)
def test_the_first_batch_comes_out_standardised(ddof, log_det, std, key, x64):
    """The number of ddof = 1 is nflows'."""
    layer = flows.actnorm(ddof=ddof)
    y, got = layer.forward(layer.init(key, jnp.asarray(X)), jnp.asarray(X))
    np.testing.assert_allclose(got, log_det, atol=1e-7)
    np.testing.assert_allclose(y.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.std(0), std, atol=1e-6)


def test_a_constant_channel_keeps_its_scale(key):
    """Whatever its size; a channel of small numbers is not constant."""
    noise = X[:, :1].astype(np.float32)
    constant = np.broadcast_to(np.float32([0.0, 0.1, -1e6, 3e-20]), (64, 4))
    x = jnp.concatenate([constant, 1e-8 * noise, 10 + 1e-3 * noise], 1)
    layer = flows.actnorm()
    params = layer.init(key, x)
    assert params["log_scale"][:4].tolist() == [0.0] * 4
    y, log_det = layer.forward(params, x)
    np.testing.assert_allclose(y[:, :4], 0.0, atol=0.5)  # a rounded mean of -1e6
    np.testing.assert_allclose(y[:, 4:].std(0), 1.0, rtol=1e-3)
    assert jnp.isfinite(log_det).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (flows.actnorm(), (1, 3)),
        (flows.actnorm(ddof=2), (2, 3)),
        (flows.normalize(), (1, 1, 1, 3)),
    ],
)
def test_one_number_has_no_variance(layer, shape, key):
    with pytest.raises(ValueError, match=r"x must hold at least \d numbers for each"):
        layer.init(key, jnp.zeros(shape))


def test_statistics_are_those_of_the_whole_sharded_batch(key):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(X, jnp.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    layer = flows.actnorm()
    single, spread = layer.init(key, x), jit_once(layer.init)(key, sharded)
    for name in ("shift", "log_scale"):
        np.testing.assert_allclose(spread[name], single[name], rtol=1e-6, atol=1e-6)


def test_the_fixed_normalisation_has_no_gradient(key):
    x = jnp.asarray(X, jnp.float32)
    layer, trained = flows.normalize(), flows.actnorm()
    params = layer.init(key, x)
    y, _ = layer.forward(params, x)
    np.testing.assert_array_equal(y, trained.forward(params["statistics"], x)[0])

    def loss(params):
        y, log_det = layer.forward(params, x)
        z, other = layer.inverse(params, x)
        return jnp.square(y).sum() + jnp.square(z).sum() + log_det.sum() - other.sum()

    for leaf in jax.tree.leaves(jit_once(jax.grad(loss))(params)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_statistics_of_bfloat16_data_are_float32(key):
    x = jnp.asarray(X, jnp.bfloat16)
    layer = flows.actnorm()
    params = layer.init(key, x)
    y, log_det = layer.forward(params, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in (log_det, *params.values())} == {"float32"}
