"""Statistics of codebooks, their moving averages, and dead codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import quantize
from genlib.quantize._codebook import draw_rows, unit

CODES = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
Z = np.array([[0.1, 0.1], [0.9, -0.2], [1.2, 0.1], [0, 1.5], [0.2, 2.2], [-0.1, 0]])
INDICES = np.array([0, 1, 1, 2, 2, 0])


def update(state, statistics, decay=0.8):
    return quantize.ema_update(state, statistics, decay=decay)


def test_one_step_of_the_moving_averages(x64):
    """The numbers are vector-quantize-pytorch's, and those of the closed form."""
    batch = quantize.codebook_statistics(jnp.asarray(Z), INDICES, 4)
    state = update(quantize.init_ema(CODES), batch)
    np.testing.assert_allclose(state["n"], [1.2, 1.2, 1.2, 0.8], rtol=1e-15)
    want = [[0, 0.0166667], [1.0166675, -0.0166667], [0.0333334, 1.9500014]]
    want += [[4.999983, 4.999983]]
    np.testing.assert_allclose(quantize.ema_codebook(state), want, atol=5e-7)


def test_an_unused_code_keeps_its_place_where_a_corrected_average_loses_it():
    decay, eps = 0.8, 1e-5
    batch = quantize.codebook_statistics(jnp.float32(Z), INDICES, 4)
    # Averages from 0, each divided by 1 - decay^step.
    n, total = ((1 - decay) * x / (1 - decay**1) for x in (batch.n, batch.sum))
    n = (n + eps) / (n.sum() + 4 * eps) * n.sum()
    corrected = total / n[:, None]
    np.testing.assert_allclose(corrected[3], [0.0, 0.0])
    assert quantize.nearest(corrected, Z[5:].astype("f")).tolist() == [3]

    ours = quantize.ema_codebook(update(quantize.init_ema(CODES), batch))
    np.testing.assert_allclose(ours[3], CODES[3], rtol=1e-5)
    assert quantize.nearest(ours, Z.astype("f")).tolist() == INDICES.tolist()


@pytest.mark.parametrize("decay", [0.99, 0.5, 0.0])
def test_an_unused_code_keeps_its_place_for_good(decay):
    batch = quantize.codebook_statistics(jnp.float32(Z), INDICES, 4)
    many = jit_once(
        lambda state, decay: jax.lax.fori_loop(
            0, 10_000, lambda _, state: update(state, batch, decay), state
        )
    )
    codes = quantize.ema_codebook(many(quantize.init_ema(CODES), decay))
    assert np.abs(codes[3] / 5 - 1).max() < 1e-3
    np.testing.assert_allclose(codes[1], Z[1:3].mean(0), atol=1e-4)


def test_masked_vectors_and_no_code_count_nothing(key):
    z = np.concatenate([Z, np.full((2, 2), np.nan)]).astype("f")
    indices, mask = np.append(INDICES, [1, 3]), np.arange(8) < 6
    sums = jit_once(
        lambda z, indices, mask: quantize.codebook_statistics(
            z, indices, 4, mask=mask, key=key
        )
    )
    padded, alone = sums(z, indices, mask), sums(z[:6], INDICES, None)
    jax.tree.map(np.testing.assert_array_equal, padded, alone)
    dropped = sums(z[:6], np.array([0, 1, -1, -1, 2, -1]), None)
    assert dropped.n.tolist() == [1, 1, 1, 0]

    none = sums(z, indices, mask & False)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(none))
    state = {"n": jnp.array([0.3, 1, 2, 1e-3]), "sum": jnp.float32(CODES) / 3}
    moved = quantize.reset_dead(update(state, none), none, share=0.5)
    jax.tree.map(np.testing.assert_array_equal, moved, state)


def test_sums_are_float32_of_bfloat16_vectors():
    z = jnp.ones((600, 2), jnp.bfloat16)
    batch = quantize.codebook_statistics(z, jnp.zeros(600, jnp.int32), 1)
    assert batch.n.dtype == batch.sum.dtype == jnp.float32
    assert batch.n.item() == batch.sum[0, 0].item() == 600


@pytest.mark.parametrize(("count", "size"), [(12, 4), (13, 5), (5, 5), (3, 7), (9, 1)])
def test_candidates_are_different_vectors_drawn_alike(count, size, key):
    rows = jnp.arange(1.0, count + 1)[:, None]
    mask = np.arange(count) % 4 != 1
    drawn = jax.jit(
        jax.vmap(
            lambda key, mask: draw_rows(key, rows, size, mask, None)[:, 0], (0, None)
        )
    )
    keys = jax.random.split(key, 2000)
    for some in (np.ones(count, bool), mask):
        left = np.flatnonzero(some) + 1
        draws = np.asarray(drawn(keys, some)).astype(int)
        different = [len(set(draw)) for draw in draws]
        assert set(different) == {min(size, len(left))}
        shares = np.bincount(draws.ravel(), minlength=count + 1) / draws.size
        noise = 4 * np.sqrt(1 / len(left) / 2000)
        np.testing.assert_allclose(shares[left], 1 / len(left), atol=noise)
        assert shares[left].sum() == pytest.approx(1)


