"""The mixture's log-likelihood by the probability flow, against its density."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE, jit_once

from genlib import likelihood, metrics, noise, prediction, samplers

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden/likelihood.json").read_text()
)
EPS = 1e-5
PATHS = {
    "vp": noise.VPLinear(),
    "subvp": noise.SubVP(),
    "ve": noise.VE(0.01, 50.0),
    "rectified": noise.Rectified(),
}


def exact_prior(path, t=None):
    """The log-density of the mixture at the noisy end."""
    marginal = path(path.t_max if t is None else t)
    return lambda x: MIXTURE.log_density(x, *marginal)


def normal(sigma):
    return lambda x: jax.scipy.stats.norm.logpdf(x, 0.0, sigma).sum(1)


@pytest.mark.parametrize("name", PATHS)
def test_log_prob_is_the_density_of_the_mixture(name, x64):
    """To 1e-5 nats with the exact prior, and the golden with that of score_sde."""
    pytest.importorskip("diffrax")
    path, golden = PATHS[name], GOLDEN.get(name, GOLDEN["vp"])
    denoise, x = MIXTURE.denoiser(path), jnp.array(golden["x"])

    @jit_once
    def run(x):
        flow = likelihood.probability_flow(
            denoise, path, x, t_start=EPS, rtol=1e-8, atol=1e-8
        )
        standard = normal(50.0 if name == "ve" else 1.0)
        return flow, flow.log_det + exact_prior(path)(flow.x), standard(flow.x)

    flow, got, standard = run(x)
    want = MIXTURE.log_density(x, *path(EPS))
    np.testing.assert_allclose(got, want, atol=1e-7)
    assert flow.steps < 150
    if name in GOLDEN:
        np.testing.assert_allclose(want, golden["analytic_eps"], atol=1e-10)
        np.testing.assert_allclose(got, golden["pf_logp_exact_prior"], atol=2e-7)
        pf_log_prob = flow.log_det + standard
        np.testing.assert_allclose(pf_log_prob, golden["pf_logp"], atol=2e-7)


def test_adaptive_steps_in_float32_with_the_default_settings():
    pytest.importorskip("diffrax")
    path = PATHS["ve"]
    denoise, x = MIXTURE.denoiser(path), jnp.array(GOLDEN["ve"]["x"], jnp.float32)
    run = jit_once(lambda x: likelihood.log_prob(denoise, path, x))
    got = run(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, GOLDEN["ve"]["pf_logp"], atol=1e-3)


@pytest.mark.parametrize("name", PATHS)
def test_a_fixed_grid_in_float32(name):
    """Runge-Kutta's steps on a decreasing grid need no diffrax, and no float64."""
    path = PATHS[name]
    denoise, x = MIXTURE.denoiser(path), jnp.array(GOLDEN["vp"]["x"], jnp.float32)
    grid = np.linspace(1.0, 0.0, 101) if name == "ve" else np.geomspace(1, 2e-3, 101)
    run = jit_once(
        lambda x, grid: likelihood.log_prob(
            denoise, path, x, times=grid, prior=exact_prior(path)
        )
    )
    want = MIXTURE.log_density(x, *path(grid[-1]))
    np.testing.assert_allclose(run(x, grid), want, rtol=1e-5, atol=1e-5)


def test_a_normal_in_closed_form(x64):
    """Case 33: data N(0, s^2), whose flow is linear; the prior of VE has sigma_max."""
    path, s, dimension = PATHS["ve"], 0.7, 3
    denoise = lambda x, t: x * s**2 / (s**2 + path(t).sigma ** 2)
    x = jax.random.normal(jax.random.key(0), (4, dimension))
    times = samplers.uniform(path, 200)
    flow = jit_once(
        lambda x: likelihood.probability_flow(denoise, path, x, times=times)
    )(x)
    sigma = np.asarray(path(np.array([0.0, 1.0])).sigma)
    growth = np.sqrt((s**2 + sigma[1] ** 2) / (s**2 + sigma[0] ** 2))
    np.testing.assert_allclose(flow.x, growth * x, rtol=1e-6)
    np.testing.assert_allclose(flow.log_det, dimension * np.log(growth), rtol=1e-6)
    assert (flow.t, flow.steps) == (1.0, 200)
    log_prob = jit_once(lambda x: likelihood.log_prob(denoise, path, x, times=times))
    want = normal(50.0)(growth * x) + dimension * np.log(growth)
    np.testing.assert_allclose(log_prob(x), want, rtol=1e-6)


