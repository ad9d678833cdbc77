"""Numbers that papers and other libraries give for these paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import GOLDEN, LINEAR_BETAS

from genlib import noise, samplers

PATHS = {"vp": noise.VPLinear(), "ve": noise.VE(0.01, 50.0)}


@pytest.mark.parametrize("name", GOLDEN["score_sde"])
def test_score_sde(name):
    family, t = name.split("_")
    want = GOLDEN["score_sde"][name]
    alpha, sigma = PATHS[family](float(t))
    f, g = noise.drift_diffusion(PATHS[family], float(t))
    for got, field in ((alpha, "alpha"), (sigma, "sigma"), (f, "f"), (g, "g")):
        np.testing.assert_allclose(got, want[field], rtol=1e-5, atol=1e-7)


def test_vp_sigma_near_the_data_in_float32():
    """sqrt(1 - alpha^2) in float32 is 9 % off here."""
    want = np.sqrt(-np.expm1(-(0.1e-6 + 0.5 * 19.9e-12)))
    np.testing.assert_allclose(noise.VPLinear()(1e-6).sigma, want, rtol=1e-5)


def test_ddpm_chain():
    path = noise.DiscreteBetas(LINEAR_BETAS)
    want = GOLDEN["training"]["alphas_cumprod/linear [0,250,500,750,999]"]
    t = np.array([0, 250, 500, 750, 999]) + 1
    np.testing.assert_allclose(path(t).alpha ** 2, want, rtol=2e-5)
    assert path(0).sigma == 0
    alpha_bar = np.cumprod(1 - LINEAR_BETAS)
    np.testing.assert_allclose(path(t).sigma ** 2, 1 - alpha_bar[t - 1], rtol=1e-5)


def test_ddpm_posterior_variance():
    """beta_k (1 - alpha_bar_{k-1}) / (1 - alpha_bar_k)."""
    path = noise.DiscreteBetas(LINEAR_BETAS)
    alpha_bar = np.cumprod(1 - LINEAR_BETAS)
    k = np.array([2, 501, 1000])
    want = LINEAR_BETAS[k - 1] * (1 - alpha_bar[k - 2]) / (1 - alpha_bar[k - 1])
    x = jnp.zeros((3, 1))
    std = noise.posterior(path, x, x, k - 1, k).std[:, 0]
    np.testing.assert_allclose(std**2, want, rtol=2e-3)  # s and t are one step apart


def test_zero_terminal_snr_is_exactly_zero():
    path = noise.DiscreteBetas(np.append(LINEAR_BETAS[:-1], 1.0))
    assert path(path.t_max).alpha == 0
    np.testing.assert_allclose(path(path.t_max).sigma, 1, rtol=1e-6)
    assert noise.log_snr(path, path.t_max) == -jnp.inf


def test_prior_of_ve_has_the_largest_noise(key):
    """A peer draws it with standard deviation 0.99."""
    assert noise.prior(key, noise.VE(0.01, 50.0), (20_000,)).std().round() == 50


def test_prior_from_a_later_start(key):
    draws = noise.prior(key, noise.EDM(), (20_000,), t=3.0)
    np.testing.assert_allclose(draws.std(), 3.0, rtol=0.02)


def test_a_path_of_three_lines_inverts_by_bisection():
    class Power(noise.Path):
        def __call__(self, t):
            return noise.Marginal(1 - t, t**3)

    t = jnp.linspace(0.05, 0.95, 7)
    path = Power()
    np.testing.assert_allclose(
        noise.time_at(path, noise.log_snr(path, t)), t, rtol=1e-5
    )


def test_a_path_without_a_derivative_is_refused_by_solvers_that_need_it():
    class Cancelling(noise.Path):
        def __call__(self, t):
            alpha = jnp.cos(0.5 * jnp.pi * t)
            return noise.Marginal(alpha, jnp.sqrt(1 - alpha**2))

    path, x = Cancelling(), jnp.ones((1, 1))
    times = [1.0, 1e-170, 0.0]  # where 1 - alpha^2 is 0 and its root has no slope
    with pytest.raises(ValueError, match="must have finite derivatives"):
        samplers.sample(samplers.euler(), lambda x, t: x, path, times, x)


@pytest.mark.parametrize(
    "betas",
    [
        np.ones((2, 2)),
        np.array([]),
        np.array([0.1, 0.0]),
        np.array([0.1, 1.5]),
        np.array([1.0, 0.1]),
        np.array([0.1, np.nan]),
        np.array([1, 1]),
    ],
)
def test_bad_betas(betas):
    with pytest.raises(ValueError, match="betas"):
        noise.DiscreteBetas(betas)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: noise.perturb(noise.Cosine(), x, x[:1], 0.5),
        lambda x: noise.perturb(noise.Cosine(), x, x, -0.1),
        lambda x: noise.perturb(noise.Cosine(), x, x, 1.01),
        lambda x: noise.perturb(noise.Cosine(), x, x, jnp.nan),
        lambda x: noise.perturb(noise.Cosine(), x, x, jnp.full(3, 0.5)),
        lambda x: noise.perturb(noise.Cosine(), x, x, jnp.full((2, 1), 0.5)),
        lambda x: noise.perturb(noise.EDM(), x, x, 81.0),
        lambda x: noise.transition(noise.Cosine(), 0.6, 0.5),
        lambda x: noise.posterior(noise.Cosine(), x, x, 0.6, 0.5),
        lambda x: noise.drift_diffusion(noise.Cosine(), 2.0),
        lambda x: noise.prior(jax.random.key(0), noise.Cosine(), (2,), t=2.0),
    ],
)
def test_bad_arguments(call):
    with pytest.raises(ValueError, match=r"must|shape"):
        call(jnp.ones((2, 3)))


def test_sweeping_betas_traces_once():
    count = 0

    @jax.jit
    def sigma(beta_max, t):
        nonlocal count
        count += 1
        return noise.VPLinear(beta_max=beta_max)(t).sigma

    values = [sigma(b, 0.5).item() for b in (5.0, 10.0, 20.0)]
    assert count == 1
    assert values == sorted(values)


def test_bisection_has_the_derivative_of_the_inverse(x64):
    class Power(noise.Path):
        def __call__(self, t):
            return noise.Marginal(1 - t, t**3)

    path = Power()
    t = 0.3
    slope = jax.grad(path.log_snr)(t)
    inverse = jax.grad(path.time_at)(path.log_snr(t))
    np.testing.assert_allclose(inverse, 1 / slope, rtol=1e-8)
    assert jnp.isnan(noise.time_at(path, jnp.nan))


@pytest.mark.parametrize("path", [noise.VPLinear(), noise.Rectified(), noise.EDM()])
def test_gradients_through_log_snr_at_the_data_end_are_finite(path):
    x = jnp.ones((1, 1))
    losses = [
        lambda p: noise.posterior(p, x, x, 0.0, 0.5).mean.sum(),
        lambda p: noise.transition(p, 0.0, 0.5).sigma,
    ]
    for loss in losses:
        gradient = jax.grad(loss)(jax.tree.map(jnp.asarray, path))
        assert all(jnp.isfinite(g) for g in jax.tree.leaves(gradient))


def test_corner_settings_of_vp():
    assert np.isfinite(noise.time_at(noise.VPLinear(1.0, 0.0), [0.0, 5.0, 50.0])).all()
    assert np.isfinite(noise.time_at(noise.VPLinear(0.0, 20.0), [0.0, 90.0])).all()
    assert noise.time_at(noise.VPLinear(), -jnp.inf) == jnp.inf


def test_an_end_rounded_to_float32_is_within_the_path():
    x = jnp.ones((1, 1))
    for end in (0.1, 14.6):
        noise.perturb(noise.EDM(end), x, x, jnp.float32(end))
        with pytest.raises(ValueError, match="t must be within"):
            noise.perturb(noise.EDM(end), x, x, jnp.float32(end * 1.001))
