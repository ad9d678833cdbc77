"""Intervals, scales in time, thresholds, several conditions; and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import CONDITION, WHOLE, jit_once

from genlib import guidance, noise, prediction, samplers

PATH = noise.Cosine()
X = jnp.array([[0.7, -1.2], [0.1, 0.4], [-1.0, 0.3]])
PLUS = lambda x, t: x + 1
PLAIN = lambda x, t: x


def test_interval_is_in_log_snr():
    """On EDM from sigma 0.28 to 2.9; time runs otherwise on other paths."""
    low, high = -2 * np.log(2.9), -2 * np.log(0.28)
    for path in (noise.EDM(), PATH, noise.VPLinear(), noise.Rectified()):
        D = guidance.interval(PLUS, PLAIN, path, low, high)
        sigmas = np.array([0.2, 0.3, 2.8, 3.0])
        t = jnp.asarray(samplers.times_at(path, -2 * np.log(sigmas)), jnp.float32)
        x = jnp.zeros((4, 1))
        np.testing.assert_array_equal(D(x, t)[:, 0], [0, 1, 1, 0])
    got = [D(x, time)[0, 0].item() for time in t]
    np.testing.assert_array_equal(got, [0, 1, 1, 0])


def test_only_the_model_in_use_is_run():
    calls = []

    def guided(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return x + 1

    D = guidance.interval(guided, PLAIN, noise.Rectified(), low=-1.0, high=1.0)
    times = np.linspace(0.95, 0.05, 10)
    samplers.sample(samplers.ddim(), D, noise.Rectified(), times, X)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(calls), [0.45, 0.55], rtol=1e-6)


def test_scales_in_time():
    linear = guidance.linear_scale(PATH, noisy=1.0, clean=5.0)
    cosine = guidance.cosine_scale(PATH, noisy=1.0, clean=5.0)
    t = jnp.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(linear(t), [5, 4, 3, 1], rtol=1e-6)
    want = [5, 3 + 2**0.5, 3, 1]
    np.testing.assert_allclose(cosine(t), want, rtol=1e-6)
    chain = noise.DiscreteBetas(np.full(10, 0.1))
    assert guidance.linear_scale(chain, 0.0, 1.0)(jnp.float32(2.5)) == 0.75
    # Any function of the time is a scale, of log-SNR for instance.
    scale = lambda t: jax.nn.sigmoid(noise.log_snr(PATH, t))
    guided = guidance.classifier_free(PLUS, PLAIN, scale)
    np.testing.assert_allclose(guided(0 * X, jnp.float32(0.5)), 0 * X + 0.5)
    got = guidance.classifier_free(PLUS, PLAIN, linear)(0 * X, t[:3])
    np.testing.assert_allclose(got[:, 0], [5, 4, 3], rtol=1e-6)


def test_several_conditions_and_negative_ones():
    c, d, u = (lambda x, t, k=k: x * 0 + k for k in (1.0, 10.0, 100.0))
    x, t = jnp.zeros((1, 1)), jnp.float32(0.5)
    assert guidance.compose(u, [c, d], [2.0, 3.0])(x, t) == 100 - 2 * 99 - 3 * 90
    assert guidance.compose(u, [], [])(x, t) == 100
    # Classifier-free at w = 4 and perturbed attention at s = 0.5, at once.
    both = guidance.compose(c, [u, d], [1.0 - 4.0, -0.5])(x, t)
    assert both == 1 + 3 * (1 - 100) + 0.5 * (1 - 10)


def test_rescale_restores_the_contrast():
    strong = guidance.classifier_free(lambda x, t: x, lambda x, t: -0.5 * x, 6.0)
    t = jnp.float32(0.5)
    full = guidance.rescale(strong, PLAIN, 1.0)(X, t)
    np.testing.assert_allclose(full.std(axis=1), X.std(axis=1), rtol=1e-5)
    none = guidance.rescale(strong, PLAIN, 0.0)(X, t)
    np.testing.assert_array_equal(none, strong(X, t))
    flat = guidance.rescale(lambda x, t: 0 * x, PLAIN)(X, t)
    np.testing.assert_array_equal(flat, 0 * X)


def test_a_model_called_twice_is_run_once_under_jit():
    w = jax.random.normal(jax.random.key(0), (2, 64, 64))
    c, u = (lambda x, t, m=m: jnp.tanh(x @ m) for m in w)
    guided = guidance.rescale(guidance.classifier_free(c, u, 3.0), c)
    x = jnp.ones((64, 64))
    count = lambda f: jax.jit(f).lower(x, 0.5).compile().as_text().count(" dot(")
    assert count(c) >= 1
    assert count(guided) == 2 * count(c)


def test_thresholds():
    x = jnp.array([[4.0, -2.0, 1.0, 0.0], [0.5, -0.25, 0.1, 0.0]])
    t = jnp.float32(0.5)
    static = guidance.static_threshold(PLAIN, -1.0, 2.0)(x, t)
    np.testing.assert_array_equal(static[0], [2, -1, 1, 0])
    # The median of |x| is 1.5, at which 4 and -2 are clipped; small ones stay.
    dynamic = guidance.dynamic_threshold(PLAIN, 0.5)(x, t)
    np.testing.assert_allclose(dynamic[0], [1, -1, 1 / 1.5, 0], rtol=1e-6)
    np.testing.assert_array_equal(dynamic[1], x[1])
    whole = guidance.dynamic_threshold(PLAIN, 1.0, limit=2.0)(x, t)
    np.testing.assert_allclose(whole[0], x[0] / 2)


def test_momentum_is_carried_through_sampling():
    """As a loop over the steps by hand; other guidance around it passes it on."""
    models = CONDITION.denoiser(PATH), WHOLE.denoiser(PATH)
    build = lambda momentum: guidance.adaptive_projected(
        *models, 4.0, momentum=momentum
    )
    times = samplers.uniform_log_snr(PATH, 4)
    table = samplers.tabulate(PATH, times)
    guided, x = build(-0.5), X
    memory = guided.init(x)
    for k in range(4):
        x_0, memory = guided.apply(x, jnp.float32(times[k]), memory)
        keep = table.sigma[k + 1] / table.sigma[k]
        x = keep * x + (table.alpha[k + 1] - keep * table.alpha[k]) * x_0
    run = lambda D: samplers.sample(samplers.ddim(), D, PATH, times, X)
    np.testing.assert_allclose(run(guided), x, rtol=1e-5)
    around = guidance.static_threshold(guided, -1e3, 1e3)
    np.testing.assert_allclose(run(around), x, rtol=1e-5)
    assert (jnp.abs(run(build(0.0)) - x) > 1e-2).any()
    swept = jit_once(lambda momentum: run(build(momentum)))
    np.testing.assert_allclose(swept(0.0), run(build(0.0)), rtol=1e-5)
    np.testing.assert_allclose(swept(-0.5), x, rtol=1e-5)


EPS = {"kind": prediction.EPS}
PAIR = PLUS, PLAIN
Y = jnp.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guidance.compose(PLAIN, [PLUS], [1.0, 2.0]), "scales must be one for"),
        (lambda: guidance.interval(*PAIR, PATH, 2.0, -2.0), "low must be at most high"),
        (lambda: guidance.rescale(*PAIR, 1.5), r"phi must be within .*1\.5"),
        (
            lambda: guidance.rescale(*PAIR, **EPS),
            "path must be given where kind is EPS",
        ),
        (lambda: guidance.adaptive_projected(*PAIR, 2.0, **EPS), "path must be given"),
        (lambda: guidance.tangential(*PAIR, 2.0, PATH, kind="v"), "kind must be"),
        (lambda: guidance.static_threshold(PLAIN, 1.0, -1.0), "low must be at most"),
        (lambda: guidance.dynamic_threshold(PLAIN, 99.5), r"quantile must be .*99\.5"),
        (
            lambda: guidance.dynamic_threshold(PLAIN, limit=0.0),
            "limit must be positive",
        ),
        (
            lambda: guidance.classifier_free(*PAIR, jnp.ones(2))(X, 0.5),
            r"t must be a scalar or one number per example",
        ),
        (
            lambda: guidance.classifier(PLAIN, lambda x, t: x, 1.0, PATH)(X, 0.5),
            r"log_likelihood must return one number .*\(3,\).*\(3, 2\)",
        ),
        (
            lambda: guidance.classifier(PLAIN, lambda x, t: x[:, 0], 1.0, PATH)(X, 1.0),
            r"nothing about x_0 where alpha = 0.*1\.0",
        ),
        (
            lambda: samplers.sample(
                samplers.ddim(),
                guidance.tangential(*PAIR, 2.0, PATH),
                PATH,
                [1.0, 0.0],
                X,
            ),
            "X0 is not determined by EPS",
        ),
        (
            lambda: guidance.dps(PLAIN, PLAIN, Y, 1.0, PATH, noise_std=0.0)(X, 0.5),
            "noise_std must be positive",
        ),
        (
            lambda: guidance.pigdm(PLAIN, PLAIN, Y, 1.0, PATH, noise_std=-1.0),
            "noise_std must be within",
        ),
        (
            lambda: guidance.pigdm(PLAIN, PLAIN, Y, 1.0, PATH, data_std=0.0),
            "data_std must be positive",
        ),
        (
            lambda: guidance.mmps(PLAIN, PLAIN, Y, 1.0, PATH, iterations=0),
            "iterations must be a positive integer",
        ),
        (
            lambda: guidance.mmps(PLAIN, lambda x: x[:, :1], Y, 1.0, PATH)(X, 0.5),
            r"operator must return the shape \(3, 2\) of y.*\(3, 1\)",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
