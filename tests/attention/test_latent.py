"""Multi-head latent attention: expanded, absorbed and the formula of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import causal, latent_attention, padding
from genlib.train import flops

B, T, S, N = 2, 3, 5, 2
D_C, D_N, D_R, D_V = 6, 4, 2, 3
SHAPES = {
    "q_nope": (B, T, N, D_N),
    "q_rope": (B, T, N, D_R),
    "c": (B, S, D_C),
    "k_rope": (B, S, D_R),
    "w_uk": (D_C, N, D_N),
    "w_uv": (D_C, N, D_V),
}


def arrays(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(x), dtype) for x in SHAPES.values()]


def oracle(q_nope, q_rope, c, k_rope, w_uk, w_uv):
    """Return output and log-sum-exp of causal queries, the last T, head by head."""
    out, lse = np.zeros((B, T, N, D_V)), np.zeros((B, T, N))
    for b, t, n in np.ndindex(B, T, N):
        seen = slice(S - T + t + 1)
        keys = np.concatenate([c[b, seen] @ w_uk[:, n], k_rope[b, seen]], -1)
        query = np.concatenate([q_nope[b, t, n], q_rope[b, t, n]])
        weights = np.exp(keys @ query / np.sqrt(D_N + D_R))
        out[b, t, n] = weights @ (c[b, seen] @ w_uv[:, n]) / weights.sum()
        lse[b, t, n] = np.log(weights.sum())
    return out, lse


@functools.cache
def both_forms(impl, **options):
    """Return a program of results and gradients, expanded and absorbed."""

    def run(args, cotangent, **traced):
        def one(absorb):
            call = functools.partial(
                latent_attention, absorb=absorb, impl=impl, return_lse=True
            )
            y, vjp = jax.vjp(lambda *args: call(*args, **options, **traced), *args)
            return y, vjp(cotangent)

        return one(False), one(True)

    return jit_once(run)


def ones(dtype):
    return jnp.ones((B, T, N, D_V), dtype), jnp.ones((B, T, N))


@pytest.mark.parametrize("impl", ["naive", "tiled"])
def test_both_forms_equal_the_formula(impl):
    args = arrays(jnp.float32)
    run = both_forms(impl, mask=causal())
    (expanded, grads), (absorbed, more_grads) = run(args, ones(jnp.float32))
    expected = oracle(*(np.asarray(x, np.float64) for x in args))
    for found in (expanded, absorbed):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), found, expected
        )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), grads, more_grads
    )


def test_both_forms_are_exact_in_float64(x64):
    args = arrays(jnp.float64)
    (expanded, grads), (absorbed, more_grads) = both_forms("naive", mask=causal())(
        args, ones(jnp.float64)
    )
    expected = oracle(*map(np.asarray, args))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13)
    for found in (expanded, absorbed):
        jax.tree.map(close, found, expected)
    jax.tree.map(close, grads, more_grads)


def test_both_forms_keep_bfloat16():
    args = arrays(jnp.bfloat16)
    forms = [
        functools.partial(latent_attention, absorb=x, impl="naive", mask=causal())
        for x in (False, True)
    ]
    expected, _ = oracle(*(np.asarray(x, np.float64) for x in args))
    for out in jit_once(lambda args: [form(*args) for form in forms])(args):
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(out), expected, atol=0.06)


def test_masked_latents_and_queries_spoil_nothing():
    clean = arrays(jnp.float32)
    spoilt = list(clean)
    for i in (2, 3):
        spoilt[i] = clean[i].at[0, 1].set(jnp.nan).at[1, 1].set(jnp.inf)
    spoilt[0] = clean[0].at[0, 0, 1].set(jnp.nan)
    hide = jnp.ones((B, S), bool).at[:, 1].set(False)
    out, lse = ones(jnp.float32)
    cotangent = out.at[0, 0, 1].set(0.0), lse.at[0, 0, 1].set(0.0)
    run = both_forms("naive")
    expected = run(clean, cotangent, mask=padding(hide))
    found = run(spoilt, cotangent, mask=padding(hide))
    for ((y, _), grads), ((y_clean, _), grads_clean) in zip(
        found, expected, strict=True
    ):
        assert jnp.isnan(y[0, 0, 1]).all()
        np.testing.assert_array_equal(y[1], y_clean[1])
        np.testing.assert_array_equal(y[0, 1:], y_clean[0, 1:])
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), grads, grads_clean
        )


def shapes(queries, keys, heads, d_c, d_n, d_r, d_v):
    sizes = [
        (1, queries, heads, d_n),
        (1, queries, heads, d_r),
        (1, keys, d_c),
        (1, keys, d_r),
        (d_c, heads, d_n),
        (d_c, heads, d_v),
    ]
    return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


def cost(absorb, *args):
    return flops(
        functools.partial(latent_attention, absorb=absorb, impl="naive"), *args
    )


def test_absorbed_decoding_takes_a_hundredth_of_the_products():
    args = shapes(1, 1024, 16, 512, 128, 64, 128)
    expanded, absorbed = cost(False, *args), cost(True, *args)
    assert expanded == 2 * (1024 * 16 * 512 * 256 + 1024 * 16 * (192 + 128))
    assert absorbed == 2 * (16 * 512 * 256 + 1024 * 16 * (576 + 512))
    assert expanded / absorbed > 107
    assert cost(None, *args) == absorbed


@pytest.mark.parametrize("queries", [1, 100, 200, 1024])
def test_what_is_cheaper_is_chosen(queries):
    args = shapes(queries, 1024, 16, 512, 128, 64, 128)
    assert cost(None, *args) == min(cost(False, *args), cost(True, *args))


def test_scale_and_other_options_are_those_of_attention():
    args = arrays(jnp.float32)
    options = dict(scale=jnp.float32(0.3), softcap=2.0, sink=jnp.ones(N))
    run = both_forms("naive")
    (first, _), (second, _) = run(args, ones(jnp.float32), **options)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), first, second
    )
    (plain, _), _ = run(args, ones(jnp.float32))
    assert jnp.abs(plain[0] - first[0]).max() > 0.1


MISTAKES = {
    "rank": (2, lambda x: x[..., None], r"c must be \[B, S, d_c\] = \[2, 'S', 'd_c'\]"),
    "heads": (
        1,
        lambda x: x[:, :, :1],
        r"q_rope must be .* 2, 'd_r'\] .*3, 1, 2\)",
    ),
    "latent": (4, lambda x: x[1:], r"w_uk must be .* = \[6, 2, 4\] .*\(5, 2, 4\)"),
    "dtype": (5, lambda x: x.astype(jnp.bfloat16), "w_uv must be .* float32, got bfl"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name):
    i, change, message = MISTAKES[name]
    args = arrays(jnp.float32)
    args[i] = change(args[i])
    with pytest.raises(ValueError, match=message):
        latent_attention(*args)
