"""Chains: order, keys, parameters, and that depth costs no compile time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.bijectors import DENSE
from laws.registry import jit_once

from genlib import flows

SCALE, SHIFT = flows.shift_and_scale(0.0, 2.0), flows.shift_and_scale(1.0)
AFFINE = flows.coupling(flows.affine(), DENSE)


def noisy():
    """A stochastic layer: adds noise, and takes it away again with the same key."""

    def forward(params, x, cond=None, key=None):
        return x + jax.random.normal(key, x.shape), jnp.zeros(len(x))

    def inverse(params, y, cond=None, key=None):
        return y - jax.random.normal(key, y.shape), jnp.zeros(len(y))

    return flows.Bijector(lambda key, x, cond=None: {}, forward, inverse, True)


def test_layers_come_in_the_order_of_application():
    x = jnp.ones((1, 1))
    assert flows.chain(SCALE, SHIFT).forward({}, x)[0].item() == 3
    assert flows.chain(SHIFT, SCALE).forward({}, x)[0].item() == 4
    assert flows.chain(SCALE, SHIFT).inverse({}, 3 * x)[0].item() == 1


def test_a_layer_without_parameters_leaves_no_trace(key):
    flow = flows.chain(SCALE, AFFINE, flows.chain(SHIFT), AFFINE)
    params = flow.init(key, jnp.ones((2, 4)))
    assert list(params) == ["1", "3"]
    assert not np.array_equal(params["1"]["x"], params["3"]["x"])


def test_init_carries_the_data_through(key):
    x = jax.random.normal(key, (64, 4)) * 5 + 3
    flow = flows.chain(flows.actnorm(), SCALE, flows.actnorm())
    params = flow.init(key, x)
    np.testing.assert_allclose(jnp.exp(params["2"]["log_scale"]), 0.5, rtol=1e-5)
    scanned = flows.scan_chain(flows.chain(flows.actnorm(), SCALE), 3)
    scales = jnp.exp(scanned.init(key, x)["0"]["log_scale"])
    np.testing.assert_allclose(scales[1:], 0.5, rtol=1e-5)
    np.testing.assert_allclose(scales[0], 1 / x.std(0), rtol=1e-4)


@pytest.mark.parametrize("layers", ["chain", "scan_chain"])
def test_each_stochastic_layer_has_its_own_key(layers, key):
    flow = flows.chain(SCALE, noisy(), noisy())
    if layers == "scan_chain":
        flow = flows.scan_chain(noisy(), 2)
    x = jnp.zeros((1000, 1))
    y, _ = flow.forward({}, x, key=key)
    assert flow.stochastic
    assert abs(y.var() - 2) < 0.3  # 4 if both draws were the same
    np.testing.assert_allclose(flow.inverse({}, y, key=key)[0], x, atol=1e-6)
    with pytest.raises(ValueError, match="key must be given"):
        flow.forward({}, x)


def test_a_deterministic_chain_takes_no_key(key):
    with pytest.raises(TypeError, match="key"):
        flows.chain(SCALE).forward({}, jnp.ones((1, 1)), key=key)


def test_remat_changes_no_gradient(key):
    x = jax.random.normal(key, (6, 4))
    found = []
    for remat in (False, True):
        flow = flows.scan_chain(AFFINE, 3, remat=remat)
        params = flow.init(key, x)

        def loss(params, flow=flow):
            y, log_det = flow.forward(params, x)
            return (y**2).sum() - log_det.sum()

        found.append(jit_once(jax.grad(loss))(params))
        remats = str(jax.make_jaxpr(jax.grad(loss))(params)).count("remat")
        assert (remats > 0) == remat
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *found)


def test_the_program_does_not_grow_with_depth(key):
    x = jnp.ones((2, 4))

    def size(depth):
        flow = flows.scan_chain(
            flows.chain(AFFINE, flows.reverse(), flows.actnorm()), depth
        )
        params = jax.eval_shape(flow.init, key, x)
        loss = lambda params, x: flow.forward(params, x)[1].sum()
        return len(str(jax.make_jaxpr(jax.grad(loss))(params, x)).splitlines())

    assert size(64) == size(2)


def test_log_dets_are_float32_where_x_is_bfloat16(key):
    x = jax.random.normal(key, (3, 256), jnp.bfloat16)
    flow = flows.chain(*[flows.shift_and_scale(0.0, 1.01)] * 4)
    y, log_det = flow.forward({}, x)
    assert (y.dtype, log_det.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(log_det, 4 * 256 * np.log(1.01), rtol=1e-5)


def test_masks_are_scanned_and_never_parameters(key):
    masks = np.array([[True, False], [False, True]])
    layer = lambda mask: flows.masked_coupling(flows.affine(), DENSE, mask)
    flow = flows.scan_chain(layer, 2, masks)
    x = jax.random.normal(key, (5, 2))
    params = flow.init(key, x)
    assert jax.tree.map(jnp.shape, params) == {"x": (2, 2, 4)}
    y = x
    for index, mask in enumerate(masks):
        y, _ = layer(mask).forward({"x": params["x"][index]}, y)
    np.testing.assert_allclose(flow.forward(params, x)[0], y, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flows.chain(), "at least one"),
        (lambda: flows.scan_chain(SCALE, 0), "must be positive"),
        (lambda: flows.scan_chain(SCALE, 2, unroll=0), "must be positive"),
        (lambda: flows.scan_chain(flows.permute, 2, jnp.zeros((3, 2), int)), "2 rows"),
        (lambda: flows.scan_chain(flows.permute, 2), "constants"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
