"""Encodings of positions against float64 attention with the same scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import (
    Encoding,
    alibi,
    attention,
    biased,
    causal,
    hwfa,
    log_n,
    log_n_factor,
    no_positions,
    relative_bias,
    rope_frequencies,
    rotary,
    visible,
    yarn_frequencies,
)

LENGTH, HEADS, FEATURES = 12, 4, 16
NORMAL = np.random.default_rng(1).normal(size=(3, 2, LENGTH, HEADS, FEATURES))
Q, K, V = NORMAL.astype(jnp.bfloat16).astype(np.float64)
K, V = K[:, :, :2], V[:, :, :2]  # two heads of queries for each of keys
PLACES = np.stack([np.arange(LENGTH), np.arange(LENGTH) + 700])
DISTANCE = PLACES[:, :, None] - PLACES[:, None]
YARN = yarn_frequencies(12, 40.0, 16, mscale=0.5, mscale_all=1.0)
LEARNED = np.random.default_rng(2).normal(size=(8, HEADS))


def turns(inverse: np.ndarray, distance: np.ndarray, first: int) -> np.ndarray:
    """Return `q R(distance) k` for pairs i, i + r of features from `first` on."""
    r = len(inverse)
    pairs = lambda x: x[..., first : first + r] + 1j * x[..., first + r : first + 2 * r]
    q, k = pairs(Q), np.repeat(pairs(K), 2, 2)
    turned = np.exp(1j * distance[..., None] * inverse)
    return np.einsum("btnp,bsnp,btsp->bnts", q, k.conj(), turned).real


def products(first: int = 0) -> np.ndarray:
    return np.einsum("btnd,bsnd->bnts", Q[..., first:], np.repeat(K, 2, 2)[..., first:])


def log_factor() -> np.ndarray:
    return np.maximum(np.log(PLACES + 1.0) / np.log(8), 1)[:, None, :, None]


def grid_scores() -> np.ndarray:
    # With halves as pairs of all axes: features 0-3 and 8-11 turn by the row.
    rows, columns = PLACES // 3, PLACES % 3
    inverse = rope_frequencies(8).inverse
    parts = []
    for places, first in ((rows, 0), (columns, 4)):
        take = np.r_[first : first + 4, first + 8 : first + 12]
        distance = places[:, :, None] - places[:, None]
        q, k = Q[..., take], np.repeat(K, 2, 2)[..., take]
        pairs = lambda x: x[..., :4] + 1j * x[..., 4:]
        turned = np.exp(1j * distance[..., None] * inverse)
        parts.append(
            np.einsum("btnp,bsnp,btsp->bnts", pairs(q), pairs(k).conj(), turned).real
        )
    return (parts[0] + parts[1]) / 4


def rotary_scores() -> np.ndarray:
    turned = turns(YARN.inverse, DISTANCE, 0) * YARN.factor**2 + products(12)
    return turned * YARN.score_factor / 4


def t5_scores() -> np.ndarray:
    # 8 buckets, up to 32: 0, 1, 2, 3, and then from 4 2**(3 i / 4).
    starts = [1, 2, 3, 4, 7, 12, 20]
    buckets = np.searchsorted(starts, np.maximum(DISTANCE, 0), side="right")
    return products() / 4 + np.moveaxis(LEARNED[buckets], -1, 1)


CASES = {
    "none": (no_positions(), lambda: products() / 4),
    "rotary": (rotary(YARN), rotary_scores),
    "grid": (rotary(rope_frequencies(8), grid=(1, 3)), grid_scores),
    "alibi": (
        biased(alibi(HEADS)),
        lambda: (
            products() / 4
            - abs(DISTANCE[:, None]) * 0.25 ** np.arange(1, 5)[:, None, None]
        ),
    ),
    "relative": (
        biased(relative_bias(LEARNED, bidirectional=False, max_distance=32)),
        t5_scores,
    ),
    "log_n": (log_n(no_positions(), 8), lambda: products() / 4 * log_factor()),
    "log_n_rotary": (log_n(rotary(YARN), 8), lambda: rotary_scores() * log_factor()),
}


def oracle(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores) * (DISTANCE >= 0)[:, None]
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnv->btnv", weights, np.repeat(V, 2, 2))


def test_encodings_are_their_scores(x64) -> None:
    def run(q, k, v, places):
        return {
            name: encoding.attend(
                q,
                encoding.keys(k, places),
                v,
                places,
                places,
                mask=causal(),
                impl="naive",
            )
            for name, (encoding, _) in CASES.items()
        }

    found = jit_once(run)(Q, K, V, PLACES)
    for name, (_, scores) in CASES.items():
        np.testing.assert_allclose(
            found[name], oracle(scores()), atol=1e-12, err_msg=name
        )


def pieces(encoding: Encoding, q, k, v, places) -> tuple[jax.Array, jax.Array]:
    """Return the last rows of the whole, and those over keys kept in two parts."""
    parts = (slice(0, 5), slice(5, None))
    kept = [encoding.keys(k[:, part], places[:, part]) for part in parts]
    options = {"mask": causal(), "impl": "naive"}
    whole = encoding.attend(q, encoding.keys(k, places), v, places, places, **options)
    few = q[:, -2:], jnp.concatenate(kept, 1), v, places[:, -2:], places
    return whole[:, -2:], encoding.attend(*few, **options)


def test_kept_keys_and_gradients() -> None:
    def loss(q, k, v, places):
        names = ("grid", "alibi", "relative", "log_n_rotary")
        pairs = [pieces(CASES[name][0], q, k, v, places) for name in names]
        return sum(jnp.sin(whole).sum() for whole, _ in pairs), pairs

    step = jax.grad(loss, (0, 1, 2), has_aux=True)
    arrays = [jnp.asarray(x, jnp.float32) for x in (Q, K, V)]
    grads, pairs = jit_once(step)(*arrays, PLACES)
    for whole, few in pairs:
        np.testing.assert_allclose(whole, few, atol=2e-6)
    assert all(jnp.isfinite(x).all() for x in grads)


@pytest.mark.parametrize("name", ["log_n_rotary", "alibi"])
def test_half_precision(name: str) -> None:
    encoding, scores = CASES[name]

    def run(q, k, v):
        return encoding.attend(q, encoding.keys(k), v, mask=causal(), impl="naive")

    out = jit_once(run)(*(jnp.asarray(x[:1], jnp.bfloat16) for x in (Q, K, V)))
    assert out.dtype == jnp.bfloat16
    error = np.asarray(out, np.float64) - oracle(scores())[:1]
    assert np.sqrt((error**2).mean()) < 2**-8


def test_log_n_is_1_in_training() -> None:
    factors = log_n_factor(jnp.array([0, 1, 512, 1024, 4096, 16384]), 512)
    expected = [1, 1, 1, 1.111111, 1.333333, 1.555556]
    np.testing.assert_allclose(factors, expected, atol=1e-6)


def test_options_reach_attention_or_what_is_in_its_place() -> None:
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (Q, K, V))
    sink = jnp.arange(4.0)
    options = {"softcap": 2.0, "sink": sink, "return_lse": True, "scale": 0.5}
    seen = []

    def noted(*args, **options):
        seen.append(options)
        return attention(*args, **options)

    def run(q, k, v):
        given = no_positions().attend(q, k, v, attend=noted, impl="naive", **options)
        return given, attention(q, k, v, impl="naive", **options)

    for one, other in zip(*jit_once(run)(q, k, v), strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen[0]["softcap"] == 2.0
    assert seen[0]["q_positions"] is None


def test_hwfa_is_windows_and_a_full_layer() -> None:
    *first, (full, mask) = hwfa(4, rope_frequencies(16), 64)
    # (w - 1) 3 + 1 <= 48
    assert visible(first[0][1], np.array([63]), np.arange(64)).sum() == 16
    assert len(first) == 3
    assert visible(mask, np.array([63]), np.arange(64)).sum() == 64
    q = jnp.asarray(Q[:1], jnp.float32)
    assert full.keys(q) is q
    given = hwfa(4, rope_frequencies(16), 64, size=5)
    assert visible(given[0][1], np.array([63]), np.arange(64)).sum() == 5
    assert len(hwfa(1, rope_frequencies(16), 64)) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: biased(None), "bias must be a `Bias`, got NoneType"),
        (lambda: log_n(no_positions(), 1), "train_length must be at least 2, got 1"),
        (lambda: rotary([YARN, YARN]), "frequencies must be one without a grid"),
        (
            lambda: rotary([YARN, rope_frequencies(4)], grid=(2, 2)),
            "must have one score_factor",
        ),
        (lambda: hwfa(0, YARN, 64), "depth must be positive"),
        (lambda: hwfa(100, YARN, 64), "train_length must give 100 layers a window"),
    ],
)
def test_errors_name_the_argument(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_errors_when_it_attends() -> None:
    q = np.ones((1, 3, 2, 4), np.float32)
    with pytest.raises(ValueError, match="bias must be None, as the encoding is"):
        biased(alibi(2)).attend(q, q, q, bias=alibi(2))
    with pytest.raises(ValueError, match="give both q_positions and kv_positions"):
        rotary(rope_frequencies(4)).attend(q, q, q, np.arange(3))
    with pytest.raises(ValueError, match="at most 2 pairs of features, got 6"):
        rotary(YARN).attend(q, q, q)
