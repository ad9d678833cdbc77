"""Transformer blocks and what they do to every token, against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from genlib import nn
from genlib.attention import causal
from tests.nn.networks import build, equations, filled, jit

B, T, S, F = 2, 3, 4, 8

BLOCKS = {
    "gelu, layer norm": dict(),
    "swiglu, rms norm": dict(
        feedforward="swiglu", norm="rms", use_bias=False, hidden_features=5
    ),
    "adaLN-zero": dict(condition_features=3, hidden_features=4),
    "cross": dict(cross_features=6, num_kv_heads=1, mask=causal()),
    "all": dict(
        feedforward="swiglu", norm="rms", cross_features=6, condition_features=3
    ),
}


def block(rngs=None, **kwargs):
    return nn.TransformerBlock(F, 2, **kwargs, rngs=rngs or nnx.Rngs(0))


def arguments(name, dtype=None):
    """Return h and the keyword arguments that a block is called with."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    h, context, condition = draw(B, T, F), draw(B, S, 6), draw(B, 3)
    kwargs = {}
    if "cross_features" in BLOCKS[name]:
        kwargs["context"] = context
    if "condition_features" in BLOCKS[name]:
        kwargs["condition"] = condition
    return h, kwargs


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def normalised(kind, p, x):
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * p.get("scale", 1.0) + p.get("bias", 0.0)


def attended(p, x, c, causal):
    """Compute attention of two heads, one by one, in NumPy."""
    ys = []
    for n in range(2):
        if "qkv" in p:
            q, k, v = np.split(linear(p["qkv"], x)[..., 12 * n : 12 * n + 12], 3, -1)
        else:
            q = linear(p["q"], x)[..., 4 * n : 4 * n + 4]
            heads = p["kv"]["kernel"].shape[-1] // 8
            kv = linear(p["kv"], c)[..., 8 * (n % heads) : 8 * (n % heads) + 8]
            k, v = kv[..., :4], kv[..., 4:]
        weights = np.exp(np.einsum("bth,bsh->bts", q, k) / 2)
        weights = np.tril(weights) if causal else weights
        ys.append(weights / weights.sum(-1, keepdims=True) @ v)
    return linear(p["out"], np.concatenate(ys, -1))


def fed_forward(kind, p, x):
    x = linear(p["hidden"], x)
    if kind == "swiglu":
        x = x[..., ::2] * scipy.special.expit(x[..., ::2]) * x[..., 1::2]
    else:
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        x = 0.5 * x * (1 + np.tanh(inner))
    return linear(p["out"], x)


def oracle(options, p, h, context=None, condition=None):
    """Compute a block in NumPy, sublayer after sublayer."""
    feedforward = options.get("feedforward", "gelu")
    lines = {
        "attention": lambda p, x: attended(p, x, x, "mask" in options),
        "cross": lambda p, x: attended(p, x, context, False),
        "feedforward": functools.partial(fed_forward, feedforward),
    }
    names = [name for name in lines if name in p]
    parts = [(0.0, 0.0, 1.0)] * len(names)
    if condition is not None:
        split = np.split(linear(p["modulation"], condition)[:, None], 3 * len(names), 2)
        parts = [split[3 * i : 3 * i + 3] for i in range(len(names))]
    for name, (scale, shift, gate) in zip(names, parts, strict=True):
        norm = p.get(f"{name}_norm", {})
        x = normalised(options.get("norm", "layer"), norm, h)
        h = h + gate * lines[name](p[name], x * (1 + scale) + shift)
    return h


@functools.cache
def computed():
    """Return parameters and results of all blocks in float64, as one program."""
    with jax.enable_x64(True):
        made = {
            name: build(functools.partial(block, **kwargs, param_dtype=jnp.float64))
            for name, kwargs in BLOCKS.items()
        }

        def every(params):
            results = {}
            for name, (_, apply) in made.items():
                h, kwargs = arguments(name)
                results[name] = apply(params[name], h, **kwargs)
            return results

        params = {name: params for name, (params, _) in made.items()}
        given = {name: arguments(name) for name in BLOCKS}
        return jax.tree.map(np.asarray, (params, given, jit(every)(params)))


