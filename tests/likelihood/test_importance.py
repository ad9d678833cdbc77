"""The evidence of probabilistic PCA by importance sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once
from losses import ppca

from genlib import likelihood, losses

# Latents from the prior, 1, 4, 16 and 64 of them: value and standard error.
GOLDEN = {
    1: (-8.03, 0.11),
    4: (-3.885, 0.031),
    16: (-3.090, 0.009),
    64: (-2.972, 0.004),
}


def test_golden_estimates(x64):
    """More samples, more of the evidence, and never more than all of it."""
    x = jnp.repeat(ppca.X, 4000, axis=0)

    def estimate(key, samples):
        nats = likelihood.importance_weighted(
            key, ppca.prior, ppca.log_joint(ppca.W), x, samples=samples
        )
        return nats.mean(), nats.std() / np.sqrt(len(x))

    keys = jax.random.split(jax.random.key(0), 4)
    got = jit_once(
        lambda keys: [estimate(*args) for args in zip(keys, GOLDEN, strict=True)]
    )(keys)
    means = [mean for mean, _ in got]
    assert means == sorted(means)
    for (mean, error), (want, noise) in zip(got, GOLDEN.values(), strict=True):
        assert abs(mean - want) < 3 * np.hypot(error, noise)
        assert mean < ppca.LOG_PROB + 3 * error


def test_the_exact_posterior_gives_the_evidence(x64):
    """Also one example, whatever the chunks: the same latents in less memory."""

    def run(chunk):
        estimate = jit_once(
            lambda key, x: likelihood.importance_weighted(
                key, ppca.prior, ppca.log_joint(ppca.W), x, samples=512, chunk=chunk
            )
        )
        args = jax.random.key(1), jnp.repeat(ppca.X, 64, axis=0)
        compiled = estimate.lower(*args).compile()
        return compiled(*args), compiled.memory_analysis().temp_size_in_bytes

    (whole, all_bytes), (parts, bytes_) = run(None), run(8)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    assert bytes_ < all_bytes / 16
    key, x = jax.random.key(1), jnp.array(ppca.X)
    joint = ppca.log_joint(ppca.ROTATED)
    got = likelihood.importance_weighted(key, ppca.exact, joint, x, samples=3, chunk=1)
    np.testing.assert_allclose(got, ppca.LOG_PROB, atol=1e-6)


def test_it_is_the_loss_of_the_same_key():
    model = ppca.prior, ppca.log_joint(ppca.W)
    loss, got = jit_once(
        lambda key, x: (
            losses.iwae(key, *model, x, samples=6),
            likelihood.importance_weighted(key, *model, x, samples=6, chunk=2),
        )
    )(jax.random.key(2), jnp.array(ppca.X, jnp.float32))
    np.testing.assert_allclose(got, -loss, rtol=1e-6)


def test_trees_and_half_precision(key):
    """Latents may be a dict, and in bfloat16; nats are float32."""
    joint = ppca.log_joint(ppca.W)
    zeros = {"a": jnp.zeros((1, 2), jnp.bfloat16), "b": jnp.zeros((1, 2, 2))}
    got = likelihood.importance_weighted(
        key,
        lambda x: (zeros, zeros),
        lambda z, x: joint(z["a"], x) + ppca.log_prior(z["b"].reshape(1, 4)),
        jnp.array(ppca.X, jnp.float32),
        samples=4096,
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, ppca.LOG_PROB, atol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, r"samples must be at least 1; it is 0"),
        ({"samples": 9, "chunk": 2}, r"chunk must divide the 9 samples; it is 2"),
        ({"samples": 9, "chunk": 0}, r"chunk must divide"),
        (
            {"posterior": lambda x: (x, x[:1])},
            r"mean and log_std, .*\(2, 3\) and \(1, 3\)",
        ),
        ({"log_joint": lambda z, x: z}, r"\(2,\); it returned \(2, 3\)"),
    ],
)
def test_bad_arguments(settings, message):
    defaults = {
        "posterior": lambda x: (x, x),
        "log_joint": lambda z, x: z.sum(1),
        "samples": 1,
    }
    with pytest.raises(ValueError, match=message):
        likelihood.importance_weighted(
            jax.random.key(0), x=jnp.ones((2, 3)), **{**defaults, **settings}
        )
