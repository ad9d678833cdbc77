"""Base distributions against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once
from scipy import stats
from scipy.special import logsumexp

from genlib import flows

Z = np.random.default_rng(0).standard_normal((5, 3)) * 2
LINEAR = flows.Conditioner(
    init=lambda key, x, features, cond=None: {
        "w": jax.random.normal(key, (x.shape[-1], features), x.dtype)
    },
    apply=lambda params, x, features, cond=None: x @ params["w"],
)


def test_a_trained_normal_of_a_pytree(key, x64):
    z = (jnp.asarray(Z), {"b": jnp.asarray(Z[:, None])})
    base = flows.normal(trainable=True)
    params = base.init(key, z)
    fresh = flows.normal().log_prob({}, z)
    np.testing.assert_allclose(base.log_prob(params, z), fresh, rtol=1e-12)
    np.testing.assert_allclose(fresh, 2 * stats.norm.logpdf(Z).sum(1), rtol=1e-12)
    params["1"] = {"mean": jnp.full((1, 3), 2.0), "log_scale": jnp.full((1, 3), -1.0)}
    scale = 0.5 * np.array([1.0, np.exp(-1)])
    expected = stats.norm.logpdf(Z, 0, scale[0]) + stats.norm.logpdf(Z, 2, scale[1])
    got = base.log_prob(params, z, temperature=0.5)
    np.testing.assert_allclose(got, expected.sum(1), rtol=1e-12)
    like = (z[0], {"b": jax.ShapeDtypeStruct((4000, 1, 3), jnp.bfloat16)})
    draw = base.sample(key, params, like, temperature=0.5)
    assert draw[0].shape == (5, 3)
    assert draw[1]["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(draw[1]["b"].astype(float).std(), scale[1], rtol=0.03)
    np.testing.assert_allclose(draw[1]["b"].astype(float).mean(), 2.0, rtol=0.01)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 2, 3)])
def test_a_conditional_normal(shape, key, x64):
    """A class vector speaks for all of z, a map of vectors for each position."""
    z = jax.random.normal(key, shape)
    base = flows.normal(conditioner=LINEAR)
    for cond in (z[(slice(None), *(0,) * (z.ndim - 2))] + 1, z[..., :2] + 1):
        params = base.init(key, z, cond)
        raw = np.asarray(cond @ params["0"]["w"]).reshape(*shape, 2)
        scale = np.exp(2 * np.tanh(raw[..., 1] / 2))
        expected = stats.norm.logpdf(z, raw[..., 0], scale).reshape(5, -1).sum(1)
        np.testing.assert_allclose(base.log_prob(params, z, cond), expected, rtol=1e-10)
    mean = base.sample(key, params, z, cond, temperature=0.0)
    np.testing.assert_allclose(mean, raw[..., 0], atol=1e-12)


def test_uniform_is_nothing_outside():
    z = jnp.array([[0.0, 1.0], [0.5, 0.5], [0.5, 1.1], [-0.1, 2.0]])
    run = lambda z: (flows.uniform().log_prob({}, z).sum(), z)
    assert flows.uniform().log_prob({}, z).tolist() == [0.0, 0.0, -np.inf, -np.inf]
    np.testing.assert_array_equal(jax.grad(run, has_aux=True)(z)[0], 0.0)


@pytest.mark.parametrize("df", [0.5, 1.0, 4.0, 19.0, 21.0, 1e4])
def test_student_t(df, x64):
    got = flows.student_t(df).log_prob({}, jnp.asarray(Z))
    np.testing.assert_allclose(got, stats.t.logpdf(Z, df).sum(1), rtol=1e-10)


def test_trained_tails(key):
    """The gradient of the degrees of freedom is that of the density."""
    base = flows.student_t(3.0, trainable=True)
    z = jnp.asarray(Z, jnp.float32)
    params = base.init(key, z)
    like = jax.ShapeDtypeStruct((4000,), jnp.float32)

    def run(key, params):
        gradient = jax.grad(lambda params: base.log_prob(params, z).sum())(params)
        return gradient["log_df"], base.sample(key, params, like)

    got, draw = jit_once(run)(key, params)
    steps = stats.t.logpdf(Z, 3 * np.exp([[[1e-4]], [[-1e-4]]])).sum((1, 2))
    np.testing.assert_allclose(got, (steps[0] - steps[1]) / 2e-4, rtol=1e-3)
    assert stats.kstest(np.asarray(draw), stats.t(3).cdf).pvalue > 0.01


def test_a_mixture_starts_apart_on_its_data(key):
    z = jnp.asarray(Z, jnp.float32)
    base = flows.mixture(4)
    params = base.init(key, z)
    means = np.asarray(params["mean"])
    assert len(np.unique(means, axis=0)) == 4
    assert all(row.tolist() in z.tolist() for row in means)
    np.testing.assert_allclose(params["log_scale"][0], np.log(Z.std(0)), rtol=1e-4)


def test_a_mixture_is_its_components(key):
    base = flows.mixture(2)
    logits, mean = np.array([0.3, -0.5]), np.array([[-5.0, 0.0], [5.0, 1.0]])
    scale = np.array([[1.0, 0.5], [2.0, 0.2]])
    params = {"logits": logits, "mean": mean, "log_scale": np.log(scale)}
    params = jax.tree.map(jnp.float32, params)
    weights = np.exp(logits) / np.exp(logits).sum()
    z = Z[:, :2]
    parts = stats.norm.logpdf(z[:, None], mean[None], 0.7 * scale[None]).sum(2)
    expected = logsumexp(parts + np.log(weights)[None], 1)
    got = base.log_prob(params, jnp.float32(z), temperature=0.7)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    like = jax.ShapeDtypeStruct((20_000, 2), jnp.float32)
    draw = np.asarray(
        jit_once(lambda key: base.sample(key, params, like, temperature=0.7))(key)
    )
    second = draw[:, 0] > 0
    np.testing.assert_allclose(second.mean(), weights[1], atol=0.015)
    np.testing.assert_allclose(draw[second].mean(0), mean[1], atol=0.06)
    np.testing.assert_allclose(draw[second].std(0), 0.7 * scale[1], rtol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key, z: flows.normal(trainable=True, conditioner=LINEAR),
            r"trainable must be False with a conditioner",
        ),
        (
            lambda key, z: flows.normal(conditioner=LINEAR).init(key, z),
            r"cond must be \[B, C\].*its shape is None",
        ),
        (
            lambda key, z: flows.normal(conditioner=LINEAR).init(key, z, z[:2]),
            r"cond must be \[B, C\].*z \(5, 3\).*its shape is \(2, 3\)",
        ),
        (
            lambda key, z: flows.uniform().sample(key, {}, z, temperature=0.5),
            r"temperature must be 1 for the uniform distribution; it is 0\.5",
        ),
        (
            lambda key, z: flows.student_t().log_prob({}, z, temperature=2.0),
            r"temperature must be 1 for the Student-t distribution; it is 2\.0",
        ),
        (lambda key, z: flows.student_t(0.0), r"df must be positive; it is 0\.0"),
        (lambda key, z: flows.mixture(0), r"components must be at least 1; it is 0"),
        (
            lambda key, z: flows.mixture(6).init(key, z),
            r"z must have at least 6 examples.*\(5, 3\)",
        ),
        (
            lambda key, z: flows.mixture(2).init(key, (z, z)),
            r"z must be one array for a mixture",
        ),
    ],
)
def test_bad_arguments(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(key, jnp.asarray(Z, jnp.float32))