def image_mixture():
    """A mixture of two normals over images (3, 2, 1)."""
    means = np.linspace(-1, 1, 12).reshape(2, 6)
    mixture = metrics.GaussianMixture(np.array([0.3, 0.7]), means, np.array([0.4, 0.6]))
    flat = mixture.denoiser(PATHS["rectified"])
    return mixture, lambda x, t: flat(x.reshape(len(x), 6), t).reshape(x.shape)


def test_images_and_an_example_alone(x64):
    """Case 33: (B, H, W, C); nothing is reduced over the batch."""
    path, times = PATHS["rectified"], np.geomspace(1.0, 1e-2, 81)
    mixture, denoise = image_mixture()
    x = jax.random.normal(jax.random.key(0), (3, 3, 2, 1))
    prior = lambda x: mixture.log_density(x.reshape(len(x), 6), *path(1.0))
    run = jit_once(
        lambda x: likelihood.log_prob(denoise, path, x, times=times, prior=prior)
    )
    got = run(x)
    want = mixture.log_density(x.reshape(3, 6), *path(times[-1]))
    np.testing.assert_allclose(got, want, atol=1e-5)
    # Other examples in the batch: the first must not move.
    np.testing.assert_allclose(run(x.at[1:].set(9.0))[0], got[0], atol=1e-12)


def test_every_trace_of_a_jacobian(x64):
    """Against `jacfwd`: all modes and chunks, and the quadratic forms of the probes."""
    mix = jax.random.normal(jax.random.key(1), (6, 6))
    flat = lambda x: jnp.sin(x @ mix) * x
    field = lambda x: flat(x.reshape(-1, 6)).reshape(x.shape)
    x, key = jax.random.normal(jax.random.key(0), (3, 3, 2, 1)), jax.random.key(2)

    @jit_once
    def run(x):
        jacobian = jax.vmap(jax.jacfwd(lambda x: flat(x[None])[0]))(x.reshape(-1, 6))
        exact = [
            likelihood.exact_trace(mode=mode, chunk=chunk)(field, x)
            for mode, chunk in (("forward", None), ("forward", 4), ("reverse", 1))
        ]
        random = [
            likelihood.hutchinson(key, mode=mode, probe=probe)(field, x)[1]
            for probe in ("rademacher", "gaussian")
            for mode in ("forward", "reverse")
        ]
        return jnp.trace(jacobian, axis1=1, axis2=2), field(x), exact, random

    trace, value, exact, random = run(x)
    for got, div in exact:
        np.testing.assert_allclose(got, value, rtol=1e-12)
        np.testing.assert_allclose(div, trace, rtol=1e-10)
    np.testing.assert_allclose(random[0], random[1], rtol=1e-10)
    np.testing.assert_allclose(random[2], random[3], rtol=1e-10)
    assert not np.allclose(random[0], random[2])


def test_hutchinson_is_unbiased(x64):
    """Case 33: within three standard errors of the exact trace over 1000 probes."""
    path, times = PATHS["vp"], np.geomspace(1.0, 0.01, 25)
    point = jnp.array([[-0.4, 0.9]])

    def log_det(divergence, x):
        denoise = MIXTURE.denoiser(path)
        return likelihood.probability_flow(
            denoise, path, x, times=times, divergence=divergence
        ).log_det

    @jit_once
    def run(key):
        x = jnp.broadcast_to(point, (1000, 2))
        probes = [
            log_det(likelihood.hutchinson(key, probe=probe), x)
            for probe in ("rademacher", "gaussian")
        ]
        return probes, log_det(likelihood.exact_trace(), point)

    estimates, exact = run(jax.random.key(5))
    for estimate in estimates:
        error = estimate.std(ddof=1) / math.sqrt(1000)
        assert error > 1e-3  # the probes differ
        assert abs(estimate.mean() - exact[0]) < 3 * error
    # The probe is fixed inside a solve: in two dimensions signs have two quadratic
    # forms. Probes drawn anew at each step would give a thousand numbers.
    assert len(np.unique(np.round(estimates[0], 8))) == 2


