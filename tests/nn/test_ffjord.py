"""Networks as velocity fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows, nn

X = jnp.float32(np.random.default_rng(0).normal(size=(3, 2)))


def drawn(init, *args):
    """Parameters far from those of a new network, without the cost of making it."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.float32(0.4 * rng.normal(size=leaf.shape)),
        jax.eval_shape(init, jax.random.key(0), *args),
    )


def test_ffjord_starts_as_the_identity_and_then_solves_its_equation():
    flow, cond = nn.ffjord(8, 2, steps=24), X[:, :1]
    start = jit_once(flow.init)(jax.random.key(0), X, cond)

    @jit_once
    def run(params, x, cond):
        y, log_det = flow.forward(params, x, cond)
        return y, log_det, *flow.inverse(params, y, cond)

    y, log_det, *_ = run(start, X, cond)
    np.testing.assert_array_equal(y, X)
    np.testing.assert_array_equal(log_det, 0)
    params = drawn(flow.init, X, cond)
    y, log_det, back, log_det_back = run(params, X, cond)
    assert np.abs(y - X).min() > 1e-3
    assert np.abs(log_det).min() > 1e-3
    np.testing.assert_allclose(back, X, atol=1e-5)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-5)
    assert np.abs(run(params, X, -cond)[0] - y).max() > 1e-2


def test_ffjord_takes_images_and_the_settings_of_a_continuous_flow():
    flow = nn.ffjord(4, 1, divergence="hutchinson", steps=2, dtype=jnp.bfloat16)
    x, key = jnp.ones((2, 2, 2, 1)), jax.random.key(1)
    params = drawn(flow.init, x)
    y, log_det = jit_once(lambda params: flow.forward(params, x, key=key))(params)
    assert (y.shape, y.dtype, log_det.dtype) == (x.shape, x.dtype, np.float32)
    assert np.abs(log_det).min() > 0
    with pytest.raises(ValueError, match="steps must be at least 1"):
        nn.ffjord(steps=0)
    with pytest.raises(ValueError, match="depth must be positive, got 0"):
        nn.ffjord(8, 0)


def test_any_network_of_time_and_labels_is_a_field():
    def make(shape, cond_features, rngs):
        assert (shape, cond_features) == ((2,), 0)
        return nn.MLP(2, 8, 1, num_classes=3, time_scale=1.0, rngs=rngs)

    field, labels = nn.vector_field(make), jnp.array([0, 1, 2])
    params = drawn(field.init, X, labels)
    _, apply = nn.lazy(lambda rngs: make((2,), 0, rngs))
    got, want = jit_once(
        lambda params, x, labels: (
            field.apply(params, x, 0.5, labels),
            apply(params, x, 0.5, labels),
        )
    )(params, X, labels)
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match=r"cond must be \[B\] or \[B, K\]"):
        field.apply(params, X, 0.5, jnp.ones((3, 1, 1)))


def test_stacked_fields_have_stacked_parameters():
    flow = flows.scan_chain(nn.ffjord(4, 1, steps=2), 2)
    params = jax.eval_shape(flow.init, jax.random.key(0), X)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params)} == {2}
