"""Autoregressive layers: exactly triangular, and solved variable by variable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows, nn

D, K = 5, 3


def layer():
    network = nn.masked_conditioner(16, 2, activation=jnp.tanh)
    return flows.autoregressive(flows.affine(), network)


def example(flow, shape, cond=None):
    """Data and parameters that are not those of a new layer."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    params = jit_once(flow.init)(jax.random.key(0), x, cond)
    return jax.tree.map(lambda leaf: 0.4 * rng.normal(size=leaf.shape), params), x


def test_a_masked_flow_is_exactly_triangular_and_inverts():
    """Case T10."""
    flow, cond = layer(), np.random.default_rng(1).normal(size=(4, K))
    params, x = example(flow, (4, D), cond)

    def facts(params, x, cond):
        alone = lambda x, cond: flow.forward(params, x[None], cond[None])[0][0]
        back = lambda y, cond: flow.inverse(params, y[None], cond[None])[0][0]
        y, log_det = flow.forward(params, x, cond)
        return {
            "y": y,
            "log_det": log_det,
            "by_x": jax.vmap(jax.jacfwd(alone))(x, cond),
            "by_cond": jax.vmap(jax.jacfwd(alone, 1))(x, cond),
            "inverse": flow.inverse(params, y, cond),
            "back_by_y": jax.vmap(jax.jacrev(back))(y, cond),
        }

    with jax.enable_x64(True):
        got = jax.tree.map(np.asarray, jit_once(facts)(params, x, cond))
    above, below = np.triu_indices(D, 1), np.tril_indices(D)
    assert (got["by_x"][:, *above] == 0).all()
    assert (got["by_x"][:, *below] != 0).all()  # each sees all before it
    assert (got["by_cond"] != 0).all()  # the first too
    diagonal = np.diagonal(got["by_x"], axis1=1, axis2=2)
    np.testing.assert_allclose(got["log_det"], np.log(diagonal).sum(1), rtol=1e-12)
    x_back, log_det_back = got["inverse"]
    np.testing.assert_allclose(x_back, x, atol=1e-12)
    np.testing.assert_allclose(log_det_back, -got["log_det"], atol=1e-12)
    # The gradient through the D steps is that of the inverse function.
    identity = np.broadcast_to(np.eye(D), (4, D, D))
    np.testing.assert_allclose(got["back_by_y"] @ got["by_x"], identity, atol=1e-10)

    narrow = lambda tree: jax.tree.map(np.float32, tree)
    y, _ = jit_once(flow.forward)(*narrow((params, x, cond)))
    x_back, _ = jit_once(flow.inverse)(narrow(params), y, narrow(cond))
    assert np.abs(x_back - x).max() <= 1e-6


@pytest.mark.parametrize("cond", [None, np.array([[1.0], [2.0]], np.float32)])
def test_one_variable_depends_on_cond_alone(cond):
    flow = layer()
    params, x = example(flow, (2, 1), cond)

    def slopes(x, cond):
        alone = lambda x, cond: flow.forward(params, x[None], cond)[0][0, 0]
        rows = [None, None] if cond is None else [cond[:1], cond[1:]]
        return jnp.stack([jax.grad(alone)(x[i], rows[i])[0] for i in (0, 1)])

    first, second = np.asarray(jit_once(slopes)(x, cond))
    assert (first == second) == (cond is None)
    y, log_det = jit_once(flow.forward)(params, x, cond)
    back, _ = jit_once(flow.inverse)(params, y, cond)
    np.testing.assert_allclose(back, x, atol=1e-6)
    np.testing.assert_allclose(log_det, np.log([first, second]), rtol=1e-5)


def test_the_inverse_is_one_scan_over_the_variables():
    flow = layer()
    params, x = example(flow, (4, D))
    scans = [
        equation.params["length"]
        for equation in jax.make_jaxpr(flow.inverse)(params, x).eqns
        if equation.primitive.name == "scan"
    ]
    assert scans == [D]
    forward = jax.make_jaxpr(flow.forward)(params, x)
    assert "scan" not in {equation.primitive.name for equation in forward.eqns}
    inverted = flows.invert(flow)  # IAF: the other way about
    assert "scan" in str(jax.make_jaxpr(inverted.forward)(params, x))
    assert "scan" not in str(jax.make_jaxpr(inverted.inverse)(params, x))


def test_bad_input_is_refused():
    wrong = flows.Conditioner(
        init=lambda key, x, features, cond=None: {},
        apply=lambda params, x, features, cond=None: x,
    )
    flow = flows.autoregressive(flows.affine(), wrong)
    with pytest.raises(ValueError, match=r"conditioner must return .* \(2, 6\)"):
        flow.forward({}, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="x must be a floating batch"):
        flow.forward({}, jnp.ones((2, 3), int))
    with pytest.raises(ValueError, match="y must be a floating batch"):
        flow.inverse({}, jnp.ones(3))
