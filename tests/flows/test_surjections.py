"""Layers that drop and add variables, against Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once
from scipy.stats import multivariate_normal, norm

from genlib import flows

# Mean of each new variable: the sum of what is seen; raw log-scale 0.3.
SUM = flows.Conditioner(
    init=lambda key, x, features, cond=None: {},
    apply=lambda params, x, features, cond=None: jnp.tile(
        jnp.stack([x.sum(-1), jnp.full(x.shape[:-1], 0.3)], -1), features // 2
    ),
)
CONDITIONAL = flows.normal(conditioner=SUM)
SCALE = np.exp(2 * np.tanh(0.15))


def test_slicing_is_exact(key):
    """b | a ~ N(a_1 + a_2, s^2) with a ~ N(0, I): a Gaussian (a, b)."""
    x = jax.random.normal(key, (6, 3))
    model = flows.density(flows.slicing(1, CONDITIONAL))
    assert model.init(key, x) == {}
    covariance = [[1, 0, 1], [0, 1, 1], [1, 1, 2 + SCALE**2]]
    expected = multivariate_normal(np.zeros(3), covariance).logpdf(np.asarray(x))

    def run(key):
        draws, log_prob = model.sample_and_log_prob(key, {}, (20_000, 3))
        again = model.log_prob({}, draws, key=key)
        return model.log_prob({}, x, key=key), draws, log_prob, again

    got, draws, log_prob, again = jit_once(run)(key)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.12)
    np.testing.assert_allclose(log_prob, again, rtol=1e-5)


def test_augmentation_is_right_on_average(key):
    """E exp(log p(x, u) - log q(u | x)) = p(x), here of a Gaussian that mixes both."""
    mix = flows.plu_conv(np.eye(2))
    model = flows.density(flows.chain(flows.augment(1, CONDITIONAL), mix))
    params = {"flow": {"1": {"lu": jnp.array([[0.2, 0.5], [-0.4, 0.1]])}}}
    lu = np.array([[1, 0], [-0.4, 1]]) @ np.array(
        [[np.exp(0.2), 0.5], [0, np.exp(0.1)]]
    )
    covariance = np.linalg.inv(lu.T @ lu)
    x = jnp.tile(jnp.array([-0.5, 0.0, 0.8]), 20_000)[:, None]
    weights = jnp.exp(jit_once(model.log_prob)(params, x, key=key)).reshape(-1, 3)
    expected = norm.pdf([-0.5, 0.0, 0.8], scale=covariance[0, 0] ** 0.5)
    error = np.asarray(weights.std(0)) / 20_000**0.5
    assert (np.abs(np.asarray(weights.mean(0)) - expected) < 4 * error).all()
    assert error.max() < 0.01


@pytest.mark.parametrize(
    "distribution",
    [CONDITIONAL, flows.density(flows.actnorm(), flows.normal())],
    ids=["base", "density"],
)
def test_contributions_cancel(distribution, key):
    x = jax.random.normal(key, (4, 2, 2, 3))
    layer = flows.augment(2, distribution)
    params = layer.init(key, x)

    def both(params, x):
        y, log_det = layer.forward(params, x, key=key)
        return y, log_det, *layer.inverse(params, y)

    y, log_det, back, log_det_back = jit_once(both)(params, x)
    assert y.shape == (4, 2, 2, 5)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_allclose(log_det, -log_det_back, rtol=1e-6)
    assert log_det.std() > 0.1  # not a constant


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.slicing(0, flows.normal()), r"count must be positive; it is 0"),
        (
            lambda: flows.slicing(2, flows.normal()).forward({}, jnp.zeros((3, 2))),
            r"x must have more than 2 variables on its last axis.*\(3, 2\)",
        ),
        (
            lambda: flows.slicing(2, flows.normal()).inverse({}, jnp.zeros((3, 2))),
            r"key must be given: a layer that adds variables",
        ),
        (
            lambda: flows.augment(2, flows.normal()).forward({}, jnp.zeros((3, 2))),
            r"key must be given: a layer that adds variables",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
