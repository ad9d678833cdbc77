"""Decoders' likelihoods against SciPy, enumeration and samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from laws.registry import jit_once

from genlib import likelihood

RNG = np.random.default_rng(0)
# Raw numbers of two components of colours, with scales of the order of a level.
RAW = RNG.normal(size=(1, 20))


def grid(levels, channels=1):
    """All colours that a pixel can have."""
    values = 2 * np.arange(levels) / (levels - 1) - 1
    return np.array(list(itertools.product(values, repeat=channels)))


def naive(x, mean, scale, levels):
    """The difference of two distribution functions, [...]."""
    half = 1 / (levels - 1)
    upper = np.where(x > 1 - half, 1, scipy.special.expit((x + half - mean) / scale))
    lower = np.where(x < half - 1, 0, scipy.special.expit((x - half - mean) / scale))
    return upper - lower


def test_gaussian(x64):
    x, mean, log_std = RNG.normal(size=(3, 4, 2, 3))
    want = scipy.stats.norm(mean, np.exp(log_std)).logpdf(x).sum((1, 2))
    np.testing.assert_allclose(likelihood.gaussian(x, mean, log_std), want)
    want = scipy.stats.norm(mean, np.exp(log_std[0, 0])).logpdf(x).sum((1, 2))
    np.testing.assert_allclose(likelihood.gaussian(x, mean, log_std[0, 0]), want)


def test_bernoulli():
    """Bits, also where one is certain, and the means of bits."""
    x = jnp.array([[1, 0], [0, 1]])
    logits = jnp.array([[2.0, -30.0], [1e4, 1e4]])
    got = likelihood.bernoulli(x, logits)
    gradient = jax.grad(lambda logits: likelihood.bernoulli(x, logits).sum())(logits)
    np.testing.assert_allclose(got, [-np.log1p(np.exp(-2)), -1e4], rtol=1e-6)
    want = x - scipy.special.expit(logits)
    np.testing.assert_allclose(gradient, want, atol=1e-6)
    sure = jax.value_and_grad(lambda logits: likelihood.bernoulli(x[:1], logits)[0])(
        jnp.array([[jnp.inf, -jnp.inf]])
    )
    np.testing.assert_array_equal(sure[0], 0)
    np.testing.assert_array_equal(sure[1], 0)
    soft = likelihood.bernoulli(jnp.array([[0.3]]), jnp.array([[0.7]]))
    ends = [likelihood.bernoulli(jnp.array([[b]]), jnp.array([[0.7]])) for b in (0, 1)]
    np.testing.assert_allclose(soft, 0.7 * ends[0] + 0.3 * ends[1], rtol=1e-6)
    assert likelihood.bernoulli(x > 0, logits.astype(jnp.bfloat16)).dtype == jnp.float32


def test_levels_add_up_to_one_at_all_scales():
    """And nothing is NaN or infinite, neither at the ends nor between."""
    x = jnp.asarray(grid(16), jnp.float32)
    log_scale = jnp.array([-80.0, -20.0, -5.0, -2.0, 0.0, 3.0, 20.0, 200.0])
    mean = jnp.array([-1.0, 0.0, 1 / 15, 0.91, 30.0])

    @jit_once
    def run(mean, log_scale):
        one = lambda x, m, s: likelihood.discretized_logistic(x[None], m, s, 16)[0]
        each = jax.vmap(jax.value_and_grad(one, (1, 2)), (0, None, None))
        scales = jax.vmap(each, (None, None, 0))
        return jax.vmap(scales, (None, 0, None))(x, mean, log_scale)

    value, gradient = run(mean, log_scale)
    np.testing.assert_allclose(jnp.exp(value).sum(-1), 1, rtol=2e-5)
    assert jnp.isfinite(value).all()
    for part in gradient:
        assert jnp.isfinite(part).all()
    # With a scale beyond all bounds, half is below and half above: with what is left
    # for a level between them, 2 h / (4 s), still in its logarithm.
    np.testing.assert_allclose(value[1, -1, 3], np.log(2 / 15 / 4) - 200, rtol=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_discretized_logistic_is_a_difference(levels, x64):
    x = RNG.choice(grid(levels)[:, 0], size=(5, 4))
    mean, log_scale = RNG.normal(size=(5, 4)), RNG.normal(size=4) / 3 - 1
    want = np.log(naive(x, mean, np.exp(log_scale), levels)).sum(1)
    got = likelihood.discretized_logistic(x, mean, log_scale, levels)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_bfloat16_finds_its_levels():
    x = jnp.asarray(grid(256), jnp.float32)
    run = lambda x: likelihood.discretized_logistic(x, 0.1, -4.0)
    wide, half = jit_once(lambda x: (run(x), run(x.astype(jnp.bfloat16))))(x)
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, wide)


def components(raw, x):
    """Weights [K], and means and log-scales [N, 3, K] given colours x [N, 3]."""
    K = raw.size // 10
    logits, rest = raw[0, :K], raw[0, K:].reshape(3, 3 * K)
    mean, log_scale, coefficients = np.split(rest, 3, axis=1)
    a, b, c = np.tanh(coefficients)
    red, green, _ = x.T[:, :, None]
    zero = 0 * red
    mean = mean + np.stack([zero + 0 * a, a * red, b * red + c * green], 1)
    return scipy.special.softmax(logits), mean, np.maximum(log_scale, -7)


def test_mixture_of_colours(x64):
    """Against enumeration and against samples, in the order of PixelCNN++."""
    x = grid(4, channels=3)
    weight, mean, log_scale = components(RAW, x)
    each = naive(x[..., None], mean, np.exp(log_scale), 4).prod(1)
    want = np.log(each @ weight)
    np.testing.assert_allclose(np.exp(want).sum(), 1)
    count = 20_000

    @jit_once
    def run(key, raw):
        many = lambda n: jnp.broadcast_to(raw, (n, 20))
        draw = likelihood.sample_discretized_logistic_mixture
        return (
            likelihood.discretized_logistic_mixture(x, many(len(x)), 2, 4),
            draw(key, many(count), 2, levels=4),
        )

    got, sample = run(jax.random.key(0), RAW)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    level = np.round((np.array(sample) + 1) * 1.5).astype(int)
    np.testing.assert_allclose(sample, 2 * level / 3 - 1, atol=1e-12)
    often = np.bincount(level @ [16, 4, 1], minlength=64)
    assert scipy.stats.chisquare(often, np.exp(want) * count).pvalue > 0.01


def test_mixture_of_grey_images():
    """Of two pixels, also with raw numbers beyond all bounds, and in bfloat16."""
    x = jnp.asarray(grid(8, channels=2)[:, :, None], jnp.float32)  # [64, 2, 1]
    raw = jnp.asarray(RNG.normal(size=(4, 2, 9)), jnp.float32)
    raw = raw * jnp.array([1.0, 30.0, 1e4, 1e4])[:, None, None]
    raw = raw.at[3].set(0.0).at[3, :, 6:].set(-1e4)

    @jit_once
    def run(raw):
        def one(raw):
            rows = jnp.broadcast_to(raw, (64, 2, 9))
            return likelihood.discretized_logistic_mixture(x, rows, 3, 8)

        half = jax.vmap(one)(raw.astype(jnp.bfloat16))
        return jax.vmap(one)(raw), jax.vmap(jax.jacrev(one))(raw), half

    value, gradient, half = run(raw)
    np.testing.assert_allclose(jnp.exp(value).sum(1), 1, rtol=1e-4)
    assert jnp.isfinite(value).all()
    assert jnp.isfinite(gradient).all()
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half[0], value[0], rtol=0.05)


def test_mean_of_a_mixture(x64):
    """That of the levels, where they are fine and none is beyond the ends."""
    x = grid(64)
    raw = np.array([[0.3, -0.2, -0.4, 0.3, -4.0, -3.5]])
    colours = np.array([[0.0, 0.2, 0.0, 1.0, 0.2, 0.0, 1.0, 0.2, 0.0, 1.0]])
    log_prob, mean, three = jit_once(
        lambda x, raw, colours: (
            likelihood.discretized_logistic_mixture(
                x, jnp.broadcast_to(raw, (64, 6)), 2, 64
            ),
            likelihood.mean_discretized_logistic_mixture(raw, 2)[0],
            likelihood.mean_discretized_logistic_mixture(colours, 1)[0],
        )
    )(x, raw, colours)
    np.testing.assert_allclose(mean, np.exp(log_prob) @ x, atol=1e-4)
    t = np.tanh(1.0)  # the coefficients
    green = 0.2 + 0.2 * t
    np.testing.assert_allclose(three, [0.2, green, 0.2 + 0.2 * t + t * green])


ONES = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: likelihood.gaussian(ONES, ONES[:, :2]),
            r"mean must have the shape \(2, 3\) of x; it is \(2, 2\)",
        ),
        (lambda: likelihood.gaussian(1.0, 1.0), r"x must be a batch"),
        (
            lambda: likelihood.bernoulli(ONES - 3, ONES),
            r"x must be within \[0, 1\]; it holds -2",
        ),
        (
            lambda: likelihood.discretized_logistic(ONES, 0.0, 0.0, 1),
            r"levels must be at least 2; it is 1",
        ),
        (
            lambda: likelihood.discretized_logistic(0.5 * ONES, 0.0, 0.0, 3),
            r"grid of 3 levels, 2 k / 2 - 1 within \[-1, 1\]; it holds 0\.5",
        ),
        (
            lambda: likelihood.discretized_logistic(2 * ONES, 0.0, 0.0, 3),
            r"it holds 2",
        ),
        (
            lambda: likelihood.discretized_logistic(np.nan * ONES, 0.0, 0.0, 3),
            r"it holds nan",
        ),
        (
            lambda: likelihood.discretized_logistic(np.inf * ONES, 0.0, 0.0, 3),
            r"it holds inf",
        ),
        (
            lambda: likelihood.discretized_logistic_mixture(ONES, ONES, 2),
            r"raw must be .* the 2 components, at least 1; it is \[2, 3\]",
        ),
        (
            lambda: likelihood.discretized_logistic_mixture(ONES, ONES, 1),
            r"x must be \[2, 1\] for raw \[2, 3\]; it is \[2, 3\]",
        ),
        (
            lambda: likelihood.sample_discretized_logistic_mixture(
                jax.random.key(0), ONES, 1, levels=0
            ),
            r"levels must be at least 2; it is 0",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
