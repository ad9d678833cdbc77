"""Laws of every path."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MORE_PATHS, PATHS, each, inner_times, traced_once

from genlib import noise

every_path = pytest.mark.parametrize("path", **each(PATHS | MORE_PATHS))


@every_path
def test_finite_at_both_ends_with_finite_gradients(path):
    for t in (path.t_min, path.t_max):
        t = jnp.float32(t)
        for c in (*path(t), *noise.marginal_and_rate(path, t)[1]):
            assert jnp.isfinite(c)
        settings = jax.grad(lambda p, t=t: sum(p(t)), allow_int=True)(path)
        chex.assert_tree_all_finite(settings)


@every_path
def test_log_snr_decreases_and_is_that_of_the_marginal(path):
    t = np.linspace(path.t_min, path.t_max, 101)
    log_snr = noise.log_snr(path, t)
    assert (np.diff(log_snr[1:-1]) < 0).all()
    t = inner_times(path)
    alpha, sigma = path(t)
    np.testing.assert_allclose(
        noise.log_snr(path, t), 2 * jnp.log(alpha / sigma), rtol=1e-4, atol=1e-4
    )


@every_path
def test_time_at_inverts_log_snr(path, x64):
    ends = np.asarray(noise.log_snr(path, np.array([path.t_max, path.t_min])))
    low, high = ends if "betas" in type(path).__name__.lower() else (-20, 20)
    log_snr = np.linspace(max(low, -20.0), min(high, 20.0), 401)
    back = noise.log_snr(path, noise.time_at(path, log_snr))
    np.testing.assert_allclose(back, log_snr, rtol=0, atol=1e-6)


@every_path
def test_time_at_inverts_log_snr_in_float32(path):
    t = inner_times(path)
    back = noise.time_at(path, noise.log_snr(path, t))
    np.testing.assert_allclose(back, t, rtol=2e-5)


@every_path
def test_float32_is_accurate_against_float64(path):
    u = np.array([1e-6, 1e-4, 1e-2, 0.3, 0.7, 0.99], np.float32)
    t = (path.t_min + u * (path.t_max - path.t_min)).astype(np.float32)
    single = path(t)
    with jax.enable_x64(True):
        double = path(t.astype(np.float64))
    for got, want in zip(single, double, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@every_path
def test_rate_is_the_derivative(path, x64):
    t = inner_times(path).astype(np.float64)
    if "betas" in type(path).__name__.lower():
        t = np.round(t) + 0.5  # smooth between its knots
    h = 1e-6 * (path.t_max - path.t_min) * np.minimum(1, t)
    _, rate = noise.marginal_and_rate(path, t)
    for got, up, down in zip(rate, path(t + h), path(t - h), strict=True):
        slope = (up - down) / (2 * h)
        np.testing.assert_allclose(got, slope, rtol=1e-5, atol=1e-8)


@every_path
def test_jit_vmap_and_batched_times_agree_with_scalars(path):
    t = inner_times(path)
    one_by_one = [jnp.stack(c) for c in zip(*map(path, t), strict=True)]
    for other in (path(t), jax.jit(path)(t), jax.vmap(path)(t)):
        for got, want in zip(other, one_by_one, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@every_path
def test_schedule_is_float32_inside(path):
    t = jnp.asarray(path.t_max, jnp.bfloat16)
    assert {c.dtype for c in path(t)} == {jnp.dtype("float32")}
    assert noise.log_snr(path, 1).dtype == jnp.float32


@every_path
def test_is_a_pytree_that_traces_once(path):
    leaves, tree = jax.tree.flatten(path)
    assert type(jax.tree.unflatten(tree, leaves)) is type(path)

    sigma = jax.jit(traced_once(lambda path, t: path(t).sigma))
    for scale in (1.0, 0.5):
        settings = jax.tree.map(lambda leaf, s=scale: s * jnp.asarray(leaf), path)
        sigma(settings, jnp.float32(0.5))


@every_path
def test_chapman_kolmogorov(path):
    """q(x_u | x_s) and q(x_t | x_u) compose to q(x_t | x_s)."""
    t, u, s = inner_times(path, 8)[[1, 3, 5]]
    first, second, whole = (
        noise.transition(path, s, u),
        noise.transition(path, u, t),
        noise.transition(path, s, t),
    )
    np.testing.assert_allclose(first.alpha * second.alpha, whole.alpha, rtol=1e-4)
    variance = (second.alpha * first.sigma) ** 2 + second.sigma**2
    np.testing.assert_allclose(variance, whole.sigma**2, rtol=1e-4)


@every_path
def test_transition_from_data_is_the_marginal(path):
    if path(path.t_min).sigma > 0:
        pytest.skip("the path starts above sigma = 0")
    t = inner_times(path)
    for got, want in zip(noise.transition(path, path.t_min, t), path(t), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@every_path
def test_posterior_is_bayes_rule(path, x64):
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0)."""
    t, s = inner_times(path, 8)[[2, 4]].astype(np.float64)
    x_0, x_t = np.array([0.7]), np.array([-0.4])
    (alpha_s, sigma_s), step = path(s), noise.transition(path, s, t)
    precision = 1 / sigma_s**2 + (step.alpha / step.sigma) ** 2
    mean = (alpha_s * x_0 / sigma_s**2 + step.alpha * x_t / step.sigma**2) / precision
    got = noise.posterior(path, jnp.asarray(x_0), jnp.asarray(x_t), s, t)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(got.std, precision**-0.5, rtol=1e-9)


@every_path
def test_posterior_at_the_ends(path):
    x_0, x_t = jnp.full((1, 2), 0.7), jnp.full((1, 2), -0.4)
    whole = noise.posterior(path, x_0, x_t, path.t_min, path.t_max)
    chex.assert_tree_all_finite(whole)
    if path(path.t_min).sigma == 0:
        np.testing.assert_allclose(whole.mean, x_0, rtol=1e-6)
        assert whole.std == 0
    for t in (path.t_min, path.t_max):
        stay = noise.posterior(path, x_0, x_t, t, t)
        np.testing.assert_allclose(stay.mean, x_t, rtol=1e-6)
        assert stay.std == 0


@every_path
@hypothesis.given(seed=st.integers(0, 2**16))
def test_drift_and_diffusion_reproduce_the_moments(path, seed):
    """m' = f m and v' = 2 f v + g^2 hold for m = alpha and v = sigma^2."""
    t = np.random.default_rng(seed).choice(inner_times(path))
    (alpha, sigma), rate = noise.marginal_and_rate(path, t)
    f, g = noise.drift_diffusion(path, t)
    np.testing.assert_allclose(f * alpha, rate.alpha, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        2 * f * sigma**2 + g**2, 2 * sigma * rate.sigma, rtol=1e-4, atol=1e-6
    )


@every_path
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_perturb_and_prior_keep_the_dtype(path, dtype, key):
    x = jnp.ones((3, 2), dtype)
    t = jnp.full(3, path.t_max, jnp.float32)
    assert noise.perturb(path, x, x, t).dtype == x.dtype
    draws = noise.prior(key, path, (4096,), dtype)
    assert draws.dtype == x.dtype
    np.testing.assert_allclose(draws.std(), path(path.t_max).sigma, rtol=0.05)
