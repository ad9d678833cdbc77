"""The layer of multi-head latent attention against the formula of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import nn
from genlib.attention import causal, latent_cache, segments, yarn_frequencies
from tests.nn.networks import build, jit

FEATURES, HEADS = 8, 2
SIZES = dict(latent_features=6, nope_features=4, rope_features=4, value_features=3)
# Both factors of DeepSeek-V2-Lite.
YARN = yarn_frequencies(4, 40.0, 4096, mscale=0.707, mscale_all=0.707)


def make(**kwargs):
    settings = {**SIZES, "mask": causal(), "rngs": nnx.Rngs(0), **kwargs}
    return nn.LatentAttention(FEATURES, HEADS, **settings)


def tokens(length, dtype=np.float32):
    return np.random.default_rng(1).standard_normal((2, length, FEATURES)).astype(dtype)


def rms_norm(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def turned(x, positions, inverse):
    """Rotate neighbours of `[B, T, N, H]` as complex numbers."""
    z = x[..., ::2] + 1j * x[..., 1::2]
    z = z * np.exp(1j * positions[:, None] * inverse)[None, :, None]
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def formula(p, x, positions, inverse, scale):
    b, t, _ = x.shape
    q = rms_norm(p["q_norm"], x @ p["q_down"]["kernel"]) @ p["q_up"]["kernel"]
    q_nope, q_rope = np.split(q.reshape(b, t, HEADS, 8), 2, -1)
    c, k_rope = np.split(x @ p["kv_down"]["kernel"], [6], -1)
    c = rms_norm(p["kv_norm"], c)
    kv = (c @ p["kv_up"]["kernel"]).reshape(b, t, HEADS, 7)
    k_rope = np.repeat(k_rope[:, :, None], HEADS, 2)
    rotate = lambda x: turned(x, positions, inverse)
    q = np.concatenate([q_nope, rotate(q_rope)], -1)
    k = np.concatenate([kv[..., :4], rotate(k_rope)], -1)
    logits = scale * np.einsum("btnd,bsnd->bnts", q, k)
    logits = np.where(positions[:, None] >= positions, logits, -np.inf)
    weights = np.exp(logits)
    weights = weights / weights.sum(-1, keepdims=True)
    y = np.einsum("bnts,bsnv->btnv", weights, kv[..., 4:])
    return y.reshape(b, t, -1) @ p["out"]["kernel"]


def test_equals_the_formula_with_the_score_factor_of_yarn(x64):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    params, apply = build(
        lambda: make(
            query_latent_features=5, frequencies=YARN, layout="interleaved", **wide
        )
    )
    x = tokens(5, np.float64)
    positions = np.array([3, 4, 6, 7, 11])
    found = jit(lambda x: apply(params, x, positions=positions))(x)
    values = jax.tree.map(np.asarray, params)
    assert round(YARN.score_factor, 4) == 1.5896
    scale = YARN.score_factor / np.sqrt(4 + 4)
    expected = formula(values, x, positions, YARN.inverse, scale)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_decoding_from_a_cache_equals_training():
    params, apply = build(make)
    _, expanded = build(lambda: make(absorb=False))
    _, absorbed = build(lambda: make(absorb=True))
    x = tokens(7)
    traces = []

    @jit
    def step(cache, x):
        traces.append(x.shape)
        return apply(params, x, cache=cache)

    full, same = jit(lambda x: (expanded(params, x), absorbed(params, x)))(x)
    np.testing.assert_allclose(full, same, atol=1e-5)
    cache, parts = latent_cache(2, 8, 6, 4), []
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 7)):
        y, cache = step(cache, x[:, start:stop])
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=1e-5)
    assert traces == [(2, 4, FEATURES), (2, 1, FEATURES)]
    assert cache.length.tolist() == [7, 7]
    numbers = sum(leaf.size for leaf in jax.tree.leaves(cache) if leaf.ndim == 3)
    assert numbers == 2 * 8 * (6 + 4)
    kept = cache.read().latent[:, :7] / params["kv_norm"]["scale"][None, None]
    np.testing.assert_allclose((kept**2).mean(-1), 1.0, rtol=1e-4)


def test_masks_of_the_call_are_added():
    params, apply = build(make)
    x = tokens(5)
    ids = np.array([[1, 1, 2, 2, 2], [1, 1, 2, 2, 0]])
    run = jit(lambda x: (apply(params, x, mask=segments(ids)), apply(params, x[:, :2])))
    packed, alone = run(x)
    np.testing.assert_allclose(packed[:, :2], alone, atol=1e-6)
    assert (packed[1, 4] == 0).all()


def test_only_weights_are_parameters_and_they_stack():
    stack = nnx.vmap(lambda rngs: make(rngs=rngs))
    shapes = nnx.eval_shape(lambda: stack(nnx.Rngs(0).split(3)))
    _, params, rest = nnx.split(shapes, nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    assert {leaf.shape for leaf in jax.tree.leaves(params)} == {
        (3, 8, 2 * (4 + 4)),
        (3, 8, 6 + 4),
        (3, 6),
        (3, 6, 2 * (4 + 3)),
        (3, 2 * 3, 8),
    }


def test_narrow_computation_and_narrow_results():
    params, apply = build(lambda: make(dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = jax.eval_shape(apply, params, jnp.ones((2, 3, FEATURES)))
    assert y.dtype == jnp.bfloat16


MISTAKES = {
    "heads": (lambda: nn.LatentAttention(8, 0, **SIZES, rngs=nnx.Rngs(0)), "num_heads"),
    "odd": (lambda: make(rope_features=3), "features must be even .* 3"),
    "frequencies": (
        lambda: make(rope_features=6, frequencies=YARN),
        "frequencies must be of 6 features .* got 2 pairs",
    ),
    "mask": (lambda: make(mask=segments(np.ones((1, 3), int))), "mask of a layer"),
    "positions": (
        lambda: make()(
            jnp.ones((1, 2, 8)),
            positions=np.arange(2),
            cache=latent_cache(1, 4, 6, 4),
        ),
        "positions must be None with a cache",
    ),
    "features": (
        lambda: jax.eval_shape(lambda: make()(jnp.ones((1, 2, 7)))),
        r"x must be floating .* 8\]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()
