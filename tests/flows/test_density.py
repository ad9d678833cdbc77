"""Densities: what is evaluated, what is drawn, and that both are one distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.bijectors import DENSE
from laws.registry import jit_once

from genlib import flows

ROWS = 6


@pytest.fixture(scope="module")
def model():
    layers = [flows.coupling(flows.affine(), DENSE, swap=swap) for swap in (0, 1)]
    return flows.density(flows.chain(flows.actnorm(), *layers, flows.reverse()))


@pytest.fixture(scope="module")
def params(model):
    x = jax.random.normal(jax.random.key(3), (32, 2)) * 2 + 1
    return jit_once(model.init)(jax.random.key(0), x)


def test_samples_have_the_density_that_is_evaluated(model, params, key):
    draw = jit_once(model.sample_and_log_prob, static_argnums=2)
    x, log_prob = draw(key, params, (ROWS, 2))
    np.testing.assert_allclose(log_prob, model.log_prob(params, x), rtol=1e-5)
    np.testing.assert_array_equal(model.sample(key, params, (ROWS, 2)), x)


def test_the_density_integrates_to_one(model, params):
    side = np.linspace(-15, 15, 301)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    density = jnp.exp(jit_once(model.log_prob)(params, grid.astype(np.float32)))
    np.testing.assert_allclose(density.sum() * 0.1**2, 1, rtol=1e-3)


def test_temperature_narrows_the_base(key):
    model = flows.density(flows.shift_and_scale(0.0, 2.0))
    x, log_prob = model.sample_and_log_prob(key, {}, (4000, 1), temperature=0.5)
    assert abs(x.std() - 0.25) < 0.02
    normal = -0.5 * (x[:, 0] / 0.25) ** 2 - np.log(0.25 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(log_prob, normal, rtol=1e-4, atol=1e-5)


def test_without_parameters_there_are_none(key):
    assert flows.density(flows.reverse()).init(key, jnp.ones((2, 2))) == {}


def test_latents_may_be_a_tree(key):
    model = flows.density(flows.split(flows.shift_and_scale(1.0, 2.0)))
    x = jax.random.normal(key, (ROWS, 4))
    z = jnp.concatenate([2 * x[:, :2] + 1, x[:, 2:]], 1)
    want = -0.5 * (z**2).sum(1) - 2 * np.log(2 * np.pi) + 2 * np.log(2)
    np.testing.assert_allclose(model.log_prob({}, x), want, rtol=1e-5)
    assert model.sample(key, {}, (3, 4)).shape == (3, 4)


def test_integers_are_drawn_where_the_data_is_of_integers(key):
    bits = flows.uniform_dequantization(4)
    model = flows.density(flows.chain(bits, flows.logit()))
    x = model.sample(key, {}, (ROWS, 3), dtype=jnp.int32)
    assert x.dtype == jnp.int32
    assert set(np.unique(x)) <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match="key must be given"):
        model.log_prob({}, x)
    assert model.log_prob({}, x, key=key).shape == (ROWS,)
