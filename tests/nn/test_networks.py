"""What every network of the room promises."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import nn
from tests.nn import oracles
from tests.nn.networks import CLASSES, NETWORKS, SHAPE, batch, build, equations, jit

ZERO_AT_INIT = {
    "mlp": ("output", "blocks.1.modulation"),
    "unet": ("output", "down.1.conv_2", "middle.0.attention.attention.out"),
    "dit": ("blocks.modulation", "final.modulation", "final.out"),
}
network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def built(name, **kwargs):
    return build(functools.partial(NETWORKS[name], **kwargs))


@functools.cache
def compiled(name, **kwargs):
    params, apply = built(name, **kwargs)
    return params, jit(apply)


def inner(tree, path):
    return functools.reduce(lambda child, part: child[part], path.split("."), tree)


def primitives(apply, *args, **kwargs):
    jaxpr = jax.make_jaxpr(functools.partial(apply, **kwargs))(*args)
    return [eqn.primitive.name for eqn in equations(jaxpr.jaxpr)]


def every_label():
    """Six times the same x and t with all labels and the null class, then two others.

    One shape for many tests, so that each network is compiled once.
    """
    x, t, _ = batch((8, *SHAPE[1:]))
    x, t = x.at[1:6].set(x[0]), t.at[1:6].set(t[0])
    return x, t, jnp.array([*range(CLASSES + 1), 3, CLASSES])


@network
def test_equals_the_formulas_in_float64(name, x64):
    # float64 on both sides: a wrong formula cannot hide behind rounding.
    params, apply = compiled(name, dtype=jnp.float64, param_dtype=jnp.float64)
    # The UNet and the DiT take any size; one image also stands for a batch of one.
    shape = (2, 4, 4, 3) if name == "mlp" else (1, 2, 6, 3)
    x, t, labels = batch(shape, jnp.float64)
    result = apply(params, x, t, labels)
    expected = getattr(oracles, name)(*jax.tree.map(np.asarray, (params, x, t, labels)))
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@network
def test_float64_meets_no_smaller_float(name, x64):
    params, apply = built(name, dtype=jnp.float64, param_dtype=jnp.float64)
    jaxpr = jax.make_jaxpr(apply)(params, *batch(dtype=jnp.float64))
    dtypes = {v.aval.dtype for eqn in equations(jaxpr.jaxpr) for v in eqn.outvars}
    floats = {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
    assert floats == {jnp.dtype(jnp.float64)}


@network
def test_float32_is_near_float64(name):
    params, apply = compiled(name)
    x, t, labels = every_label()
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, t))
    expected = getattr(oracles, name)(*exact, np.asarray(labels))
    # float32 has 24 bits, phases of a thousand radians cost ten of them.
    np.testing.assert_allclose(
        apply(params, x, t, labels), expected, rtol=0, atol=2e-3 * abs(expected).max()
    )


@network
def test_new_network_returns_zero(name):
    make = NETWORKS[name]
    paths = ZERO_AT_INIT[name]
    # Under jit only what is asked for is computed: the random draws are not.
    initial = jit(lambda: [inner(nn.from_nnx(make())[0], path) for path in paths])()
    assert all(not leaf.any() for leaf in jax.tree.leaves(initial))

    params, apply = compiled(name)
    params = jax.tree.map(lambda leaf: leaf, params)
    for path, value in zip(paths, initial, strict=True):
        inner(params, path).update(value)
    assert not apply(params, *every_label()).any()


@network
def test_gradient_reaches_every_parameter(name):
    params, apply = built(name)
    x, t, labels = batch()
    grads = jit(jax.grad(lambda p: (apply(p, x, t, labels) ** 2).sum()))(params)
    grads = jax.tree.map(np.asarray, grads)
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert leaf.any(), path
        if leaf.ndim > 1 and "table" not in str(path):
            # No row or column of a weight is dead.
            assert (leaf != 0).mean() > 0.9, path
    table = inner(grads, "condition.label.table")
    used = np.isin(np.arange(CLASSES + 1), labels)
    np.testing.assert_array_equal((table != 0).any(1), used)


@network
def test_every_label_matters(name):
    params, apply = compiled(name)
    by_class = np.asarray(apply(params, *every_label()))[: CLASSES + 1]
    for i in range(CLASSES + 1):
        for j in range(i):
            assert abs(by_class[i] - by_class[j]).max() > 1e-3


@network
def test_traced_label_out_of_range_is_nan_for_its_example(name):
    params, apply = compiled(name)
    x, t, labels = every_label()
    wrong = labels.at[6].set(CLASSES + 1).at[7].set(-1)
    result = apply(params, x, t, wrong)
    np.testing.assert_array_equal(result[:6], apply(params, x, t, labels)[:6])
    assert jnp.isnan(result[6:]).all()


@network
def test_examples_do_not_see_each_other(name):
    params, apply = compiled(name)
    args = every_label()
    order = jnp.array([7, 2, 0, 6, 5, 4, 3, 1])
    mixed = apply(params, *(arg[order] for arg in args))
    expected = apply(params, *args)[order]
    atol = 1e-5 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=atol)


@network
def test_works_under_vmap(name):
    params, apply = built(name)
    x, t, labels = (jnp.stack([arg, arg]) for arg in batch())
    call = jax.vmap(apply, in_axes=(None, 0, 0, 0))
    assert jax.eval_shape(call, params, x, t, labels).shape == x.shape


@network
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_output_has_the_dtype_of_the_input(name, dtype):
    params, apply = built(name)
    x, t, labels = batch(dtype=dtype)
    result = jax.eval_shape(apply, params, x, t, labels)
    assert (result.shape, result.dtype) == (SHAPE, dtype)


@network
def test_compute_dtype_is_that_of_every_product(name):
    params, apply = built(name, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    jaxpr = jax.make_jaxpr(apply)(params, *batch())
    products = [
        eqn
        for eqn in equations(jaxpr.jaxpr)
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert products
    operands = {v.aval.dtype for eqn in products for v in eqn.invars}
    assert operands == {jnp.dtype(jnp.bfloat16)}
    assert jax.eval_shape(apply, params, *batch()).dtype == jnp.float32


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_bfloat16_is_near_float32(name):
    params, apply = compiled(name, dtype=jnp.bfloat16)
    result = apply(params, *every_label())
    exact = compiled(name)[1](params, *every_label())
    # bfloat16 has 8 bits: some ten roundings along the way stay below a tenth.
    assert 0 < jnp.abs(result - exact).max() < 0.1 * jnp.abs(exact).max()


@network
def test_param_dtype(name):
    make = functools.partial(NETWORKS[name], param_dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda: nn.from_nnx(make())[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@network
def test_without_a_key_there_is_no_dropout(name):
    params, apply = built(name, dropout=0.5)
    plain = primitives(built(name)[1], params, *batch())
    assert primitives(apply, params, *batch()) == plain
    assert "random_bits" not in plain


@network
def test_with_a_key_every_block_drops(name):
    params, apply = built(name, dropout=0.5)
    blocks = {"mlp": 2, "unet": 10, "dit": 1}  # the blocks of a DiT are one scan
    draws = primitives(apply, params, *batch(), key=jax.random.key(0))
    assert draws.count("random_bits") == blocks[name]


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_dropout_is_a_function_of_its_key(name):
    params, apply = compiled(name, dropout=0.5)
    first, again, other = (
        apply(params, *batch(), key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-3
    assert jnp.abs(first - compiled(name)[1](params, *batch())).max() > 1e-3


@network
def test_network_without_classes(name):
    params, apply = built(name, num_classes=None)
    assert "label" not in params["condition"]
    x, t, labels = batch()
    assert jax.eval_shape(apply, params, x, t).shape == SHAPE
    with pytest.raises(ValueError, match="labels must be None"):
        jax.eval_shape(apply, params, x, t, labels)


X, T, LABELS = jnp.zeros(SHAPE), jnp.zeros(2), jnp.zeros(2, int)
BAD_CALLS = {
    "rank of x": ((jnp.zeros((4, 4, 3)), T), "x must be", "(4, 4, 3)"),
    "channels of x": ((jnp.zeros((2, 4, 4, 1)), T), "x must be", "(2, 4, 4, 1)"),
    "length of t": ((X, jnp.zeros(3)), "t must be", "(3,)"),
    "rank of t": ((X, jnp.zeros((2, 1))), "t must be", "(2, 1)"),
    "length of labels": ((X, T, jnp.zeros(1, int)), "labels must", "(1,)"),
    "rank of labels": ((X, T, jnp.zeros((2, 1), int)), "labels must", "(2, 1)"),
    "dtype of labels": ((X, T, jnp.zeros(2)), "labels must", "float32"),
    "label too large": ((X, T, LABELS.at[1].set(6)), "labels must be in 0..5", "6"),
    "negative label": ((X, T, LABELS - 1), "labels must be in 0..5", "-1"),
}


@network
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call(name, case):
    args, must, was = BAD_CALLS[case]
    params, apply = built(name)
    # Abstract evaluation: the labels are closed over, so that their values are known.
    with pytest.raises(ValueError, match=f"{must}.*{re.escape(was)}"):
        jax.eval_shape(lambda params: apply(params, *args), params)


@network
@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"dropout": 1.0}, "dropout must be in .* got 1.0"),
        ({"dropout": -0.1}, "dropout must be in .* got -0.1"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
    ],
)
def test_bad_setting(name, setting, match):
    with pytest.raises(ValueError, match=match):
        nnx.eval_shape(lambda: NETWORKS[name](**setting))
