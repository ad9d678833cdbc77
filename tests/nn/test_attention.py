"""The attention layer against its formula, with caches, encodings and contexts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange, repeat
from flax import nnx

from genlib import attention, nn, train
from genlib.attention import causal, padding, window
from tests.nn.networks import build, filled, jit

B, T, S, F = 2, 5, 4, 8
ROTARY = attention.rotary(attention.rope_frequencies(4))
VALID = np.array([[True] * S, [True, True, False, False]])

LAYERS = {
    "plain": dict(),
    "without biases": dict(use_bias=False),
    "grouped": dict(num_kv_heads=2, mask=causal()),
    "one key head, wide values": dict(num_kv_heads=1, value_features=3),
    "narrow heads": dict(head_features=1, mask=causal() & window(2)),
    "normalised": dict(qk_norm=True, softcap=2.0, sink=True),
    "normalised groups": dict(qk_norm=True, num_kv_heads=2, value_features=3),
    "context": dict(context_features=6, num_kv_heads=2),
}


def layer(rngs=None, **kwargs):
    return nn.Attention(F, 4, **kwargs, rngs=rngs or nnx.Rngs(0))


def inputs(dtype=jnp.float32):
    rng = np.random.default_rng(3)
    x, c = (rng.standard_normal((B, *shape)) for shape in ((T, F), (S, 6)))
    return (x, c) if dtype is None else (jnp.asarray(x, dtype), jnp.asarray(c, dtype))


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def rms(p, x):
    return p["scale"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def seen_by(name):
    places = np.arange(T)
    distance = places[:, None] - places[None]
    table = {
        "grouped": distance >= 0,
        "narrow heads": (distance >= 0) & (distance < 2),
        "context": VALID[:, None, None],
    }
    return table.get(name, True)


def oracle(name, p, x, c):
    """Compute the layer in NumPy, every head with a key of its own."""
    options = LAYERS[name]
    if "qkv" in p:
        q, k, v = rearrange(linear(p["qkv"], x), "b t (n s d) -> s b t n d", s=3, n=4)
    else:
        heads = options.get("num_kv_heads", 4)
        source = c if "context_features" in options else x
        q = rearrange(linear(p["q"], x), "b t (n h) -> b t n h", n=4)
        kv = rearrange(linear(p["kv"], source), "b s (k d) -> b s k d", k=heads)
        k, v = kv[..., : q.shape[-1]], kv[..., q.shape[-1] :]
    if "q_norm" in p:
        q, k = rms(p["q_norm"], q), rms(p["k_norm"], k)
    k, v = (repeat(y, "b s k d -> b s (k g) d", g=4 // y.shape[2]) for y in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    if cap := options.get("softcap"):
        scores = cap * np.tanh(scores / cap)
    weights = np.exp(scores) * seen_by(name)
    total = weights.sum(-1)
    if "sink" in p:
        total = total + np.exp(p["sink"])[:, None]
    y = np.einsum("bnts,bsnv->btnv", weights / total[..., None], v)
    return linear(p["out"], rearrange(y, "b t n v -> b t (n v)"))


@functools.cache
def computed():
    """Return parameters and results of all layers in float64, as one program."""
    with jax.enable_x64(True):
        made = {
            name: build(functools.partial(layer, **kwargs, param_dtype=jnp.float64))
            for name, kwargs in LAYERS.items()
        }
        x, c = inputs(jnp.float64)

        def every(params):
            calls = {}
            for name, (_, apply) in made.items():
                more = (c,) if name == "context" else ()
                mask = padding(VALID) if name == "context" else None
                calls[name] = apply(params[name], x, *more, mask=mask)
            return calls

        params = {name: params for name, (params, _) in made.items()}
        return jax.tree.map(np.asarray, (params, jit(every)(params)))


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_formula(name):
    params, results = computed()
    expected = oracle(name, params[name], *inputs(None))
    assert results[name].dtype == np.float64
    np.testing.assert_allclose(results[name], expected, rtol=1e-12, atol=1e-12)


def test_only_layers_without_other_sizes_have_one_matrix():
    fused = {name for name, params in computed()[0].items() if "qkv" in params}
    assert fused == {"plain", "without biases", "narrow heads", "normalised"}


def test_positions():
    plain = filled(functools.partial(layer, head_features=4, mask=causal()))
    turned = filled(
        functools.partial(layer, head_features=4, mask=causal(), encoding=ROTARY)
    )
    x, _ = inputs()
    order = np.array([3, 0, 4, 1, 2])

    @jit
    def run(shift):
        places = jnp.arange(T)
        return (
            plain(x),
            turned(x),
            turned(x, positions=places),
            turned(x, positions=places[None] + shift[:, None]),
            turned(x[:, order], positions=order),
            plain(x[:, order], positions=order),
        )

    without, result, given, shifted, *mixed = run(jnp.array([0, 1000]))
    assert jnp.abs(without - result).max() > 0.01
    np.testing.assert_allclose(given, result, rtol=0, atol=1e-6)
    np.testing.assert_allclose(shifted, result, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mixed[0], result[:, order], rtol=0, atol=1e-6)
    np.testing.assert_allclose(mixed[1], without[:, order], rtol=0, atol=1e-6)


def test_the_masks_of_layer_and_call_both_hold():
    model = filled(functools.partial(layer, mask=causal()))
    both = filled(functools.partial(layer, mask=causal() & window(2)))
    x, _ = inputs()
    near = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) < 2

    @jit
    def run(x):
        return both(x), model(x, mask=window(2)), model(x, mask=near[None, None])

    expected, *results = run(x)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


CACHES = {
    "contiguous": lambda: attention.kv_cache(B, 9, 2, 4, 3),
    "rolling": lambda: attention.rolling_cache(B, 3, 2, 4, 3),
}


@functools.cache
def decoded():
    """Return what a layer says at once and in chunks, and of padded prompts."""
    make = functools.partial(
        layer,
        num_kv_heads=2,
        head_features=4,
        value_features=3,
        qk_norm=True,
        encoding=ROTARY,
        mask=causal() & window(3),
    )
    model = filled(make)
    x, _ = inputs()
    valid = np.array([[True] * 4, [False, True, False, True]])

    @jit
    def run(x):
        parts = {}
        for name, empty in CACHES.items():
            cache, rows = empty(), []
            for part in jnp.split(x, [1, 4], 1):
                row, cache = model(part, cache=cache)
                rows.append(row)
            parts[name] = jnp.concatenate(rows, 1)
        cache = attention.kv_cache(B, 9, 2, 4, 3)
        _, cache = model(x[:, :4], cache=cache, valid=valid)
        after, cache = model(x[:, 4:], cache=cache)
        alone = model(x[1:, np.array([1, 3, 4])])
        return model(x), parts, after, alone, cache.length

    return run(x)


@pytest.mark.parametrize("name", CACHES)
def test_chunks_equal_the_whole(name):
    whole, parts, *_ = decoded()
    np.testing.assert_allclose(parts[name], whole, rtol=0, atol=1e-5)


def test_padding_of_a_prompt_is_left_out():
    whole, _, after, alone, length = decoded()
    assert length.tolist() == [5, 3]
    np.testing.assert_allclose(after[0, 0], whole[0, 4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(after[1, 0], alone[0, 2], rtol=0, atol=1e-5)


def test_keys_of_a_context_are_made_once():
    make = functools.partial(
        layer, context_features=6, num_kv_heads=2, encoding=ROTARY, head_features=4
    )
    model = filled(make)
    x, c = inputs()
    places = np.arange(S)[::-1].copy()

    @jit
    def run(x, c):
        made = model.keys_values(c), model.keys_values(c, places)
        return (
            model(x, c),
            model(x, made[0]),
            model(x, c, context_positions=places),
            model(x, made[1]),
            model(x[:, 2:], made[0], positions=np.arange(2, T)),
            made[0],
        )

    whole, same, other, also, last, (k, v) = run(x, c)
    assert (k.shape, v.shape) == ((B, S, 2, 4), (B, S, 2, 4))
    np.testing.assert_array_equal(whole, same)
    np.testing.assert_array_equal(other, also)
    assert jnp.abs(whole - other).max() > 1e-3
    np.testing.assert_allclose(last, whole[:, 2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("impl", ["ring", "ulysses"])
def test_a_sequence_over_two_devices(impl):
    kwargs = dict(num_kv_heads=2, head_features=4, mask=causal(), sink=True)
    x = inputs()[0][:, :4]

    @jit
    def run(x):
        make = lambda **more: filled(functools.partial(layer, **kwargs, **more))
        return [
            [make(encoding=encoding, impl=name)(x) for name in ("naive", impl)]
            for encoding in (None, ROTARY)
        ]

    with jax.set_mesh(train.make_mesh(sequence=2, devices=jax.devices("cpu")[:2])):
        text = run.lower(x).compile().as_text()
        results = run(x)
    assert ("collective-permute" if impl == "ring" else "all-to-all") in text
    for expected, result in results:
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_dtypes():
    x, c = inputs(jnp.bfloat16)

    def call(x, *context, **kwargs):
        return layer(num_kv_heads=2, qk_norm=True, **kwargs)(x, *context)

    dtype = lambda *args, **kwargs: (
        jax.eval_shape(functools.partial(call, **kwargs), *args).dtype
    )
    half = dict(param_dtype=jnp.bfloat16)
    assert dtype(x) == jnp.float32
    assert dtype(x, dtype=jnp.bfloat16) == jnp.bfloat16
    assert dtype(x, **half) == jnp.bfloat16
    assert dtype(x.astype(jnp.float16), dtype=jnp.float16) == jnp.float16
    wide = c.astype(jnp.float32)  # q and k then differ in dtype
    assert dtype(x, wide, context_features=6, **half) == jnp.float32


X, C = jnp.zeros((B, T, F)), jnp.zeros((B, S, 6))
MAKING = {
    "heads": (dict(num_kv_heads=3), "num_kv_heads must divide the 4 heads, got 3"),
    "features": (dict(head_features=0), "head_features must be positive, got 0"),
    "values": (dict(value_features=0), "value_features must be positive, got 0"),
    "mask": (dict(mask=True), "mask must be a Mask or None, got bool"),
    "arrays": (dict(mask=padding(VALID)), "must be a function of positions"),
}
CALLS = {
    "rank": (dict(), (X[0],), {}, r"x must be floating \[B, length, 8\]"),
    "width": (dict(), (C,), {}, r"x must be floating .* shape \(2, 4, 6\)"),
    "ids": (dict(), (jnp.zeros((1, 2, 8), int),), {}, "x must be floating"),
    "context": (dict(), (X, X), {}, "context and context_positions must be None"),
    "no context": (dict(context_features=6), (X,), {}, "context must be .* got None"),
    "other context": (dict(context_features=6), (X, X), {}, "context must be floating"),
    "valid": (dict(), (X,), {"valid": VALID}, "valid is for caches"),
    "impl": (dict(impl="best"), (X,), {}, "impl must be one of .* 'best'"),
}


@pytest.mark.parametrize("name", MAKING)
def test_making_refuses(name):
    kwargs, message = MAKING[name]
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(functools.partial(layer, **kwargs))


def test_heads_must_divide_features():
    with pytest.raises(ValueError, match="num_heads must divide the 8 features, got 3"):
        nn.Attention(8, 3, rngs=nnx.Rngs(0))


@functools.cache
def made(**kwargs):
    return filled(functools.partial(layer, **kwargs))


@pytest.mark.parametrize("name", CALLS)
def test_call_refuses(name):
    kwargs, args, options, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        made(**kwargs)(*args, **options)


def test_call_with_a_cache_refuses():
    cache = attention.kv_cache(B, 9, 4, 2)
    with pytest.raises(ValueError, match="positions must be None with a cache"):
        made()(X, positions=np.arange(T), cache=cache)
    with pytest.raises(ValueError, match="cache must be None for a layer with"):
        made(context_features=6)(X, C, cache=cache)
    with pytest.raises(ValueError, match="cache must be None with impl='ring'"):
        made(impl="ring")(X, cache=cache)
    with pytest.raises(ValueError, match="self-attention has no keys of a context"):
        made().keys_values(C)
    with pytest.raises(ValueError, match="append takes at most 9 tokens"):
        made()(jnp.zeros((B, 10, F)), cache=cache)
