"""1x1 convolutions and orders of the channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows


def matrix(layer, params, channels):
    """W, from what becomes of the unit vectors."""
    return np.asarray(layer.forward(params, jnp.eye(channels))[0]).T


def test_plu_is_the_product_of_its_factors(key, x64):
    rotation = flows.rotations(3, 1, 5)[0]
    layer = flows.plu_conv(rotation)
    x = jax.random.normal(key, (2, 3, 2, 5))
    np.testing.assert_array_equal(matrix(layer, layer.init(key, x), 5), rotation)
    lu = np.random.default_rng(1).standard_normal((5, 5))
    lower, scale = np.tril(lu, -1) + np.eye(5), np.exp(np.diag(lu))
    expected = rotation @ lower @ (np.triu(lu, 1) + np.diag(scale))
    params = {"lu": jnp.asarray(lu)}
    np.testing.assert_allclose(matrix(layer, params, 5), expected, atol=1e-12)
    y, log_det = layer.forward(params, x)
    np.testing.assert_allclose(y, np.asarray(x) @ expected.T, atol=1e-12)
    np.testing.assert_allclose(
        log_det, 3 * 2 * np.linalg.slogdet(expected)[1], atol=1e-12
    )
    np.testing.assert_allclose(layer.inverse(params, y)[0], x, atol=1e-11)


def test_the_inverse_is_two_triangular_solves():
    layer = flows.plu_conv(np.eye(4))
    jaxpr = str(
        jax.make_jaxpr(layer.inverse)({"lu": jnp.zeros((4, 4))}, jnp.zeros((2, 4)))
    )
    assert jaxpr.count("triangular_solve[") == 2
    assert " lu " not in jaxpr


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_a_trained_rotation_stays_one(size, key):
    layer = flows.orthogonal_conv()
    x = jax.random.normal(key, (48, 48))
    params = {"skew": size * x}
    w = matrix(layer, params, 48)
    np.testing.assert_allclose(w.T @ w, np.eye(48), atol=1e-6)
    y, log_det = layer.forward(params, x)
    assert log_det.tolist() == [0.0] * 48
    np.testing.assert_allclose(layer.inverse(params, y)[0], x, atol=1e-5)
    start = matrix(layer, layer.init(key, x), 48)
    np.testing.assert_allclose(start, flows.rotations(0, 1, 48)[0], atol=1e-6)


def test_rotations_are_uniform():
    """Traces of Haar's matrices have mean 0 and variance 1; Q alone has others."""
    r = flows.rotations(0, 4000, 3)
    assert r.dtype == np.float64
    np.testing.assert_allclose(
        r @ r.swapaxes(1, 2), np.broadcast_to(np.eye(3), r.shape), atol=1e-14
    )
    trace = np.trace(r, axis1=1, axis2=2)
    assert abs(trace.mean()) < 3 / 4000**0.5
    assert abs(trace.var() - 1) < 0.1
    np.testing.assert_array_equal(r[:2], flows.rotations(0, 4000, 3)[:2])


def test_permute_takes_what_it_says(key):
    orders = flows.permutations(0, 50, 6)
    assert orders.dtype == np.int32
    np.testing.assert_array_equal(
        np.sort(orders), np.broadcast_to(np.arange(6), (50, 6))
    )
    assert len({tuple(row) for row in orders}) > 40
    x = jnp.arange(12.0).reshape(2, 6)

    def both(order):
        layer = flows.permute(order)
        y, log_det = layer.forward({}, x)
        return y, log_det, *layer.inverse({}, y)

    for run in (both, jit_once(both)):  # known, and traced
        y, log_det, back, log_det_back = run(orders[0])
        np.testing.assert_array_equal(y, np.asarray(x)[:, orders[0]])
        np.testing.assert_array_equal(back, x)
        assert log_det.tolist() == log_det_back.tolist() == [0.0, 0.0]


def test_reverse_takes_an_axis():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    for axis in (1, -2):
        y, _ = flows.reverse(axis).forward({}, x)
        np.testing.assert_array_equal(y, x[:, ::-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.plu_conv(np.ones((2, 2))), r"rotation must be orthogonal"),
        (lambda: flows.plu_conv(np.ones(2)), r"must be a square matrix.*\(2,\)"),
        (lambda: flows.orthogonal_conv(2 * np.eye(2)), r"rotation must be orthogonal"),
        (
            lambda: flows.plu_conv(np.eye(3)).forward(
                {"lu": jnp.zeros((3, 3))}, jnp.zeros((2, 4))
            ),
            r"x must have 3 channels, as rotation; its shape is \(2, 4\)",
        ),
        (lambda: flows.rotations(0, 0, 3), r"depth and dimension must be positive"),
        (lambda: flows.permutations(0, 1, 0), r"depth and dimension must be positive"),
        (lambda: flows.permute([0, 2]), r"permutation must hold each .*\[0, 2\]"),
        (lambda: flows.permute([0.0, 1.0]), r"permutation must hold each"),
        (
            lambda: flows.permute([0, 1]).forward({}, jnp.zeros((2, 3))),
            r"x must have 2 variables on its last axis.*\(2, 3\)",
        ),
        (
            lambda: flows.reverse(0).forward({}, jnp.zeros((2, 3))),
            r"axis must be one of x \(2, 3\) beside the batch; it is 0",
        ),
        (lambda: flows.reverse(-2).forward({}, jnp.zeros((2, 3))), r"axis must be"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
