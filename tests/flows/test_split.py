"""Shapes and multi-scale flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genlib import flows, tree

# Mean and raw log-scale of b_i are a_i and a_i / 2.
LINEAR = flows.Conditioner(
    init=lambda key, x, features, cond=None: {"one": jnp.ones(())},
    apply=lambda params, x, features, cond=None: (
        params["one"]
        * jnp.stack([x, x / 2], -1).reshape(*x.shape[:-1], -1)[..., :features]
    ),
)


@pytest.mark.parametrize(
    ("order", "channels"),
    [
        ("glow", [0, 1, 4, 5, 16, 17, 20, 21]),
        ("space_to_depth", [0, 16, 1, 17, 4, 20, 5, 21]),
    ],
)
def test_the_order_of_squeezed_channels(order, channels):
    x = jnp.arange(32.0).reshape(1, 2, 4, 4).transpose(0, 2, 3, 1)
    layer = flows.squeeze(2, order)
    y, log_det = layer.forward({}, x)
    assert y.shape == (1, 2, 2, 8)
    assert y[0, 0, 0].tolist() == channels
    assert log_det.tolist() == [0.0]
    np.testing.assert_array_equal(layer.inverse({}, y)[0], x)
    unsqueezed, _ = flows.invert(layer).forward({}, y)
    np.testing.assert_array_equal(unsqueezed, x)


def test_patches_are_tokens():
    x = jnp.arange(2 * 6 * 3 * 2.0).reshape(2, 6, 3, 2)
    layer = flows.chain(
        flows.squeeze(3, "space_to_depth"), flows.reshape((2, 1, 18), (2, 18))
    )
    tokens, _ = layer.forward({}, x)
    np.testing.assert_array_equal(tokens[1, 1], x[1, 3:].reshape(-1))
    np.testing.assert_array_equal(layer.inverse({}, tokens)[0], x)


def test_the_prior_standardises_what_is_left_behind(key, x64):
    """log p(a, b) = log N(a) + log N(b; mean(a), scale(a)); 3 of 5 channels go on."""
    layer = flows.split(flows.reverse(), prior=LINEAR)
    x = jax.random.normal(key, (4, 5))
    model = flows.density(layer)
    params = model.init(key, x)
    assert params == {"flow": {"prior": {"one": 1.0}}}
    a, b = np.asarray(x[:, :3]), np.asarray(x[:, 3:])
    scale = np.exp(2 * np.tanh(a[:, :2] / 4))
    expected = norm.logpdf(a).sum(1) + norm.logpdf(b, a[:, :2], scale).sum(1)
    np.testing.assert_allclose(model.log_prob(params, x), expected, rtol=1e-12)
    (kept, left), _ = layer.forward(params["flow"], x)
    np.testing.assert_array_equal(kept, a[:, ::-1])
    np.testing.assert_allclose(left, (b - a[:, :2]) / scale, rtol=1e-12)
    back, _ = layer.inverse(params["flow"], (kept, left))
    np.testing.assert_allclose(back, x, atol=1e-12)


def test_a_stochastic_rest_gets_its_key(key):
    layer = flows.split(flows.augment(1, flows.normal()))
    assert layer.stochastic
    x = jnp.ones((2, 4))
    y, log_det = layer.forward({}, x, key=key)
    assert [leaf.shape for leaf in y] == [(2, 3), (2, 2)]
    back, log_det_back = layer.inverse({}, y, key=key)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_allclose(log_det + log_det_back, 0.0, atol=1e-6)
    with pytest.raises(ValueError, match="key must be given"):
        layer.forward({}, x)


def test_levels_are_squeezed_and_split(key):
    step = flows.chain(flows.actnorm(), flows.plu_conv())
    flow = flows.multi_scale([step] * 3, prior=LINEAR)
    x = jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(flow.init, key, x)
    z, _ = jax.eval_shape(flow.forward, params, x)
    shapes = jax.tree.map(lambda leaf: leaf.shape, z)
    assert shapes == (((3, 1, 1, 16), (3, 2, 2, 4)), (3, 4, 4, 2))
    sizes = {name: leaf.shape for name, leaf in tree.named(params).items()}
    assert {name: size for name, size in sizes.items() if "lu" in name} == {
        "1/1/lu": (4, 4),
        "2/rest/1/1/lu": (8, 8),
        "2/rest/2/rest/1/1/lu": (16, 16),
    }
    sample = lambda key, params: flows.density(flow).sample(key, params, (2, 8, 8, 1))
    assert jax.eval_shape(sample, key, {"flow": params}).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.squeeze(0), r"factor must be at least 1; it is 0"),
        (lambda: flows.squeeze(2, "hwc"), r'order must be "glow" or .* \'hwc\''),
        (
            lambda: flows.squeeze().forward({}, jnp.zeros((1, 3, 4, 1))),
            r"H and W divisible by 2; its shape is \(1, 3, 4, 1\)",
        ),
        (
            lambda: flows.squeeze().inverse({}, jnp.zeros((1, 2, 2, 3))),
            r"C divisible by 4; its shape is \(1, 2, 2, 3\)",
        ),
        (lambda: flows.reshape((2, 3), (5,)), r"event_out must hold .*\(5,\)"),
        (
            lambda: flows.reshape((4,), (2, 2)).forward({}, jnp.zeros((4, 2))),
            r"x must have examples of shape \(4,\); its shape is \(4, 2\)",
        ),
        (
            lambda: flows.split(flows.reverse()).forward({}, jnp.zeros((2, 1))),
            r"x must have at least 2 channels; its shape is \(2, 1\)",
        ),
        (lambda: flows.split(flows.reverse(), bound=0.0), r"bound must be positive"),
        (lambda: flows.multi_scale([]), r"levels must be at least one"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
