"""Linear baselines equal their formulas, written with a table of all weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import _linear, efficient_attention, linear_attention


def inputs(length, keys, groups=2):
    rng = np.random.default_rng(0)
    shapes = [(2, length, 2 * groups, 5), (2, keys, 2, 5), (2, keys, 2, 3)]
    return [rng.normal(size=shape) for shape in shapes]


def elu_plus_one(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def expected_linear(q, k, v, seen):
    k, v = (np.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    weights = np.einsum("btnf,bsnf->bnts", elu_plus_one(q), elu_plus_one(k)) * seen
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("bnts,bsnv->btnv", weights, v)


def test_linear_attention_is_its_quadratic_formula(x64, monkeypatch):
    monkeypatch.setattr(_linear, "_CHUNK", 4)
    q, k, v = inputs(10, 13)
    valid = np.ones((2, 13), bool)
    valid[0, 2:5] = valid[1, :4] = False  # the first query of the second sees nothing
    after = np.arange(13) <= np.arange(3, 13)[:, None]
    dirty = np.where(valid[..., None, None], v, np.nan)

    def run(q, k, v, dirty):
        return (
            linear_attention(q, k, v),
            linear_attention(q, k, v, causal=True),
            linear_attention(q, k, dirty, causal=True, valid=valid),
        )

    found = jit_once(run)(q, k, v, dirty)
    keep = valid[:, None, None]
    for out, seen in zip(found, (1.0, after, after & keep), strict=True):
        np.testing.assert_allclose(out, expected_linear(q, k, v, seen), rtol=1e-12)
    assert (found[2][1, 0] == 0).all()


def test_gradients_are_finite_where_nothing_is_seen():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in inputs(4, 4))
    none = jnp.zeros((1, 4), bool)

    def loss(*x):
        linear = linear_attention(*x, valid=none, feature_map=jax.nn.relu)
        return (linear + efficient_attention(*x, valid=none)).sum()

    value, gradients = jit_once(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
    assert value == 0
    assert all((g == 0).all() for g in gradients)


def test_efficient_attention_is_two_softmaxes(x64):
    q, k, v = inputs(4, 6)
    valid = np.array([[True] * 6, [True, False] * 3])
    dirty = np.where(valid[..., None, None], k, np.inf)
    out = jit_once(lambda *x: efficient_attention(*x, valid=valid))(q, dirty, v)
    softmax = lambda x, axis: np.exp(x) / np.exp(x).sum(axis, keepdims=True)
    shares = softmax(np.where(valid[..., None, None], k, -np.inf), 1)
    state = np.repeat(np.einsum("bskf,bskv->bkfv", shares, v), 2, axis=1)
    expected = np.einsum("btnf,bnfv->btnv", softmax(q, -1), state)
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_dtype_is_kept():
    q, k, v = (jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in inputs(4, 4))
    for run in (linear_attention, efficient_attention):
        out = jax.eval_shape(run, q, k, v)
        assert out.dtype == jnp.bfloat16
        assert out.shape == (2, 4, 4, 3)


def test_what_does_not_fit_is_refused():
    q, k, v = (jnp.asarray(x) for x in inputs(4, 3))
    with pytest.raises(ValueError, match="q must be at most as long as k if causal"):
        linear_attention(q, k, v, causal=True)
    with pytest.raises(ValueError, match="must fit, K dividing N"):
        linear_attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match=r"valid must be bool \(2, 3\) or \(1, 3\)"):
        efficient_attention(q, k, v, valid=jnp.ones((2, 4), bool))
