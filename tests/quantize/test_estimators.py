"""Gradients through a quantisation: values to the last bit, Jacobians in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.quantize import rotate, straight_through

BOTH = pytest.mark.parametrize("estimator", [straight_through, rotate])


def pulled(estimator, z, codes, cotangent):
    """Return the values, and what a gradient becomes on its way to z and to codes."""

    result, pull = jax.vjp(estimator, z, codes)
    return result, *pull(cotangent)


pulled_once = jit_once(pulled, static_argnums=0)


def test_straight_through():
    """T18: the gradient arrives as it was, and none of it at the codes."""
    z, codes = jnp.array([0.3, 0.7]), jnp.array([0.0, 1.0])
    cotangent = jnp.array([1.0, 2.0])
    result, to_z, to_codes = pulled_once(straight_through, z, codes, cotangent)
    assert result.tolist() == [0.0, 1.0]
    assert to_z.tolist() == [1.0, 2.0]
    assert to_codes.tolist() == [0.0, 0.0]


def test_the_codebook_loss_has_its_own_gradient():
    """The codes are compared before the estimator: after it, they would get none."""

    def loss(codes):
        z = jnp.array([0.3, 0.7])
        reconstruction = jnp.square(rotate(z, codes)).sum()
        return reconstruction + jnp.square(codes - z).sum()

    gradient = jax.grad(loss)(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(gradient, [-0.6, 0.6], rtol=1e-6)


def test_rotation():
    """T19; others return 0 where z is 0 with a gradient of -1.4e6, and 0.02 at 1e-8."""
    cases = [  # z, code, cotangent, gradient
        ([3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.12, 0.16]),
        ([1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]),
        ([1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]),  # a reflection
        ([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]),
        ([0.0, 0.0], [2.0, 0.0], [1.0, 5.0], [1.0, 5.0]),  # straight through
        ([1e-8, 0.0], [2.0, 0.0], [1.0, 5.0], [1.0, 5.0]),
        ([2.0, 0.0], [0.0, 0.0], [1.0, 5.0], [1.0, 5.0]),
        ([2.0, 0.0], [1.0, 0.0], [1.0, 5.0], [0.5, 2.5]),  # a scaling
        ([3e30, 4e30], [1e30, 0.0], [1.0, 0.0], [0.12, 0.16]),
    ]
    z, codes, cotangent, expected = np.float32(cases).swapaxes(0, 1)
    result, to_z, to_codes = pulled_once(rotate, z, codes, cotangent)
    np.testing.assert_array_equal(result, codes)
    np.testing.assert_allclose(to_z, expected, atol=1e-6)
    assert (to_codes == 0).all()


def test_rotation_is_that_of_the_plane(x64):
    """Against cos and sin in an orthonormal basis, and carrying z to the code."""
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(2, 6, 5)) * [[[3.0]], [[0.4]]]
    jacobians = jit_once(jax.vmap(jax.jacfwd(rotate)))(z, codes)
    for one, code, jacobian in zip(z, codes, jacobians, strict=True):
        scale = np.linalg.norm(code) / np.linalg.norm(one)
        first = one / np.linalg.norm(one)
        cosine = code @ first / np.linalg.norm(code)
        second = code - (code @ first) * first
        second /= np.linalg.norm(second)
        plane = np.stack([first, second], 1)
        sine = np.sqrt(1 - cosine**2)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        rotation = np.eye(5) + plane @ (turn - np.eye(2)) @ plane.T
        np.testing.assert_allclose(jacobian, scale * rotation, atol=1e-13)
        np.testing.assert_allclose(jacobian @ one, code, atol=1e-13)


def test_nearly_opposite_vectors_reflect():
    """What rounding leaves of their sum is no direction to turn in."""
    z = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    codes = np.float32(-1.7) * z
    cotangent = np.roll(z, 1, 0)
    _, to_z, _ = pulled_once(rotate, z, codes, cotangent)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    mirrored = cotangent - 2 * (cotangent * unit).sum(1, keepdims=True) * unit
    np.testing.assert_allclose(to_z, 1.7 * mirrored, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_the_codes_to_the_last_bit(estimator, dtype):
    """Not so of z + (codes - z): z is up to 1e6 times as long."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(64, 3)) * 10 ** rng.uniform(-9, 6, (64, 1)), dtype)
    codes = jnp.asarray(rng.normal(size=(64, 3)), dtype)
    rounded = z + (codes - z)
    assert (rounded != codes).any()
    total = lambda z: estimator(z, estimator(z, codes)).astype(jnp.float32).sum()
    twice, value, gradient = jit_once(
        lambda z: (estimator(z, estimator(z, codes)), total(z), jax.grad(total)(z))
    )(z)
    assert twice.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(twice, codes)
    assert np.isfinite(value)
    assert np.isfinite(gradient.astype(jnp.float32)).all()


@BOTH
def test_wide_codes_come_back_in_the_dtype_of_the_vectors(estimator):
    z, codes = jnp.ones((2, 3), jnp.bfloat16), jnp.full((2, 3), 2.0)
    result, to_z, to_codes = pulled_once(estimator, z, codes, jnp.ones_like(z))
    assert result.dtype == to_z.dtype == jnp.bfloat16
    assert to_codes.dtype == jnp.float32


@BOTH
def test_transformations_and_second_derivatives(estimator):
    """vmap is a loop; forward is the transpose of reverse; what is held stays so."""
    rng = np.random.default_rng(1)
    z, codes, tangent, cotangent = rng.normal(size=(4, 6, 3)).astype(np.float32)
    z[0], codes[1], codes[2] = 0.0, 0.0, -z[2]

    def all_of(z, codes, tangent, cotangent):
        result, moved = jax.jvp(estimator, (z, codes), (tangent, tangent))
        square = lambda z: jnp.square(estimator(z, codes)).sum()
        second = jax.jvp(jax.grad(square), (z,), (tangent,))[1]
        return result, moved, *pulled(estimator, z, codes, cotangent)[1:], second

    together = jit_once(all_of)(z, codes, tangent, cotangent)
    alone = jit_once(jax.vmap(all_of))(z, codes, tangent, cotangent)
    for a, b in zip(together, alone, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    _, moved, to_z, to_codes, second = together
    np.testing.assert_allclose((moved * cotangent).sum(), (tangent * to_z).sum(), 1e-4)
    assert (to_codes == 0).all()
    # The square has curvature 2 where the result moves as z does, J^T J in general.
    again = jax.vjp(lambda z: estimator(z, codes), z)[1](2 * moved)[0]
    np.testing.assert_allclose(second, again, rtol=1e-4, atol=1e-5)


@BOTH
def test_refuses_other_shapes(estimator):
    with pytest.raises(ValueError, match=r"shape of z \[2, 3\]; it is \[3\]"):
        estimator(jnp.ones((2, 3)), jnp.ones(3))
