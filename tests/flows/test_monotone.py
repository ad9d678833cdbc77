"""Monotone networks and the solver that inverts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows
from genlib.flows._root import increasing_root

FAMILIES = {
    "sigmoidal": flows.sigmoidal(6),
    "logistic_mixture": flows.logistic_mixture(6),
}


def test_is_the_logit_of_a_mixture():
    """Float64 agrees with the formula as it is written, in the middle of the line."""
    rng = np.random.default_rng(0)
    raw, x = rng.normal(size=(50, 20)), rng.normal(size=50) * 3
    speed = 8.0 ** np.linspace(1, -1, 6)
    soft = lambda u, limit: u / (1 + np.abs(u) / limit)
    weights = np.exp(raw[:, :6]) / np.exp(raw[:, :6]).sum(-1, keepdims=True)
    scales = np.exp(-soft(speed * raw[:, 6:12], 2.0))
    means = -soft(speed * raw[:, 12:18], 5.0) * scales
    mixture = (weights / (1 + np.exp(-(x[:, None] - means) / scales))).sum(-1)
    logit = np.log(mixture / (1 - mixture))
    with jax.enable_x64(True):
        y, _ = jit_once(FAMILIES["sigmoidal"].forward)(raw[:, :18], x)
        scaled, _ = jit_once(FAMILIES["logistic_mixture"].forward)(raw, x)
    np.testing.assert_allclose(y, logit, atol=1e-10)
    scale = np.exp(2 * np.tanh(raw[:, 19] / 2))
    np.testing.assert_allclose(scaled, scale * logit + raw[:, 18], atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_slope_gradients_and_tails(name):
    """Both directions know their derivatives, and float32 inverts far tails."""
    univariate = FAMILIES[name]
    rng = np.random.default_rng(1)
    raw = 2 * rng.normal(size=(64, univariate.size))
    raw[:4] = 0.0
    x = rng.normal(size=64) * np.repeat([1.0, 10.0, 1e3, 1e6], 16)
    x[:2] = [0.0, -0.0]

    def both(raw, x):
        y, log_det = univariate.forward(raw, x)
        back, log_det_back = univariate.inverse(raw, y)

        def pullback(raw, y):
            return sum(part.sum() for part in univariate.inverse(raw, y))

        ones = jnp.ones_like(x)
        slope = jax.jvp(lambda x: univariate.forward(raw, x)[0], (x,), (ones,))[1]
        slope_back = jax.jvp(lambda y: univariate.inverse(raw, y)[0], (y,), (ones,))[1]
        gradients = jax.grad(pullback, (0, 1))(raw, y)
        return y, log_det, back, log_det_back, slope, slope_back, gradients

    with jax.enable_x64(True):
        y, log_det, back, log_det_back, slope, slope_back, _ = jit_once(both)(raw, x)
    np.testing.assert_allclose(y[:4], x[:4], atol=1e-14)
    np.testing.assert_allclose(back, x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-9)
    np.testing.assert_allclose(np.log(slope), log_det, atol=1e-9)
    np.testing.assert_allclose(np.log(slope_back), -log_det, atol=1e-9)
    _, log_det, back, log_det_back, *_, gradients = jit_once(both)(
        raw.astype(np.float32), x.astype(np.float32)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-3)


def test_units_do_not_stay_equal():
    """Zeros are the identity but no trap: units move apart by their speeds.

    With equal speeds every unit has the same gradient there, and for ever after.
    """
    univariate = FAMILIES["sigmoidal"]
    x = np.linspace(-2.0, 2.0, 9)
    loss = lambda raw: univariate.forward(jnp.tile(raw[None], (9, 1)), x)[0][5:].sum()
    gradient = np.asarray(jit_once(jax.grad(loss))(np.zeros(18)))
    np.testing.assert_allclose(gradient[:6], 0, atol=1e-6)
    ratios = gradient[6:].reshape(2, 6)
    np.testing.assert_allclose(
        ratios / ratios[:, :1],
        np.tile(64.0 ** -np.linspace(0, 1, 6), (2, 1)),
        rtol=1e-4,
    )


def test_root_of_a_hard_function():
    """A flat step and a bracket of a million: Newton alone runs away here."""
    step = lambda x: jnp.tanh(50 * x) + 1e-3 * x
    y = np.array([-0.9, -1e-3, 0.0, 0.5, 0.99])
    far = np.full(5, 1e6)
    with jax.enable_x64(True):
        error = jit_once(lambda y: step(increasing_root(step, y, -far, far)) - y)(y)
    np.testing.assert_allclose(error, 0, atol=1e-11)


def test_derivatives_of_a_root():
    """First and second derivatives, with respect to y and to what f closes over."""
    root = lambda y, a: increasing_root(lambda x: a * x**3, y, 0 * y, 9 + 0 * y)
    with jax.enable_x64(True):  # x = (y / a)^(1/3)
        first, second = jit_once(
            lambda y, a: (
                jax.jacrev(root, (0, 1))(y, a),
                jax.hessian(root, (0, 1))(y, a),
            )
        )(8.0, 1.0)
    np.testing.assert_allclose(first, [1 / 12, -2 / 3], rtol=1e-12)
    exact = [[-1 / 144, -1 / 36], [-1 / 36, 8 / 9]]
    np.testing.assert_allclose(second, exact, rtol=1e-10)


def test_refuses():
    for make, name in (
        (flows.sigmoidal, "hidden"),
        (flows.logistic_mixture, "components"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be at least 2; it is 1"):
            make(1)
