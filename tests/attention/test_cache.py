"""What caches keep, what they refuse, and what becomes of a lost token."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import attention as attn
from genlib.attention import cached_attention, causal, window

B, K, H, V = 2, 2, 4, 6
SIZES: dict[str, Any] = dict(batch=B, num_kv_heads=K, features=H, value_features=V)
rng = np.random.default_rng(0)


def tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        rng.standard_normal((B, count, K, n)).astype(np.float32) for n in (H, V)
    )


append = jit_once(lambda cache, k, v, valid=None: cache.append(k, v, valid=valid))
read = jit_once(lambda cache: cache.read())
release = jit_once(lambda cache, rows: cache.release(rows))


def bounded() -> dict[str, Any]:
    """Return the kinds of caches that overflow, of a capacity of 6."""
    return {
        "contiguous": attn.kv_cache(capacity=6, **SIZES),
        "quantized": attn.quantized_cache(capacity=6, **SIZES),
        "paged": attn.paged_cache(pages=5, page_size=2, max_pages=3, **SIZES),
    }


@pytest.mark.parametrize("kind", bounded())
def test_overflow_is_refused_or_spoils_the_example_alone(kind: str) -> None:
    k, v = tokens(4)
    some = np.array([[True] * 4, [True, False, False, False]])
    cache = append(bounded()[kind], k, v, some)
    with pytest.raises(ValueError, match=r"append must fit.* 6 tokens.*examples \[0\]"):
        cache.append(k, v, valid=some)

    @jit_once
    def attend(cache: Any, q: Any, k: Any, v: Any) -> Any:
        # From 7 tokens on the last query sees none of the positions that there are.
        mask = causal() & window(2)
        return cached_attention(q, k, v, cache, mask=mask, valid=some, impl="naive")

    q = np.ones((B, 4, K, H), np.float32)
    out, over = attend(cache, q, k, v)
    assert over.length.tolist() == [8, 2]
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1, :1]).all()
    view = read(over)
    for x, new in ((view.k, k), (view.v, v)):
        assert np.isnan(x[0]).all()
        np.testing.assert_allclose(x[1, :2], new[1, [0, 0]], atol=0.02)

    # Spoilt for good, until it is released.
    over = append(over, k[:, :1], v[:, :1], np.array([[True], [False]]))
    assert np.isnan(read(over).k[0]).all()
    fresh = append(release(over, np.array([True, False])), k, v, some)
    assert fresh.length.tolist() == [4, 3]
    np.testing.assert_allclose(read(fresh).k[0, :4], k[0], atol=0.02)


def test_overflow_is_known_from_shapes() -> None:
    k, v = tokens(7)
    for cache in bounded().values():
        with pytest.raises(ValueError, match="at most 6 tokens, the capacity, got 7"):
            jax.eval_shape(lambda cache: cache.append(k, v), cache)


def test_padding_is_left_out_wherever_it_is() -> None:
    k, v = tokens(4)
    valid = np.array([[False, True, False, True], [True, True, True, False]])
    k, v = (np.where(valid[:, :, None, None], x, np.nan) for x in (k, v))
    cache = attn.kv_cache(capacity=6, **SIZES)
    positions = cache.next_positions(4, valid=valid)
    assert positions.tolist() == [[-1, 0, 0, 1], [0, 1, 2, 2]]
    for made in (cache, attn.rolling_cache(window=6, **SIZES)):
        view = read(append(made, k, v, valid))
        np.testing.assert_array_equal(view.k[0, :2], k[0, [1, 3]])
        np.testing.assert_array_equal(view.v[1, :3], v[1, :3])
        seen = attn.visible(view.mask & window(5), [[0]] * 2, view.positions)
        assert seen.sum(-1).ravel().tolist() == [2, 3]


def test_a_rolling_cache_keeps_the_last_tokens() -> None:
    k, v = tokens(7)
    cache = append(attn.rolling_cache(window=3, **SIZES), k, v)
    view = read(append(cache, *(x[:, :1] for x in tokens(1))))
    assert view.positions.tolist() == [[6, 7, 5]] * 2
    np.testing.assert_array_equal(view.k[:, [2, 0]], k[:, 5:])
    np.testing.assert_array_equal(view.v[:, [2, 0]], v[:, 5:])


@pytest.mark.parametrize("group", [None, 2])
@pytest.mark.parametrize("code_dtype", [jnp.int8, jnp.float8_e4m3fn])
def test_quantized_numbers_are_as_near_as_said(code_dtype: Any, group: Any) -> None:
    k, v = tokens(6)
    k *= 10.0 ** rng.integers(-6, 6, (B, 6, K, 1))
    k[:, 1] = 0
    k[0, 2, 0, 1], k[0, 3, 0, 0] = np.nan, -np.inf
    v[0, 4, 1] = np.nan
    sizes = SIZES | dict(capacity=6, code_dtype=code_dtype, group=group)
    view = read(append(attn.quantized_cache(**sizes), k, v))
    largest = 127 if code_dtype == jnp.int8 else 448
    for x, kept in ((k, view.k), (v, view.v)):
        groups = (*x.shape[:-1], -1, group or x.shape[-1])
        x, kept = (np.asarray(each, float).reshape(groups) for each in (x, kept))
        scale = np.abs(x).max(-1, keepdims=True) / largest
        bad = ~np.isfinite(scale)
        np.testing.assert_array_equal(np.isnan(kept), np.broadcast_to(bad, x.shape))
        half = scale / 2
        if code_dtype != jnp.int8:
            half = np.maximum(np.abs(x) / 16, scale / 1024)
        error = np.abs(x - kept)[~bad[..., 0]]
        bound = np.broadcast_to(half, x.shape)[~bad[..., 0]]
        rounding = 1e-6 * largest * np.broadcast_to(scale, x.shape)[~bad[..., 0]]
        assert (error <= bound + rounding).all()
        assert (error > bound / 2).any()
    np.testing.assert_array_equal(view.k[:, 1], 0)


def test_a_latent_cache_holds_what_it_says() -> None:
    cache = attn.latent_cache(B, 8, latent_features=512, rope_features=64)
    assert sum(x.size for x in jax.tree.leaves(cache) if x.ndim > 1) == 576 * B * 8
    c, rope = (rng.standard_normal((B, 3, n)).astype(np.float32) for n in (512, 64))
    valid = np.array([[True] * 3, [True, False, True]])
    cache = append(cache, c, rope, valid)
    view = read(cache)
    np.testing.assert_array_equal(view.latent[0, :3], c[0])
    np.testing.assert_array_equal(view.rope[1, :2], rope[1, [0, 2]])
    seen = attn.visible(view.mask, np.arange(1), view.positions)
    assert seen[:, 0, 0].sum(-1).tolist() == [3, 2]
    over = append(append(cache, c, rope), c, rope)
    assert all(np.isnan(x[0]).all() and np.isfinite(x[1]).all() for x in read(over)[:2])
    with pytest.raises(ValueError, match=r"rope must be float32 \[2, T, 64\]"):
        cache.append(c, c)


def test_pages_go_to_whom_needs_them() -> None:
    """Ragged, interleaved, released and refilled, it is the contiguous cache."""
    sizes = dict(page_size=2, max_pages=4, pages=6)
    paged, contiguous = (
        attn.paged_cache(**sizes, **SIZES),
        attn.kv_cache(capacity=8, **SIZES),
    )
    highest = 0
    for _ in range(25):
        k, v = tokens(3)
        valid = rng.random((B, 3)) < 0.4
        length = np.asarray(contiguous.length)
        full = (length + 3 > 8) | (rng.random(B) < 0.1)
        full[1] |= length.sum() > 4  # six pages for two examples of four
        paged, contiguous = (
            append(release(cache, full), k, v, valid) for cache in (paged, contiguous)
        )
        table = np.asarray(paged.table)
        used = table[table >= 0]
        assert len(set(used)) == len(used)
        assert used.max(initial=0) < 6
        assert (-(-paged.length // 2)).tolist() == (table >= 0).sum(1).tolist()
        highest = max(highest, len(used))
        one, two = read(paged), read(contiguous)
        assert paged.length.tolist() == contiguous.length.tolist()
        there = np.arange(8) < np.asarray(paged.length)[:, None]
        np.testing.assert_array_equal(one.k[there], two.k[there])
        np.testing.assert_array_equal(one.v[there], two.v[there])
        np.testing.assert_array_equal(one.positions, two.positions)
    assert highest >= 5


def test_without_a_free_page_an_example_is_spoilt() -> None:
    cache = attn.paged_cache(pages=3, page_size=2, max_pages=3, **SIZES)
    k, v = tokens(3)
    with pytest.raises(ValueError, match=r"append must fit.*examples \[1\]"):
        cache.append(k, v)
    cache = append(cache, k, v)
    assert cache.table.tolist() == [[0, 1, -1], [2, -1, -1]]
    view = read(cache)
    np.testing.assert_array_equal(view.k[0, :3], k[0])
    assert np.isnan(view.k[1]).all()
    # Pages that become free do not bring the lost token back.
    second = np.array([False, True])
    cache = append(release(cache, ~second), k, v, np.tile(second[:, None], 3))
    assert cache.table.tolist() == [[-1, -1, -1], [2, -1, -1]]
    assert np.isnan(read(cache).v[1]).all()
    cache = append(release(cache, second), k, v, np.eye(2, 3, 1) > 0)
    np.testing.assert_array_equal(read(cache).v[:, 0], v[[0, 1], [1, 2]])


def test_caches_are_trees_of_arrays_that_vmap_takes() -> None:
    caches = [*bounded().values(), attn.rolling_cache(window=6, **SIZES)]
    leaves, treedef = jax.tree.flatten(caches)
    assert all(isinstance(x, jax.Array) for x in leaves)
    chex.assert_trees_all_equal(treedef.unflatten(leaves), caches)
    k, v = (jnp.array(x) for x in tokens(3))

    @jit_once
    def both(caches: Any) -> Any:
        after = lambda cache, k: [x[:, :3] for x in cache.append(k, v).read()[:2]]
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), caches)
        ks = jnp.stack([k, k[::-1]])
        each = jax.vmap(lambda caches, k: [after(cache, k) for cache in caches])
        second = jax.tree.map(lambda x: x[1], each(stacked, ks))
        return second, [after(cache, k[::-1]) for cache in caches]

    chex.assert_trees_all_equal(*both(caches))


def test_gradients_reach_keys_and_values() -> None:
    k, v = tokens(3)
    cache = attn.kv_cache(capacity=4, **SIZES)

    def total(k: Any, v: Any) -> Any:
        view = cache.append(k, v).read()
        return (view.k.sum() + 2 * view.v.sum()).astype(jnp.float32)

    one, two = jit_once(jax.grad(total, (0, 1)))(k, v)
    np.testing.assert_array_equal(one, np.ones_like(k))
    np.testing.assert_array_equal(two, 2 * np.ones_like(v))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attn.kv_cache(1, 0, 1, 1), "capacity must be at least 1, got 0"),
        (lambda: attn.rolling_cache(1, -2, 1, 1), "window must be at least 1, got -2"),
        (
            lambda: attn.kv_cache(1, 1, 1, 1, dtype=jnp.int8),
            "dtype must be floating, got int8",
        ),
        (
            lambda: attn.quantized_cache(1, 4, 1, 6, group=4),
            "group must divide 6 features, got 4",
        ),
        (
            lambda: attn.quantized_cache(1, 4, 1, 6, code_dtype=jnp.uint8),
            "code_dtype must be int8 or float8_e4m3fn, got uint8",
        ),
        (lambda: attn.paged_cache(0, 4, 1, 1, 1, 1), "pages must be at least 1, got 0"),
    ],
)
def test_sizes_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_tokens_are_checked() -> None:
    k, v = (jnp.asarray(x) for x in tokens(2))
    half = k.astype(jnp.bfloat16)
    caches = [*bounded().values(), attn.rolling_cache(window=3, **SIZES)]
    for cache in caches:
        with pytest.raises(ValueError, match=r"k must be float32 \[2, T, 2, 4\]"):
            cache.append(v, v)
        with pytest.raises(ValueError, match=r"k must be float32 .*, got bfloat16"):
            cache.append(half, v)
        with pytest.raises(ValueError, match=r"v must be float32 \[2, T, 2, 6\]"):
            cache.append(k, v[:, :1])
        with pytest.raises(ValueError, match="q must be of the tokens of k"):
            cached_attention(k[:, :1], k, v, cache)
        with pytest.raises(ValueError, match="one T > 0"):
            cache.append(k[:, :0], v[:, :0])
        with pytest.raises(ValueError, match=r"valid must be bool \[2, 2\], got int32"):
            cache.append(k, v, valid=jnp.ones((2, 2), jnp.int32))
        with pytest.raises(ValueError, match=r"rows must be bool \[2\]"):
            cache.release(jnp.zeros(2))
