"""What used to go wrong at the edges: large numbers, narrow dtypes, wrong shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.bijectors import DENSE

from genlib import flows, nn
from genlib.flows import _dequantize

TOKENS = flows.causal(
    flows.affine(), nn.causal_transformer_conditioner(4, 1, 2, mlp_ratio=1)
)


def test_a_cache_has_the_dtype_of_the_parameters(key):
    x = jax.random.normal(key, (2, 3, 4), jnp.bfloat16)
    params = jax.eval_shape(TOKENS.init, key, x)
    narrow = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params
    )
    for direction in (TOKENS.forward, TOKENS.inverse):
        y, log_det = jax.eval_shape(direction, narrow, x)
        assert (y.dtype, log_det.dtype) == (jnp.bfloat16, jnp.float32)


def test_log_dets_of_narrow_parameters_are_summed_in_float32(key):
    x = 3.3 * jax.random.normal(key, (64, 4, 4, 12))
    layer = flows.actnorm()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layer.init(key, x))
    total = 16 * np.asarray(params["log_scale"], np.float64).sum()
    np.testing.assert_allclose(layer.forward(params, x)[1], total, rtol=1e-5)
    np.testing.assert_allclose(layer.inverse(params, x)[1], -total, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        flows.coupling(flows.affine(), DENSE),
        flows.sigmoid(),
        flows.planar(),
        flows.residual(DENSE),
    ],
)
def test_a_batch_may_be_empty(layer, key):
    params = layer.init(key, jnp.ones((2, 4)))
    y, log_det = layer.forward(params, jnp.ones((0, 4)))
    assert (y.shape, log_det.shape) == ((0, 4), (0,))
    assert flows.normal().log_prob({}, y).shape == (0,)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_planar_flows_of_large_parameters(size):
    """Against float64, in which nothing is rounded away at these sizes."""
    params = {"w": np.array([3.0, 0.0]), "u": np.array([size, 1.0]), "b": np.zeros(1)}
    x = np.array([[8 / 3, 0.1], [0.2, 0.0], [-3.0, 1.0]])
    layer = flows.planar()
    found = [layer.forward(jax.tree.map(jnp.float32, params), jnp.float32(x))[1]]
    with jax.enable_x64(True):
        found.append(np.asarray(layer.forward(params, jnp.asarray(x))[1]))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_planar_gradients_are_finite_where_it_nearly_folds():
    params = {
        "w": jnp.array([1e4, 0.0]),
        "u": jnp.array([-1e4, 0.0]),
        "b": jnp.zeros(1),
    }
    y = jnp.array([[0.0, 0.3], [1.0, 0.0]])
    total = lambda params, y: sum(
        out.sum() for out in flows.planar().inverse(params, y)
    )
    gradients = jax.grad(total, (0, 1))(params, y)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_bin_that_ends_at_zero_keeps_its_numbers():
    almost = jnp.float32(1 - 2**-24)
    for level in (0, 126, 127, 128, 254, 255):
        level = jnp.float32(level)
        y = _dequantize._in_bin(level, almost, 256, -1.0, 1.0)
        assert _dequantize._level(y, 256, -1.0, 1.0) == level
        assert jnp.floor((y + 1) * 128) == level


def test_student_t_of_many_degrees_of_freedom_is_normal():
    base, z = flows.student_t(1e8, trainable=True), jnp.linspace(-3, 3, 7)[:, None]
    params = base.init(None, z)
    slope = jax.grad(lambda params: base.log_prob(params, z).sum())(params)
    assert np.isfinite(slope["log_df"])
    want = flows.normal().log_prob({}, z)
    np.testing.assert_allclose(base.log_prob(params, z), want, rtol=1e-5)


def test_student_t_has_its_tail_where_squares_overflow(key):
    far = flows.student_t(1.0).log_prob({}, jnp.array([[1e20]]))
    np.testing.assert_allclose(far, -np.log(np.pi) - 2 * np.log(1e20), rtol=1e-6)
    draws = flows.student_t(0.2).sample(key, {}, jnp.zeros((4000, 1)))
    # P(|t| > 1e19) is about 1e-4 for 1/5 of a degree of freedom.
    assert np.isfinite(draws).mean() > 0.999


def test_sigmoid_scales_have_a_floor():
    raw, x = jnp.array([[0.0, -1e4]]), jnp.array([2.0])
    univariate = flows.affine("sigmoid")
    y, log_slope = univariate.forward(raw, x)
    np.testing.assert_allclose(log_slope, np.log(1e-3), rtol=1e-6)
    np.testing.assert_allclose(univariate.inverse(raw, y)[0], x, rtol=1e-6)


def test_variables_may_be_drawn_by_a_stochastic_flow(key):
    decoder = flows.density(flows.augment(1, flows.normal()))
    layer = flows.slicing(1, decoder)
    x = jnp.ones((2, 3))
    _, log_p = layer.forward({}, x, key=key)
    assert log_p.shape == (2,)
    y, log_det = layer.inverse({}, jnp.ones((2, 2)), key=key)
    assert (y.shape, log_det.shape) == ((2, 3), (2,))


@pytest.mark.parametrize(
    "log_det", [lambda x: x.sum(1, keepdims=True), lambda x: x.sum(), lambda x: x]
)
def test_contributions_are_one_number_per_example(log_det):
    move = lambda params, x, cond=None: (x, log_det(x))
    layer = flows.Bijector(lambda key, x, cond=None: {}, move, move)
    x = jnp.ones((4, 4))
    for flow in (
        flows.chain(layer),
        flows.scan_chain(layer, 2),
        flows.Bijector(*flows.chain(layer)),
    ):
        with pytest.raises(ValueError, match=r"one number per example, \(4,\)"):
            flow.forward({}, x)
    with pytest.raises(ValueError, match="one number per example"):
        flows.density(layer).log_prob({}, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flows.chain(flows.actnorm), "layer 0 must be a Bijector"),
        (
            lambda: flows.coupling(flows.affine(), nn.mlp_conditioner),
            "conditioner must",
        ),
        (lambda: flows.coupling(flows.affine(), ({}, print)), "conditioner must"),
        (lambda: flows.split(flows.reverse(), prior=print), "conditioner must"),
    ],
)
def test_what_is_no_layer_or_network_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_dropped_and_added_may_depend_on_the_condition(key):
    base = flows.normal(conditioner=DENSE)
    x, cond = jax.random.normal(key, (4, 3)), jnp.eye(4)
    for layer in (flows.slicing(1, base), flows.augment(2, base)):
        params = layer.init(key, x, cond)
        y, log_det = layer.forward(params, x, cond, key=key)
        other = layer.forward(params, x, cond[::-1], key=key)
        assert (log_det != other[1]).all()
        if y.shape[1] > 3:
            np.testing.assert_allclose(layer.inverse(params, y, cond)[1], -log_det)
    own = flows.scan_chain(flows.coupling(flows.affine(), DENSE), 2)
    layer = flows.variational_dequantization(own, levels=4)
    levels = jnp.array([[0, 3, 1, 2]] * 4)
    params = layer.init(key, levels, cond)
    y, log_det = layer.forward(params, levels, cond, key=key)
    np.testing.assert_array_equal(layer.inverse(params, y, cond)[0], levels)
    np.testing.assert_allclose(layer.inverse(params, y, cond)[1], -log_det, atol=1e-3)
    assert (log_det != layer.forward(params, levels, cond[::-1], key=key)[1]).all()


def test_conditioning_of_another_shape_is_refused(key):
    flow, x = nn.ffjord(4, 1, steps=2), jnp.ones((3, 2))
    params = jax.eval_shape(flow.init, key, x, jnp.ones((3, 2)))
    for cond, message in (
        (None, "params must be those of a field"),
        (jnp.ones((1, 2)), "cond must have 3 rows"),
        (jnp.ones((3, 2, 1)), r"cond must be \[B\] or \[B, K\]"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(flow.forward, params, x, cond)