@pytest.mark.parametrize("name", BLOCKS)
def test_equals_the_formula(name):
    params, given, results = computed()
    h, kwargs = given[name]
    expected = oracle(BLOCKS[name], params[name], h, **kwargs)
    assert results[name].dtype == np.float64
    np.testing.assert_allclose(results[name], expected, rtol=1e-11, atol=1e-11)


def test_a_new_block_with_conditions_is_the_identity():
    def make():
        return block(**BLOCKS["all"])

    start = jit(lambda: nnx.split(make().modulation)[1])()
    assert all(not leaf.any() for leaf in jax.tree.leaves(start))
    model = filled(make)
    nnx.update(model.modulation, start)
    h, kwargs = arguments("all")
    np.testing.assert_array_equal(jit(lambda: model(h, **kwargs))(), h)


def test_a_condition_for_each_token():
    model = filled(functools.partial(block, condition_features=3))
    h, condition = jnp.ones((B, T, F)), jnp.arange(6.0).reshape(B, 3)
    each = jnp.broadcast_to(condition[:, None], (B, T, 3))
    one, many = jit(lambda: (model(h, condition=condition), model(h, condition=each)))()
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.FeedForward, nn.SwiGLU])
def test_dropout_is_of_hidden_units_and_by_key(kind):
    model = filled(lambda: kind(F, 64, dropout=0.5, use_bias=False, rngs=nnx.Rngs(0)))
    x = jnp.ones((1, F))

    @jit
    def run(keys):
        return model(x), jax.vmap(lambda key: model(x, key))(keys), model(x, keys[0])

    whole, some, first = run(jax.random.split(jax.random.key(0), 4096))
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    close(first, some[0])
    assert jnp.abs(some[0] - some[1]).max() > 1e-3
    # The mean over keys is what there is without one.
    error = some.std(0) / 64
    assert (jnp.abs(some.mean(0) - whole) < 5 * error).all()


def test_without_a_key_there_is_no_dropout():
    def draws(key):
        model = filled(functools.partial(block, dropout=0.5))
        jaxpr = jax.make_jaxpr(lambda h: model(h, key=key))(jnp.ones((B, T, F)))
        return [eqn.primitive.name for eqn in equations(jaxpr.jaxpr)].count(
            "random_bits"
        )

    assert (draws(None), draws(jax.random.key(0))) == (0, 1)


def test_hidden_units():
    def width(kind, features):
        model = nnx.eval_shape(lambda: kind(features, rngs=nnx.Rngs(0)))
        return model.out.kernel.shape[0]

    assert width(nn.FeedForward, 24) == 96
    assert [width(nn.SwiGLU, n) for n in (24, 25, 768)] == [64, 128, 2048]


def test_dtypes():
    h = jnp.ones((B, T, F), jnp.bfloat16)

    def dtype(h, **kwargs):
        call = lambda h: block(**BLOCKS["swiglu, rms norm"], **kwargs)(h)
        return jax.eval_shape(call, h).dtype

    assert dtype(h, dtype=jnp.bfloat16) == jnp.bfloat16
    assert dtype(h, param_dtype=jnp.bfloat16) == jnp.bfloat16
    # Sums of a residual stream are not made in less than it has.
    assert dtype(h.astype(jnp.float32), dtype=jnp.bfloat16) == jnp.float32


H = jnp.zeros((B, T, F))
MAKING = {
    "feedforward": (dict(feedforward="relu"), "feedforward must be one of .* 'relu'"),
    "norm": (dict(norm="batch"), "norm must be 'layer' or 'rms', got 'batch'"),
    "dropout": (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
    "hidden": (dict(hidden_features=0), "hidden must be positive, got 0"),
    "heads": (dict(num_kv_heads=3), "num_kv_heads must divide the 2 heads, got 3"),
}
CALLS = {
    "condition": ({}, dict(condition=H[:, 0]), "condition must be given to a block"),
    "none": (dict(condition_features=3), {}, "condition must be .* got None"),
    "context": ({}, dict(context=H), "context and context_mask must be None"),
    "no context": (dict(cross_features=6), {}, "context must be .* got None"),
}


@pytest.mark.parametrize("name", MAKING)
def test_making_refuses(name):
    kwargs, message = MAKING[name]
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(functools.partial(block, **kwargs))


@pytest.mark.parametrize("name", CALLS)
def test_call_refuses(name):
    kwargs, call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: block(**kwargs)(H, **call))
