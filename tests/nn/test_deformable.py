"""Layers that learn where to look against the functions and formulas they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import nn
from genlib.attention import deformable_attention, deformable_convolution
from tests.nn.networks import build, jit

SETTINGS = dict(strides=(2, 1), padding=[(1, 0), (0, 2)], dilation=(1, 2))
WIDE = dict(dtype=jnp.float64, param_dtype=jnp.float64)


def images(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def convolved(x, kernel, groups=1, **settings):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        settings["strides"],
        settings["padding"],
        rhs_dilation=settings["dilation"],
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize("modulated", [True, False])
def test_a_new_layer_is_a_convolution_that_learns_to_move(modulated):
    layer = nn.DeformableConv(
        4, 6, (3, 2), groups=2, modulated=modulated, rngs=nnx.Rngs(0), **SETTINGS
    )
    assert hash(nnx.graphdef(layer)) is not None
    params, apply = nn.from_nnx(layer)
    x = images(2, 6, 7, 4)

    @jit
    def run(params, x):
        y, vjp = jax.vjp(lambda params: apply(params, x), params)
        return y, convolved(x, params["kernel"], 2, **SETTINGS), vjp(y)[0]

    y, expected, grads = run(params, x)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert jnp.abs(grads["offset"]["kernel"]).max((0, 1, 2)).min() > 1e-3


def test_convolution_equals_the_formula(x64):
    params, apply = build(
        lambda: nn.DeformableConv(
            4, 6, (3, 2), offset_groups=2, rngs=nnx.Rngs(0), **SETTINGS, **WIDE
        )
    )
    x = images(2, 6, 7, 4, dtype=np.float64)

    @jit
    def run(params, x):
        branch = convolved(x, params["offset"]["kernel"], **SETTINGS)
        branch = branch + params["offset"]["bias"][None, None, None]
        y = deformable_convolution(
            x,
            params["kernel"],
            branch[..., :24],
            2 / (1 + jnp.exp(-branch[..., 24:])),
            offset_groups=2,
            **SETTINGS,
        )
        return apply(params, x), y + params["bias"][None, None, None]

    np.testing.assert_allclose(*run(params, x), rtol=1e-11, atol=1e-13)


def test_offsets_are_not_narrowed():
    layer = lambda: nn.DeformableConv(2, 3, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    params, apply = build(layer)
    x = jnp.asarray(images(1, 4, 4, 2), jnp.bfloat16)
    convolutions = [
        eqn.outvars[0].aval.dtype
        for eqn in jax.make_jaxpr(apply)(params, x).eqns
        if eqn.primitive.name == "conv_general_dilated"
    ]
    assert convolutions == [jnp.float32]
    assert jax.eval_shape(apply, params, x).dtype == jnp.bfloat16


def test_heads_start_in_directions_of_their_own():
    layer = nn.DeformableAttention(8, 8, levels=2, points=3, rngs=nnx.Rngs(0))
    offsets = layer.offset.bias[...].reshape(8, 2, 3, 2)
    directions = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
    for p in range(3):
        expected = (p + 1) * np.repeat(np.array(directions)[:, None], 2, 1)
        np.testing.assert_allclose(offsets[:, :, p], expected, atol=1e-6)
    zeros = [layer.offset.kernel, layer.weight.kernel, layer.weight.bias]
    assert all((x[...] == 0).all() for x in zeros)


def test_attention_equals_the_formula(x64):
    heads, levels, points = 2, 2, 3
    make = lambda: nn.DeformableAttention(
        4, heads, levels=levels, points=points, rngs=nnx.Rngs(0), **WIDE
    )
    params, apply = build(make)
    queries = images(2, 5, 4, dtype=np.float64)
    values = [images(2, h, w, 4, dtype=np.float64) for h, w in ((4, 6), (3, 2))]
    reference = np.random.default_rng(2).uniform(size=(2, 5, levels, 2))
    found = jit(apply)(params, queries, reference, values)

    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]
    p = jax.tree.map(np.asarray, params)
    weights = np.exp(dense("weight", queries).reshape(2, 5, heads, levels * points))
    weights = weights / weights.sum(-1, keepdims=True)
    offsets = dense("offset", queries).reshape(2, 5, heads, levels, points, 2)
    places = reference[:, :, None, :, None] + offsets / np.array(
        [[[[[[4, 6]], [[3, 2]]]]]]
    )
    y = jit(deformable_attention)(
        [dense("value", v).reshape(*v.shape[:3], heads, 2) for v in values],
        places,
        weights.reshape(2, 5, heads, levels, points),
    )
    expected = dense("out", np.asarray(y).reshape(2, 5, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def attend(queries, reference, values):
    layer = nn.DeformableAttention(4, 2, levels=1, points=2, rngs=nnx.Rngs(0))
    return layer(queries, reference, values)


Q, R, V = jnp.ones((1, 3, 4)), jnp.ones((1, 3, 1, 2)), jnp.ones((1, 2, 2, 4))
MISTAKES = {
    "size": (lambda: nn.DeformableConv(2, 3, 0, rngs=nnx.Rngs(0)), "kernel_size must"),
    "strides": (
        lambda: nn.DeformableConv(2, 3, 3, strides=(1, 0), rngs=nnx.Rngs(0)),
        "strides must be positive, got 0",
    ),
    "groups": (
        lambda: nn.DeformableConv(4, 3, 3, groups=2, rngs=nnx.Rngs(0)),
        "groups must divide 3 channels, got 2",
    ),
    "offset groups": (
        lambda: nn.DeformableConv(4, 3, 3, offset_groups=3, rngs=nnx.Rngs(0)),
        "offset_groups must divide 4 channels, got 3",
    ),
    "channels": (
        lambda: nn.DeformableConv(4, 3, 3, rngs=nnx.Rngs(0))(V[..., :3]),
        "x must be .* C = 4",
    ),
    "heads": (
        lambda: nn.DeformableAttention(4, 3, levels=1, points=1, rngs=nnx.Rngs(0)),
        "num_heads must divide the 4 features, got 3",
    ),
    "queries": (lambda: attend(Q[..., :3], R, [V]), "queries must be floating"),
    "integers": (lambda: attend(Q.astype(int), R, [V]), "queries must be floating"),
    "points": (lambda: attend(Q, R[:, :2], [V]), r"reference_points must be \[1, 3, 1"),
    "levels": (lambda: attend(Q, R, [V, V]), "values must be 1 images, got 2"),
    "values": (lambda: attend(Q, R, [V[..., :2]]), "values must be .* C = 4"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)
