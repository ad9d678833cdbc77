"""Conditioners: zero at the start, masked exactly, made once, clear about mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from laws.registry import each, jit_once

from genlib import nn

VECTORS = {
    "mlp": nn.mlp_conditioner(8),
    "resnet": nn.resnet_conditioner(8, 1),
    "masked": nn.masked_conditioner(8, 1),
}
IMAGES = {
    **VECTORS,
    "conv": nn.conv_conditioner(8),
    "conv_resnet": nn.resnet_conditioner(8, 1, kernel_size=3),
}


def noisy(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.asarray(rng.normal(size=leaf.shape), leaf.dtype), params
    )


@pytest.mark.parametrize("network", **each(IMAGES))
def test_zero_at_the_start_then_a_function_of_each_row_and_its_cond(network):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 2, 2, 2)), jnp.float32)
    cond = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    places = jnp.broadcast_to(cond[:, None, None], (3, 2, 2, 5))
    params = jit_once(lambda key: network.init(key, x, 4, cond))(jax.random.key(0))

    @jit_once
    def facts(new, params):
        call = lambda params, x, cond: network.apply(params, x, 4, cond)
        return (
            call(new, x, cond),
            call(params, x, cond),
            call(params, x, places),
            call(params, x[1:2], cond[1:2]),
            call(params, x, cond + 1),
        )

    zero, out, by_places, alone, other = facts(params, noisy(params))
    assert (zero == 0).all()
    assert out.shape == (3, 2, 2, 4)
    np.testing.assert_allclose(by_places, out, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(alone, out[1:2], atol=1e-5, rtol=1e-5)
    assert (jnp.abs(other - out).max((1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize(
    ("dimension", "width", "cond"), [(1, 1, 0), (2, 1, 0), (6, 5, 0), (6, 6, 2)]
)
def test_masked_numbers_see_all_before_and_nothing_else(dimension, width, cond):
    network = nn.masked_conditioner(width, 2, activation=jnp.tanh)
    x = jnp.linspace(-1.0, 1.0, dimension)[None]
    cond = jnp.ones((1, cond)) if cond else None
    params = jax.eval_shape(
        lambda key: network.init(key, x, 3 * dimension, cond), jax.random.key(0)
    )
    apply = lambda x: network.apply(noisy(params), x[None], 3 * dimension, cond)[0]
    jacobian = np.asarray(jit_once(jax.jacfwd(apply))(x[0]))
    owner = np.repeat(np.arange(dimension), 3)
    assert ((jacobian != 0) == (np.arange(dimension) < owner[:, None])).all()


def test_a_coupling_network_is_nothing_but_products_and_activations():
    network, x = nn.mlp_conditioner(64, 2), jnp.ones((8, 4))
    params = network.init(jax.random.key(0), x, 6)
    program = jax.make_jaxpr(lambda params: network.apply(params, x, 6))(params)
    names = [equation.primitive.name for equation in program.eqns]
    layer = ["dot_general", "reshape", "add"]
    assert names == [*layer, "custom_jvp_call", *layer, "custom_jvp_call", *layer]


def test_modules_are_made_once_for_each_size_even_inside_a_trace():
    made = []

    class Linear(nnx.Module):
        def __init__(self, size, features, cond_features, rngs):
            made.append((size, features, cond_features))
            self.out = nnx.Linear(size, features, rngs=rngs)
            self.bias = nnx.Variable(jnp.ones(features))  # no parameter: closed over

        def __call__(self, x, cond):
            return self.out(x) + self.bias[...].reshape(1, -1)

    network, x = nn.conditioner(Linear), jnp.ones((2, 3))
    params = jax.jit(network.init, static_argnums=2)(jax.random.key(0), x, 4)
    count = len(made)
    for _ in range(3):
        inside = jax.jit(network.apply, static_argnums=2)(params, x, 4)
        np.testing.assert_allclose(network.apply(params, x, 4), inside, rtol=1e-6)
    assert (len(made), set(made)) == (count, {(3, 4, 0)})
    np.testing.assert_allclose(inside, x @ params["out"]["kernel"] + 1, rtol=1e-6)


def test_the_computation_has_the_dtype_that_is_asked_for():
    x = jnp.ones((2, 3))
    for dtype, want in ((None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        for make in (nn.mlp_conditioner, nn.masked_conditioner, nn.resnet_conditioner):
            network = make(4, 1, dtype=dtype)
            init = lambda key, network=network: network.init(key, x, 6)
            params = jax.eval_shape(init, jax.random.key(0))
            apply = lambda params, network=network: network.apply(params, x, 6)
            assert jax.eval_shape(apply, params).dtype == want
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {x.dtype}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.mlp_conditioner(0), "width must be positive, got 0"),
        (lambda: nn.mlp_conditioner(4, 0), "depth must be positive, got 0"),
        (lambda: nn.conv_conditioner(4, kernel_size=0), "kernel_size must be positive"),
        (lambda: nn.resnet_conditioner(4, kernel_size=0), "kernel_size must be"),
    ],
)
def test_bad_sizes_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_bad_calls_are_refused():
    key, x, cond = jax.random.key(0), jnp.ones((2, 3)), jnp.ones((2, 5))
    network = nn.mlp_conditioner(4, 1)
    params = network.init(key, x, 2, cond)
    for bad in (None, jnp.ones((2, 4))):  # made for another cond
        with pytest.raises(ValueError, match="params must be those of a network"):
            network.apply(params, x, 2, bad)
    with pytest.raises(ValueError, match="params must be those of a network"):
        network.apply(params, x, 4, cond)
    for labels in (jnp.zeros(2), jnp.zeros((2, 1), int)):
        with pytest.raises(ValueError, match="cond must be a floating batch"):
            network.init(key, x, 2, labels)
    with pytest.raises(ValueError, match="cond must have 2 rows"):
        network.init(key, x, 2, jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="have the places of x"):
        network.apply(params, x, 2, jnp.ones((2, 4, 5)))
    conv = nn.conv_conditioner(4)
    with pytest.raises(ValueError, match=r"x must be images \[B, H, W, C\]"):
        conv.apply(conv.init(key, x, 2), x, 2)
    with pytest.raises(ValueError, match="width must be at least 2"):
        nn.masked_conditioner(1, 1).init(key, x, 3)
    with pytest.raises(ValueError, match="width must be at least 3"):
        nn.masked_conditioner(2, 1).init(key, x, 3, cond)
    with pytest.raises(ValueError, match="multiple of the 3 variables"):
        nn.masked_conditioner(4, 1).init(key, x, 4)
