"""Bounds of probabilistic PCA and their gradients, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once
from losses import ppca

from genlib import losses

# Four equal points with the mean and the covariance of N(0, I): the mean over them is
# the expectation of every quadratic function.
SIGMA_POINTS = np.sqrt(2) * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
ESTIMATORS = ("standard", "stl", "dreg")


@pytest.mark.parametrize(
    ("posterior", "w", "bound"),
    [
        (ppca.exact, ppca.ROTATED, ppca.LOG_PROB),
        (ppca.diagonal, ppca.W, -2.965085),
        (ppca.prior, ppca.W, -8.017374),
    ],
)
def test_golden_bounds(posterior, w, bound, x64, monkeypatch):
    """Of the evidence, with the expectation over noise in closed form."""
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape, dtype: jnp.asarray(SIGMA_POINTS, dtype)
    )
    x = jnp.repeat(ppca.X, 4, axis=0)
    np.testing.assert_allclose(ppca.log_prob(w, x), ppca.LOG_PROB, atol=1e-6)
    log_likelihood = ppca.log_likelihood(w)
    got = losses.elbo(jax.random.key(0), posterior, log_likelihood, x)
    np.testing.assert_allclose(-got.loss.mean(), bound, atol=1e-6)
    np.testing.assert_allclose(got.loss, got.reconstruction + got.kl)


def test_every_sample_of_the_exact_posterior_gives_the_evidence(x64):
    """With the prior as a function: log p(x, z) - log q(z|x) does not depend on z."""
    log_likelihood = ppca.log_likelihood(ppca.ROTATED)
    bound = losses.elbo(
        jax.random.key(0),
        ppca.exact,
        log_likelihood,
        jnp.array(ppca.X),
        prior=ppca.log_prior,
    )
    np.testing.assert_allclose(-bound.loss, ppca.LOG_PROB, atol=1e-6)


def test_settings_of_the_bound(key):
    """Samples are averaged, and beta, free bits, priors and trees do as they say."""
    x = jnp.array([[1.0, 2.0], [-1.0, 0.3]])
    encode = lambda x: (x, 0.5 * x)
    decode = lambda z, x: -z.sum(1)
    prior = jnp.ones_like(x), 0.2
    seen = []

    def watch(z, x):
        seen.append(z)
        return decode(z, x)

    @jit_once
    def run(key, x):
        plain = losses.elbo(key, encode, watch, x, samples=3, prior=prior)
        one = losses.elbo(key, encode, decode, x, prior=prior)
        weighed = losses.elbo(
            key, encode, decode, x, samples=3, prior=prior, beta=2.0, free_bits=0.7
        )
        tree = losses.elbo(
            key,
            lambda x: tuple({"a": m, "b": 2 * m} for m in encode(x)),
            lambda z, x: decode(z["a"], x),
            x,
            free_bits=lambda kl: losses.free_bits(kl, 0.7, over="batch"),
        )
        half = losses.elbo(key, encode, decode, x.astype(jnp.bfloat16))
        mean = losses.kl_normal(x, 0.5 * x), losses.kl_normal(2 * x, x)
        return plain, one, weighed, tree, half, mean

    plain, one, weighed, tree, half, standard = run(key, x)
    kl = losses.kl_normal(*encode(x), *prior)
    np.testing.assert_allclose(plain.kl, kl.sum(1), rtol=1e-6)
    np.testing.assert_allclose(plain.loss, plain.reconstruction + plain.kl, rtol=1e-6)
    assert (jnp.abs(plain.reconstruction - one.reconstruction) > 1e-3).all()
    assert seen[0].shape == x.shape
    limited = jnp.maximum(kl, 0.7)
    assert (limited != kl).any()
    assert (limited == kl).any()
    want = weighed.reconstruction + 2 * limited.sum(1)
    np.testing.assert_allclose(weighed.loss, want, rtol=1e-6)
    np.testing.assert_allclose(weighed.kl, plain.kl, rtol=1e-6)
    each = jnp.concatenate(standard, axis=1)
    np.testing.assert_allclose(tree.kl, each.sum(1), rtol=1e-6)
    limit = jnp.maximum(each.mean(0), 0.7).sum()
    np.testing.assert_allclose(tree.loss - tree.reconstruction, limit, rtol=1e-5)
    assert [term.dtype for term in half] == [jnp.float32] * 3
    np.testing.assert_allclose(half.kl, standard[0].sum(1), rtol=1e-2)


def test_reparameterize(key):
    mean, log_std = jnp.full((4096, 2), 3.0), jnp.full((4096, 2), np.log(0.5))
    z = losses.reparameterize(key, mean, log_std)
    np.testing.assert_allclose(z.mean(0), 3, atol=0.03)
    np.testing.assert_allclose(z.std(0), 0.5, rtol=0.03)
    half = losses.reparameterize(
        key, *(v.astype(jnp.bfloat16) for v in (mean, log_std))
    )
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), z, rtol=0.02, atol=0.01)


def gradients(params, samples, estimator, keys):
    """The loss and its gradient for each key."""

    def loss(params, key):
        posterior = lambda x: (x @ params["a"], params["log_std"][None])
        log_joint = ppca.log_joint(params["w"])
        return losses.iwae(
            key, posterior, log_joint, ppca.X, samples=samples, estimator=estimator
        )[0]

    return jax.vmap(jax.value_and_grad(loss), (None, 0))(params, keys)


def encoder(gradient):
    parts = gradient["a"], gradient["log_std"]
    return np.concatenate([p.reshape(len(p), -1) for p in parts], 1)


def close(samples, want):
    """Whether the mean of samples is what it should be, within their noise."""
    error = samples.std(0) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - want) < 3.5 * error + 1e-12).all()


MEAN, LOG_STD = ppca.exact(np.eye(3))
EXACT = {"w": ppca.ROTATED, "a": MEAN, "log_std": LOG_STD[0]}
NEAR = {"w": ppca.ROTATED, "a": 0.8 * MEAN, "log_std": LOG_STD[0] + 0.2}


def test_gradients_of_the_importance_weighted_bound(x64):
    """One value and gradient of the decoder; that of the encoder in expectation."""
    keys = jax.random.split(jax.random.key(0), 4000)
    results = jit_once(
        lambda keys: {
            (samples, estimator): gradients(NEAR, samples, estimator, keys)
            for samples in (4, 32)
            for estimator in ("standard", "dreg")
        }
    )(keys)
    signal = {}
    for samples in (4, 32):
        standard, dreg = (results[samples, name] for name in ("standard", "dreg"))
        np.testing.assert_allclose(dreg[0], standard[0], rtol=1e-12)
        np.testing.assert_allclose(dreg[1]["w"], standard[1]["w"], atol=1e-9)
        standard, dreg = encoder(standard[1]), encoder(dreg[1])
        close(dreg - standard, 0.0)
        size = np.linalg.norm(dreg.mean(0))
        signal[samples] = [size / np.linalg.norm(g.std(0)) for g in (standard, dreg)]
    # As the inverse of sqrt(samples), and as sqrt(samples).
    np.testing.assert_allclose(signal[32][0] / signal[4][0], 8**-0.5, rtol=0.15)
    np.testing.assert_allclose(signal[32][1] / signal[4][1], 8**0.5, rtol=0.15)


def test_one_sample_has_the_gradient_of_the_bound(x64):
    """In closed form."""

    def bound(params):
        w, a, variance = params["w"], params["a"], jnp.exp(2 * params["log_std"])
        mean = (ppca.X @ a)[0]
        miss = jnp.square(ppca.X[0] - w @ mean).sum() + (w**2 @ variance).sum()
        kl = losses.kl_normal(mean, params["log_std"]).sum()
        return 0.5 * miss / ppca.VARIANCE + kl

    keys = jax.random.split(jax.random.key(1), 4000)
    want, got = jit_once(
        lambda keys: (
            jax.grad(bound)(NEAR),
            [gradients(NEAR, 1, name, keys)[1] for name in ("standard", "stl")],
        )
    )(keys)
    for gradient in got:
        jax.tree.map(close, gradient, want)


def test_gradients_at_the_exact_posterior(x64):
    """None for the encoder without noise, and the evidence's for the decoder."""
    keys = jax.random.split(jax.random.key(2), 2000)
    want, got = jit_once(
        lambda keys: (
            jax.grad(lambda w: -ppca.log_prob(w, ppca.X)[0])(EXACT["w"]),
            [gradients(EXACT, 3, estimator, keys) for estimator in ESTIMATORS],
        )
    )(keys)
    for value, gradient in got:
        np.testing.assert_allclose(-value, ppca.LOG_PROB, atol=1e-6)
        close(gradient["w"], want)
    standard, *others = (encoder(gradient) for _, gradient in got)
    assert np.abs(standard).mean() > 0.1
    for other in others:
        assert np.abs(other).max() < 1e-12