def test_keys_of_examples():
    """A key for each example is what one key is folded into."""
    field, x = lambda x: jnp.sin(x.sum(1, keepdims=True) + x), jnp.ones((3, 2))
    key = jax.random.key(0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))
    _, one = likelihood.hutchinson(key)(field, x)
    _, each = likelihood.hutchinson(keys)(field, x)
    np.testing.assert_array_equal(one, each)
    _, first = likelihood.hutchinson(key)(field, x[:1])
    np.testing.assert_array_equal(first, one[:1])


def test_gradients_reach_the_denoiser_and_the_data(x64):
    """Maximum likelihood through adaptive steps, for normal data of any scale."""
    diffrax = pytest.importorskip("diffrax")
    path, end = PATHS["rectified"], 0.1
    x = jnp.array([[0.3, -0.2], [1.0, 0.5]])

    def log_prob(s, x):
        def denoise(x, t):
            alpha, sigma = path(t)
            return alpha * s**2 / (alpha**2 * s**2 + sigma**2) * x

        settings = dict(t_start=end, rtol=1e-7, atol=1e-7, solver=diffrax.Bosh3())
        return likelihood.log_prob(denoise, path, x, **settings).sum()

    def exact(s, x):
        alpha, sigma = path(end)
        return normal(jnp.sqrt(alpha**2 * s**2 + sigma**2))(x).sum()

    got, want = (jit_once(jax.grad(f, (0, 1)))(0.7, x) for f in (log_prob, exact))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)


def test_bfloat16_data_has_float32_likelihoods():
    path, times = PATHS["vp"], np.geomspace(1.0, 0.1, 5)
    x = jnp.zeros((2, 3), jnp.bfloat16)
    seen = []

    def denoise(x, t):
        seen.append(x.dtype)
        return 0.5 * x

    flow = likelihood.probability_flow(denoise, path, x, times=times)
    assert (flow.x.dtype, flow.log_det.dtype) == (jnp.bfloat16, jnp.float32)
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert likelihood.log_prob(denoise, path, x, times=times).dtype == jnp.float32


X = jnp.ones((2, 3))
BLIND = prediction.denoiser(lambda x, t: x, noise.Cosine(), prediction.EPS)


def call(path=PATHS["vp"], x=X, denoise=lambda x, t: x, **settings):
    return likelihood.log_prob(denoise, path, x, **settings)


TABLE = {
    "no noise": (
        lambda: call(PATHS["rectified"], t_start=0.0),
        r"t_start must stop where sigma > 0.* t = 0\.0",
    ),
    "grid to no noise": (
        lambda: call(PATHS["rectified"], times=[1.0, 0.5, 0.0]),
        r"times must stop where sigma > 0",
    ),
    "order": (lambda: call(t_start=0.6, t_end=0.5), r"t_start must come before t_end"),
    "outside": (lambda: call(t_end=1.5), r"t_end must be within .* 1\.5"),
    "increasing": (lambda: call(times=[0.1, 1.0]), r"times must decrease"),
    "one time": (lambda: call(times=[1.0]), r"at least two times"),
    "both": (lambda: call(times=[1.0, 0.1], t_end=1.0), r"times must come without"),
    "integers": (lambda: call(x=jnp.ones((2, 3), int)), r"x must be a floating batch"),
    "blind": (lambda: call(noise.Cosine(), denoise=BLIND), r"X0 is not determined"),
    "prior": (
        lambda: call(times=[1.0, 0.1], prior=lambda x: x.sum()),
        r"prior must return one number per example, \(2,\).*\(\)",
    ),
    "mode": (lambda: likelihood.exact_trace(mode="up"), r"mode must be .* 'up'"),
    "chunk": (lambda: likelihood.exact_trace(chunk=0), r"chunk must be .* 0"),
    "probe": (
        lambda: likelihood.hutchinson(jax.random.key(0), probe="x"),
        r"probe must be one of .* 'x'",
    ),
    "raw key": (lambda: likelihood.hutchinson(jnp.zeros(2)), r"key must be a typed"),
    "keys": (
        lambda: call(
            times=[1.0, 0.1],
            divergence=likelihood.hutchinson(jax.random.split(jax.random.key(0), 3)),
        ),
        r"one for each of 2 examples; its shape is \(3,\)",
    ),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("traced", [False, True])
def test_mistake(name, traced):
    run, message = TABLE[name]
    with pytest.raises(ValueError, match=message):
        jax.jit(run)() if traced else run()
