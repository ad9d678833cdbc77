"""Couplings: what stays, what moves, precision, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.bijectors import DENSE, NEIGHBOUR
from laws.registry import jit_once

from genlib import flows

IN_BFLOAT16 = flows.Conditioner(
    DENSE.init,
    lambda params, x, features, cond=None: DENSE.apply(
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params),
        x.astype(jnp.bfloat16),
        features,
    ),
)


@pytest.mark.parametrize("swap", [False, True])
def test_one_part_stays_bit_for_bit(swap, key):
    layer = flows.coupling(flows.affine(), DENSE, split=1, swap=swap)
    x = jax.random.normal(key, (6, 5))
    y, _ = layer.forward(layer.init(key, x), x)
    stays = np.arange(5) < 1 if not swap else np.arange(5) >= 1
    np.testing.assert_array_equal(y[:, stays], x[:, stays])
    assert (y[:, ~stays] != x[:, ~stays]).all()


def test_a_checkerboard_moves_the_odd_places(key):
    mask = flows.checkerboard(4, 6)
    layer = flows.masked_coupling(flows.affine(), NEIGHBOUR, mask)
    x = jax.random.normal(key, (2, 4, 6, 3))
    y, _ = layer.forward(layer.init(key, x), x)
    np.testing.assert_array_equal((y == x).all((0, 3)), mask[..., 0])


def test_nothing_flows_back_to_what_decides(key):
    layer = flows.coupling(flows.affine(), DENSE)
    x = jax.random.normal(key, (1, 4))
    params = layer.init(key, x)
    jacobian = jax.jacfwd(lambda x: layer.forward(params, x)[0])(x)[0, :, 0]
    assert (jacobian[:2, 2:] == 0).all()
    assert (jacobian[2, 3], jacobian[3, 2]) == (0, 0)


@pytest.mark.parametrize(("conditioner", "bound"), [(DENSE, 1e-7), (IN_BFLOAT16, 5e-3)])
def test_round_trips_and_bits_of_a_deep_stack(conditioner, bound):
    """The scale of a trained flow: tanh, weights of gain .3, 8 layers of 16."""
    alternate = [flows.coupling(flows.affine(), conditioner, swap=s) for s in (0, 1)]
    exact = [flows.coupling(flows.affine(), DENSE, swap=s) for s in (0, 1)]
    flow, wide = (flows.scan_chain(flows.chain(*l), 4) for l in (alternate, exact))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 16)).astype(np.float32)
    shapes = jax.eval_shape(flow.init, jax.random.key(0), x)
    params = jax.tree.map(
        lambda leaf: np.float32(0.3 / np.sqrt(8) * rng.normal(size=leaf.shape)),
        shapes,
    )
    y, log_det = jit_once(flow.forward)(params, x)
    back, _ = jit_once(flow.inverse)(params, y)
    # A network in bfloat16 rounds alike in both directions.
    assert np.abs(back - x).max() < 2e-6
    with jax.enable_x64(True):
        args = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x))
        true = np.asarray(jit_once(wide.forward)(*args)[1])
    assert np.abs(log_det - true).mean() / 16 / np.log(2) < bound


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (flows.coupling(flows.affine(), DENSE, split=4), jnp.ones((2, 4)), "split"),
        (flows.coupling(flows.affine(), DENSE), jnp.ones((2, 1)), "split"),
        (flows.coupling(flows.affine(), DENSE), jnp.ones(4), "at least 2 axes"),
        (flows.coupling(flows.affine(), DENSE), jnp.ones((2, 4), int), "floating"),
        (
            flows.masked_coupling(flows.affine(), DENSE, np.array([True, False])),
            jnp.ones((2, 3)),
            "mask must broadcast",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(layer, x, message, key):
    with pytest.raises(ValueError, match=message):
        layer.init(key, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flows.affine("exp"), "scale must be"),
        (lambda: flows.affine(bound=0.0), "bound must be positive"),
        (lambda: flows.masked_coupling(flows.affine(), DENSE, jnp.ones(3)), "bools"),
        (
            lambda: flows.masked_coupling(flows.affine(), DENSE, np.ones(3, bool)),
            "both values",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_conditioner_of_another_shape_is_refused():
    wrong = flows.Conditioner(DENSE.init, lambda params, x, features, cond=None: x)
    layer = flows.coupling(flows.affine(), wrong)
    with pytest.raises(ValueError, match=r"must return the shape \(2, 4\)"):
        layer.forward({}, jnp.ones((2, 4)))


def test_huge_outputs_of_a_network_stay_finite(key):
    """Bounded scales: no network can make a layer overflow."""
    huge = flows.Conditioner(
        lambda key, x, features, cond=None: {},
        lambda params, x, features, cond=None: jnp.full(
            (*x.shape[:-1], features), 1e30
        ),
    )
    for scale in ("tanh", "sigmoid"):
        layer = flows.coupling(flows.affine(scale), huge)
        y, log_det = layer.forward({}, jnp.ones((1, 2)))
        assert np.isfinite(y).all()
        assert np.isfinite(log_det).all()
