"""Maps of data before a flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows


def test_logit_with_a_margin():
    y, log_det = flows.logit(0.05).forward({}, jnp.array([[0.1], [0.5], [0.9]]))
    np.testing.assert_allclose(y[:, 0], [-1.81529, 0.0, 1.81529], atol=1e-5)
    np.testing.assert_allclose(log_det, [2.011575, 1.280934, 2.011575], atol=1e-6)


def test_logit_is_finite_at_both_ends_and_nothing_beyond():
    x = jnp.array([[0.0], [1.0], [1.2]])
    y, log_det = flows.logit().forward({}, x)
    np.testing.assert_allclose(y[:2, 0], [-np.log(19), np.log(19)], rtol=1e-6)
    assert jnp.isfinite(log_det[:2]).all()
    assert jnp.isnan(y[2, 0])


@pytest.mark.parametrize("layer", [flows.sigmoid(), flows.invert(flows.logit())])
def test_saturated_sigmoids_keep_their_log_det(layer):
    """log sigma'(x) -> -|x|, where sigma(x) itself is 0 or 1."""
    x = jnp.array([[-1e6], [-200.0], [0.0], [200.0], [1e6]])

    def run(x):
        y, log_det = layer.forward({}, x)
        return log_det.sum() + y.sum(), (y, log_det)

    gradient, (y, log_det) = jit_once(jax.grad(run, has_aux=True))(x)
    offset = log_det[2] + 2 * np.log(2.0)  # -log(1 - 2 alpha)
    np.testing.assert_allclose(
        (log_det - offset)[jnp.array([0, 1, 3, 4])], [-1e6, -200, -200, -1e6], rtol=1e-6
    )
    assert jnp.isfinite(y).all()
    np.testing.assert_allclose(gradient[jnp.array([0, 4]), 0], [1, -1], rtol=1e-6)


def test_constants_broadcast_to_one_example():
    x = jnp.arange(12.0).reshape(2, 2, 3)
    shift, scale = np.array([1.0, 2.0, 3.0]), np.array([[2.0], [-4.0]])
    y, log_det = flows.shift_and_scale(shift, scale).forward({}, x)
    np.testing.assert_allclose(y, np.asarray(x) * scale + shift, rtol=1e-6)
    np.testing.assert_allclose(log_det, 3 * np.log(8.0), rtol=1e-6)
    traced = jit_once(lambda a: flows.shift_and_scale(0.0, a).forward({}, x)[1])(-3.0)
    np.testing.assert_allclose(traced, 6 * np.log(3.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: flows.shift_and_scale(0.0, 0.0),
            r"scale must not be zero; it is 0\.0",
        ),
        (lambda: flows.shift_and_scale(0.0, jnp.array([1.0, 0.0])), r"not be zero"),
        (
            lambda: flows.shift_and_scale(np.ones(2)).forward({}, jnp.zeros((2, 3))),
            r"shift must broadcast to one example of x \(2, 3\); its shape is \(2,\)",
        ),
        (lambda: flows.logit(0.0), r"alpha must be in \(0, 1/2\); it is 0\.0"),
        (lambda: flows.logit(0.5), r"alpha must be in \(0, 1/2\); it is 0\.5"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