def test_trees_and_half_precision(key):
    """Latents may be a dict, and in bfloat16; nats are float32."""

    def loss(params, estimator, dtype):
        mean = (ppca.X @ params).astype(dtype)
        joint = ppca.log_joint(ppca.W)
        return losses.iwae(
            key,
            lambda x: ({"a": mean, "b": mean}, {"a": 0 * mean, "b": 0 * mean - 1}),
            lambda z, x: joint(z["a"], x) + ppca.log_prior(z["b"]),
            ppca.X,
            samples=2,
            estimator=estimator,
        )[0]

    run = jit_once(
        lambda params: [
            jax.value_and_grad(loss)(params, estimator, dtype)
            for dtype in (jnp.float32, jnp.bfloat16)
            for estimator in ("standard", "dreg")
        ]
    )
    results = run(jnp.asarray(ppca.W, jnp.float32))
    values = np.array([value for value, _ in results])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)
    np.testing.assert_allclose(values[2:], values[0], rtol=0.1)
    for value, gradient in results:
        assert value.dtype == jnp.float32
        assert jnp.isfinite(gradient).all()


KEY, ONES = jax.random.key(0), jnp.ones((2, 3))
SAME = lambda x: (x, x)
SUM = lambda z, x: z.sum(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.elbo(KEY, SAME, SUM, ONES, samples=0),
            r"samples must be at least 1; it is 0",
        ),
        (
            lambda: losses.elbo(KEY, lambda x: (x, x[:1]), SUM, ONES),
            r"mean and log_std must .*\(2, 3\) and \(1, 3\)",
        ),
        (
            lambda: losses.elbo(KEY, SAME, lambda z, x: z, ONES),
            r"log_likelihood must return .*\(2,\); it returned \(2, 3\)",
        ),
        (
            lambda: losses.elbo(KEY, SAME, SUM, ONES, prior=lambda z: z.sum()),
            r"prior must return one number per example, \(2,\); it returned \(\)",
        ),
        (
            lambda: losses.elbo(
                KEY, SAME, SUM, ONES, prior=lambda z: z.sum(1), free_bits=0.1
            ),
            r"free_bits must be 0 .*; it is 0\.1",
        ),
        (
            lambda: losses.iwae(KEY, SAME, SUM, ONES, samples=2, estimator="path"),
            r"estimator must be one of .*'path'",
        ),
        (
            lambda: losses.iwae(KEY, SAME, lambda z, x: z, ONES, samples=2),
            r"log_joint must return",
        ),
        (
            lambda: losses.reparameterize(KEY, jnp.ones((2, 3), int), ONES),
            r"must be floating",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
