"""Few-step solvers: consistency models and aDDIM. Golden values: test_stochastic.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import LINEAR_BETAS, MIXTURE, X_UNIT

from genlib import noise, samplers

HERE = Path(__file__).parent
STOCHASTIC = json.loads((HERE.parent / "golden/stochastic.json").read_text())
LINEAR = noise.DiscreteBetas(LINEAR_BETAS)


def test_multistep_consistency_sampling_of_the_paper(key, x64):
    """On EDM's path down to e = 0.002: x = f + sqrt(tau^2 - e^2) z, in turns."""
    times, e = np.array([80.0, 20.0, 3.0, 0.002]), 0.002
    draws, x = jax.random.normal(key, (3, 4, 2)), 80 * jnp.asarray(X_UNIT)
    f = lambda x, t: jnp.tanh(x / t)
    got = samplers.sample(samplers.consistency(), f, noise.EDM(), times, x, noise=draws)
    want = f(x, 80.0)
    for tau, z in zip(times[1:-1], draws, strict=False):
        want = f(want + np.sqrt(tau**2 - e**2) * z, tau)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_lcm_with_the_boundary_condition_of_diffusers():
    """Its scalings, around the denoiser, leave its samples as they are."""

    def scalings(t):
        u = 20.0 * (t - 1)
        return 1 / (1 + u**2), u / np.sqrt(1 + u**2)

    for timestep, want in STOCHASTIC["lcm_scalings"].items():
        np.testing.assert_allclose(scalings(int(timestep) + 1), want, rtol=1e-7)
    path = noise.DiscreteBetas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    inner = MIXTURE.denoiser(path)

    def bounded(x, t):
        skip, out = 1 / (1 + (20 * (t - 1)) ** 2), 20 * (t - 1)
        return skip * x + out / jnp.sqrt(1 + out**2) * inner(x, t)

    draws = np.random.RandomState(0).randn(4, 4, 2)
    times, x = samplers.distilled(path, 4), jnp.asarray(X_UNIT, jnp.float32)
    x = samplers.sample(samplers.lcm(), bounded, path, times, x, noise=draws)
    np.testing.assert_allclose(
        x[0], STOCHASTIC["diffusers"]["lcm"], rtol=1e-5, atol=1e-6
    )


def test_grid_of_distilled_models():
    times = samplers.distilled(LINEAR, 4)
    np.testing.assert_array_equal(times[:-1] - 1, STOCHASTIC["distilled"])
    np.testing.assert_array_equal(
        samplers.distilled(LINEAR, 50)[[0, 1, -1]], [1000, 980, 0]
    )


def test_tcd_is_between_ddim_and_lcm(key, x64):
    """And adds no noise in its last step."""
    path, times = noise.Rectified(), [1.0, 0.6, 0.3, 0.0]
    x, draws = jax.random.normal(key, (4, 2)), jax.random.normal(key, (3, 4, 2))
    run = lambda solver, draws=draws: samplers.sample(
        solver,
        MIXTURE.denoiser(path),
        path,
        times,
        x,
        noise=draws if solver.stochastic else None,
    )
    np.testing.assert_allclose(run(samplers.tcd(0.0)), run(samplers.ddim()))
    np.testing.assert_allclose(run(samplers.tcd(1.0)), run(samplers.lcm()))
    middle = run(samplers.tcd(0.3))
    np.testing.assert_array_equal(middle, run(samplers.tcd(0.3), draws.at[-1].set(5.0)))
    assert jnp.abs(middle - run(samplers.ddim())).min() > 1e-3


def test_addim_is_what_the_paper_says(key, x64):
    path, times = noise.Cosine(), [0.8, 0.5]
    x = jax.random.normal(key, (3, 4, 2))
    denoise = lambda x, t: jnp.sin(3 * x)
    got = samplers.sample(samplers.addim(), denoise, path, times, x)
    (a_t, s_t), (a_s, s_s) = path(0.8), path(0.5)
    x_0 = denoise(x, 0.8)
    eps = (x - a_t * x_0) / s_t
    size = eps.reshape(3, 8)
    v = 0.1 / (2 + (a_t / s_t) ** 2)
    norm = jnp.sum(size**2, axis=1)[:, None, None]
    scale = jnp.sqrt(s_s**2 + 8 / norm * (a_s - a_t * s_s / s_t) ** 2 * v)
    np.testing.assert_allclose(got, a_s * x_0 + scale * eps, rtol=1e-12)
    plain = samplers.sample(samplers.ddim(), denoise, path, times, x)
    same = samplers.sample(samplers.addim(0.0), denoise, path, times, x)
    np.testing.assert_allclose(same, plain, rtol=1e-12)


def test_addim_does_not_mix_the_examples_of_a_batch(key):
    """As a norm over the whole batch would (it converges in `test_orders`)."""
    path = noise.Cosine()
    times, x = samplers.uniform(path, 5), jax.random.normal(key, (2, 3))
    run = lambda x: samplers.sample(
        samplers.addim(), lambda x, t: jnp.tanh(x), path, times, x
    )
    other = run(x.at[1].set(4.0))
    np.testing.assert_array_equal(run(x)[0], other[0])
    assert (run(x)[1] != other[1]).all()


def test_addim_where_eps_is_zero():
    path = noise.EDM()
    run = lambda x: samplers.sample(
        samplers.addim(), lambda x, t: x, path, [2.0, 1.0], x
    )
    np.testing.assert_array_equal(run(jnp.ones((1, 2))), 1.0)
    assert jnp.isfinite(jax.jacrev(run)(jnp.ones((1, 2)))).all()


@pytest.mark.parametrize(
    "solver", [samplers.lcm(), samplers.tcd(0.3)], ids=["lcm", "tcd"]
)
def test_one_step_is_one_call(solver, key):
    path = noise.Rectified()
    x = jax.random.normal(key, (5, 2))
    denoise = MIXTURE.denoiser(path)
    got = samplers.sample(solver, denoise, path, [1.0, 0.0], x, key)
    np.testing.assert_allclose(got, denoise(x, 1.0), rtol=1e-5, atol=1e-6)
    assert samplers.nfe(solver, path, [1.0, 0.0]) == 1
