"""Rectified rotary positions against scores whose distances are rectified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import causal, log_n, rerope, rope_frequencies, rotary, window

HEADS, FEATURES, LENGTH = 2, 16, 13
FREQUENCIES = rope_frequencies(FEATURES)._replace(factor=1.2, score_factor=0.9)
Q, K, V = np.random.default_rng(0).normal(size=(3, 2, LENGTH, HEADS, FEATURES))


def rectified(distance: np.ndarray, near: int, leak: float | None) -> np.ndarray:
    far = near + (0 if leak is None else (abs(distance) - near) / leak)
    return np.where(abs(distance) < near, distance, np.sign(distance) * far)


def oracle(distance: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return attention in float64 whose scores are those of given distances."""
    pairs = lambda x: x[..., :8] + 1j * x[..., 8:]
    turned = np.exp(1j * distance[..., None] * FREQUENCIES.inverse)
    products = np.einsum("btnp,bsnp,tsp->bnts", pairs(Q), pairs(K).conj(), turned)
    scores = products.real * 1.2**2 * 0.9 * FEATURES**-0.5
    weights = np.exp(scores) * seen
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnv->btnv", weights, V)


ROWS = np.arange(LENGTH)
DISTANCE = ROWS[:, None] - ROWS


def test_distances_of_the_sources_code() -> None:
    far = rectified(np.arange(4, 13), 4, 8.0)
    np.testing.assert_allclose(far, [4 + i / 8 for i in range(9)])
    assert rectified(np.arange(8), 4, None).tolist() == [0, 1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("leak", [None, 8.0, 2.5])
def test_scores_are_those_of_rectified_distances(x64, leak: float | None) -> None:
    both = rerope(FREQUENCIES, 4, leak, bidirectional=True)
    past = rerope(FREQUENCIES, 4, leak, layout="half")

    def run(q, k, v):
        options = {"impl": "naive", "mask": window(11)}
        return [x.attend(q, k, v, **options) for x in (both, past)]

    distance = rectified(DISTANCE, 4, leak)
    seen = abs(DISTANCE) < 11
    found = jit_once(run)(Q, K, V)
    np.testing.assert_allclose(found[0], oracle(distance, seen), atol=1e-12)
    seen &= DISTANCE >= 0
    np.testing.assert_allclose(found[1], oracle(distance, seen), atol=1e-12)


def test_decoding_is_the_last_row_of_the_whole() -> None:
    encoding = log_n(rerope(FREQUENCIES, 4, 2.0), 5)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (Q, K, V))
    sink = jnp.array([0.5, -1.0])
    kept = encoding.keys(k, ROWS)
    assert kept is k
    options = {"sink": sink, "softcap": 3.0, "return_lse": True, "impl": "naive"}
    places = jnp.stack([ROWS, ROWS + 3])  # traced, and different in each example

    def run(q, k, v, places):
        whole = encoding.attend(q, k, v, places, places, **options)
        moved = lambda *args: encoding.attend(*args, mask=causal(), **options)
        return whole, moved(q[:, -3:], k, v, places[:, -3:], places)

    whole, last = jit_once(run)(q, k, v, places)
    for every, few in zip(whole, last, strict=True):
        np.testing.assert_allclose(every[:, -3:], few, atol=2e-6)


def test_gradients_and_plain_rope_where_nothing_is_rectified() -> None:
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (Q, K, V))
    plain, leaky = rotary(FREQUENCIES), rerope(FREQUENCIES, 4, 1.0)

    def step(encoding, impl):
        def loss(q, k, v):
            options = {"mask": causal() & window(9), "impl": impl}
            out = encoding.attend(q, encoding.keys(k), v, **options)
            return jnp.sin(out).sum(), out

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    run = jit_once(lambda: (step(plain, "naive"), step(leaky, "tiled")))
    for one, other in zip(*map(jax.tree.leaves, run()), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5, rtol=1e-5)


def test_errors_name_the_argument() -> None:
    for near in (0, 2.5):
        with pytest.raises(ValueError, match=f"near must be an integer .*, got {near}"):
            rerope(FREQUENCIES, near)
    with pytest.raises(ValueError, match="leak must be at least 1, or None"):
        rerope(FREQUENCIES, 4, 0.5)