def test_a_dead_code_starts_again_with_its_statistics(key):
    state = {"n": jnp.array([4.0, 0.1, 4.0]), "sum": jnp.ones((3, 2))}
    z = np.arange(10, 20, dtype="f").reshape(5, 2)
    batch = quantize.codebook_statistics(z, [0, 0, 2, 2, 2], 3, key=key)
    got = quantize.reset_dead(state, batch, share=0.1)
    np.testing.assert_allclose(got["n"], [4, 2.7, 4], rtol=1e-6)
    code = np.asarray(got["sum"][1] / got["n"][1])
    assert (np.abs(z - code).max(1) < 1e-5).sum() == 1
    np.testing.assert_allclose(code, batch.candidates[1])
    np.testing.assert_array_equal(got["sum"][::2], state["sum"][::2])
    # Not dead again before it had a chance: log(0.1) / log(0.99) = 229.1 updates.
    no_candidates = quantize.codebook_statistics(z, [0, 0, 2, 2, 2], 3)
    n, dead = np.asarray(got["n"]), []
    for _ in range(240):
        n = n + 0.01 * (np.array([4, 0, 4]) - n)
        dead.append(bool(n[1] < 0.1 * n.mean()))
    assert 220 < dead.index(True) < 230
    # Two candidates added up are no vector of the batch, and none is none.
    for other in (jax.tree.map(lambda x: x + x, batch), no_candidates):
        same = quantize.reset_dead(state, other, share=0.1)
        jax.tree.map(np.testing.assert_array_equal, same, state)


def test_parts_of_a_batch_propose_one_candidate_together(key):
    """Always proposing, no two parts ever would."""
    z = jax.random.normal(key, (4, 8, 3))
    keys = jax.random.split(key, (50, 4))

    def drawn(parts):
        one = lambda z, key: quantize.codebook_statistics(
            z, jnp.zeros(8, jnp.int32), 16, key=key, parts=parts
        )
        batch = jit_once(jax.vmap(jax.vmap(one), (None, 0)))(z, keys)
        return np.asarray(batch.drawn.sum(1)), np.asarray(batch.candidates.sum(1))

    assert set(drawn(1)[0].ravel()) == {4}
    counts, candidates = drawn(4)
    share = (counts == 1).mean()  # 4 (1/4) (3/4)^3 = 0.42
    assert abs(share - 0.421875) < 0.07
    rows = candidates[counts == 1][:, None] - np.asarray(z).reshape(1, 32, 3)
    assert (np.abs(rows).max(-1).min(-1) == 0).all()


def test_an_empty_batch_proposes_nothing(key):
    batch = quantize.codebook_statistics(jnp.ones((0, 2)), jnp.ones(0, int), 4, key=key)
    for leaf, shape in zip(batch, [(4,), (4, 2), (4, 2), (4,)], strict=True):
        np.testing.assert_array_equal(leaf, np.zeros(shape))


def test_wide_settings_do_not_widen_the_codebook(x64):
    state = quantize.init_ema(jnp.float32(CODES))
    assert quantize.ema_codebook(state, np.float64(1e-5)).dtype == jnp.float32


def test_lengths_beyond_the_reciprocal_of_the_least_number():
    """Compiled, z / 1e38 is z times 0, as the reciprocal is flushed to it."""
    z = jnp.array([[3e38, 3e38], [1.2e-38, 0.0], [1e-42, 0.0]])
    value, vjp = jax.vjp(jax.jit(unit), z)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(value[:2], [[half, half], [1.0, 0.0]], rtol=1e-6)
    assert np.isfinite(vjp(jnp.ones_like(z))[0]).all()


def test_settings_may_be_traced(key):
    state = quantize.init_ema(jnp.float32(CODES))
    batch = quantize.codebook_statistics(jnp.float32(Z), INDICES, 4, key=key)

    def step(decay, eps, share):
        moved = quantize.ema_update(state, batch, decay=decay, eps=eps)
        return quantize.reset_dead(moved, batch, share=share)

    settings = jnp.array([0.8, 0.9]), jnp.array([1e-5, 1e-6]), jnp.array([0.1, 0.9])
    many = jit_once(jax.vmap(step))(*settings)
    for i in range(2):
        one = step(*(float(setting[i]) for setting in settings))
        for name in ("n", "sum"):
            np.testing.assert_allclose(many[name][i], one[name], rtol=1e-6)


def test_what_does_not_fit_is_refused():
    z, state = jnp.ones((6, 2)), quantize.init_ema(jnp.ones((4, 2)))
    batch = quantize.codebook_statistics(z, INDICES, 4)
    cases = [
        (r"indices must be \[6\]", lambda: quantize.codebook_statistics(z, [0, 1], 4)),
        (
            "indices must be within 0 .. 1",
            lambda: quantize.codebook_statistics(z, INDICES, 2),
        ),
        (
            r"codebook must be .* \[K, D\]; it is float32\[3\]",
            lambda: quantize.init_ema(jnp.ones(3)),
        ),
        (
            "key must be a typed key",
            lambda: quantize.codebook_statistics(
                z, INDICES, 4, key=jax.random.PRNGKey(0)
            ),
        ),
        ("parts must be", lambda: quantize.codebook_statistics(z, INDICES, 4, parts=0)),
        (
            r"mask must be bool\[6\]",
            lambda: quantize.codebook_statistics(
                z, INDICES, 4, mask=np.ones((6, 1), bool)
            ),
        ),
        ("decay must be from 0 to 1", lambda: update(state, batch, 1.1)),
        ("eps must be positive", lambda: quantize.ema_update(state, batch, eps=0.0)),
        ("share must be above 0", lambda: quantize.reset_dead(state, batch, share=1.0)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
