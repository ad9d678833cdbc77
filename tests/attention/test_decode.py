"""Decoding with every kind of cache is attention over the whole sequence."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from laws.registry import jit_once

from genlib import attention as attn
from genlib.attention import cached_attention, causal, window

B, T, N, K, H, V, W = 2, 9, 4, 2, 8, 6, 4
COUNTS = (5, 3)  # of a prompt of 6 tokens, then 3 more are decoded
VALID = np.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], bool)
SIZES: dict[str, Any] = dict(batch=B, num_kv_heads=K, features=H, value_features=V)

KINDS: dict[str, Callable[..., Any]] = {
    "contiguous": lambda **kw: attn.kv_cache(capacity=12, **SIZES | kw),
    "rolling": lambda **kw: attn.rolling_cache(window=W, **SIZES | kw),
    "int8": lambda **kw: attn.quantized_cache(capacity=12, group=2, **SIZES | kw),
    "float8": lambda **kw: attn.quantized_cache(
        capacity=12, code_dtype=jnp.float8_e4m3fn, **SIZES | kw
    ),
    "paged": lambda **kw: attn.paged_cache(
        pages=7, page_size=3, max_pages=4, **SIZES | kw
    ),
}
ENCODING = attn.rotary(attn.rope_frequencies(H))
rng = np.random.default_rng(0)
Q, KEYS, VALUES = (
    rng.standard_normal(shape).astype(np.float32)
    for shape in ((B, T, N, H), (B, T, K, H), (B, T, K, V))
)


def garbage(cache: Any) -> Any:
    """Return an empty cache whose memory is not zero but NaN."""
    nan = lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float32 else x
    return jax.tree.map(nan, cache)


def turn(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotate `[B, T, heads, H]`, each half of the features one part of H/2 numbers."""
    angles = positions[:, :, None, None] * 10_000.0 ** (-np.arange(H // 2) / (H // 2))
    z = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


@jit_once
def kept(cache: Any, k: Any, v: Any) -> tuple[Any, Any]:
    return cache.append(ENCODING.keys(k, np.arange(T)), v).read()[:2]


@functools.cache
def oracle(kind: str) -> np.ndarray:
    """Return causal attention within the window over all T tokens, in float64."""
    positions = np.tile(np.arange(T), (B, 1))
    q, k, v = turn(Q, positions), turn(KEYS, positions), VALUES.astype(float)
    if kind in ("int8", "float8"):  # how well they keep is for the tests of caches
        k, v = (np.asarray(x, float)[:, :T] for x in kept(KINDS[kind](), KEYS, VALUES))
    k, v = k.repeat(N // K, 2), v.repeat(N // K, 2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    gap = np.arange(T)[:, None] - np.arange(T)
    weights = np.where((gap >= 0) & (gap < W), np.exp(scores), 0)
    return np.einsum("bnts,bsnv->btnv", weights / weights.sum(-1, keepdims=True), v)


def step(cache: Any, q: Any, k: Any, v: Any, valid: Any = None) -> Any:
    """Keep rotated keys and attend, as a layer does."""
    k = ENCODING.keys(k, cache.next_positions(q.shape[1], valid=valid))
    out, cache = cached_attention(
        q,
        k,
        v,
        cache,
        mask=causal() & window(W),
        valid=valid,
        attend=ENCODING.attend,
        impl="naive",
    )
    return cache, out


def chunks(cache: Any, size: int, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """Decode chunks of some size one after the other, under `scan`."""
    split = lambda x: jnp.moveaxis(x.reshape(B, -1, size, *x.shape[2:]), 1, 0)
    cache, out = jax.lax.scan(
        lambda cache, x: step(cache, *x), cache, tuple(map(split, (q, k, v)))
    )
    return cache, jnp.moveaxis(out, 0, 1).reshape(*q.shape[:3], V)


@jit_once
def many_ways(cache: Any, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    threes, all_at_once = chunks(cache, 3, q, k, v)[1], step(cache, q, k, v)[1]

    def ragged(x: Any) -> Any:  # examples of different lengths, padding NaN
        at = np.clip(np.cumsum(VALID, 1) - 1, 0, None)
        prompt = jnp.take_along_axis(x, at[:, :, None, None], 1)
        prompt = jnp.where(VALID[:, :, None, None], prompt, jnp.nan)
        then = np.array(COUNTS)[:, None] + np.arange(3)
        return prompt, jnp.take_along_axis(x, then[:, :, None, None], 1)

    (q, q_then), (k, k_then), (v, v_then) = map(ragged, (q, k, v))
    cache, prompt = step(cache, q, k, v, VALID)
    cache, then = chunks(cache, 1, q_then, k_then, v_then)
    return threes, all_at_once, (prompt, then, cache.length)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float8"])
def test_any_chunks_are_the_whole(kind: str) -> None:
    wanted = oracle(kind)
    cache = garbage(KINDS[kind]())
    threes, all_at_once, ragged = many_ways(cache, Q, KEYS, VALUES)
    np.testing.assert_allclose(threes, wanted, atol=1e-5, rtol=0)
    np.testing.assert_allclose(all_at_once, wanted, atol=1e-5, rtol=0)
    prompt, then, length = ragged
    assert length.tolist() == [8, 6]
    for i, n in enumerate(COUNTS):
        np.testing.assert_allclose(
            prompt[i, VALID[i]], wanted[i, :n], atol=1e-5, rtol=0
        )
        np.testing.assert_allclose(then[i], wanted[i, n : n + 3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_one_by_one_are_one_program_in_place(kind: str) -> None:
    chex.clear_trace_counter()
    jitted = jit_once(chex.assert_max_traces(step, n=1), donate_argnums=0)
    cache = KINDS[kind]()
    pointers = lambda: [x.unsafe_buffer_pointer() for x in jax.tree.leaves(cache)]
    outs, before = [], pointers()
    for t in range(T):
        now = slice(t, t + 1)
        cache, out = jitted(cache, *(jnp.array(x[:, now]) for x in (Q, KEYS, VALUES)))
        outs.append(out)
        assert pointers() == before
    assert cache.length.tolist() == [T, T]
    np.testing.assert_allclose(np.concatenate(outs, 1), oracle(kind), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_caches_keep_their_types(kind: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        cache = KINDS[kind](dtype=dtype)
        args = [jax.ShapeDtypeStruct(x.shape, dtype) for x in (Q, KEYS, VALUES)]
        after, out = jax.eval_shape(step, cache, *args)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, cache)
        assert out.dtype == dtype


def test_a_mask_of_the_model_is_never_wider_than_a_rolling_cache() -> None:
    cache = KINDS["rolling"]()

    def both(cache: Any, *x: Any) -> tuple[Any, Any]:
        wanted = attn.attention(*x, mask=causal() & window(W), impl="naive")
        return cached_attention(*x, cache, impl="naive")[0], wanted

    out, wanted = jit_once(both)(cache, Q, KEYS, VALUES)
    np.testing.assert_allclose(out, wanted, atol=1e-6)


def test_an_empty_cache_gives_exactly_zero() -> None:

    @jit_once
    def look(cache: Any) -> Any:
        view = cache.read()
        sides = dict(q_positions=np.arange(T), kv_positions=view.positions)
        return attn.attention(Q, *view[:2], mask=view.mask, impl="naive", **sides)

    for make in KINDS.values():
        np.testing.assert_array_equal(look(garbage(make())), np.zeros((B, T, N, V)))


def test_without_a_mask_tokens_see_those_after_them() -> None:
    """As the clean block of a block diffusion does."""

    def both(cache: Any, *x: Any) -> tuple[Any, Any]:
        out, _ = cached_attention(*x, cache, mask=None, impl="naive")
        return out, attn.attention(*x, impl="naive")

    out, wanted = jit_once(both)(KINDS["contiguous"](), Q, KEYS, VALUES)
    np.testing.assert_allclose(out, wanted, atol=1e-6)


def test_examples_and_heads_split_over_devices() -> None:
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = lambda x: jax.device_put(
        x, NamedSharding(mesh, P("data", None, "model") if x.ndim > 1 else P("data"))
    )
    one = [x[:, :1] for x in (Q, KEYS, VALUES)]
    for kind in ("contiguous", "rolling", "int8"):
        cache = KINDS[kind]()
        args = jax.tree.map(place, (cache, *map(jnp.array, one)))
        compiled = jit_once(step).lower(*args).compile()
        text = compiled.as_text()
        assert "all-gather" not in text
        assert "all-reduce" not in text
        after, out = compiled(*args)
        assert after.k.sharding.is_equivalent_to(args[0].k.sharding, 4)
        np.testing.assert_allclose(out, oracle(kind)[:, :1], atol=1e-5, rtol=0)
