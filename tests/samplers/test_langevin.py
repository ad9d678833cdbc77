"""Langevin correctors and chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE, jit_once

from genlib import noise, samplers

PATH = noise.EDM()


@pytest.mark.parametrize("norms", ["expected", "example"])
def test_a_correction_is_what_it_says(norms, key, x64):
    """One step of DDIM's, then two of Langevin's at the new time, by example."""
    path, times = noise.Cosine(), [0.9, 0.4]
    predictor = samplers.ddim(0.7)
    solver = samplers.predictor_corrector(predictor, 0.2, 2, norms=norms)
    x, draws = jax.random.normal(key, (3, 2)), jax.random.normal(key, (1, 3, 3, 2))
    denoise = MIXTURE.denoiser(path)
    got = samplers.sample(solver, denoise, path, times, x, noise=draws)

    want = samplers.sample(predictor, denoise, path, times, x, noise=draws[:, 0])
    alpha, sigma = path(times[1])
    for z in draws[0, 1:]:
        score = MIXTURE.score(want, alpha, sigma)
        lengths = [np.linalg.norm(a, axis=1, keepdims=True) for a in (z, score)]
        ratio = sigma if norms == "expected" else lengths[0] / lengths[1]
        size = 2 * (0.2 * ratio) ** 2
        want = want + size * score + np.sqrt(2 * size) * z
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_calls_and_draws_of_a_predictor_corrector(key):
    """Heun's last step to sigma = 0 has one call and no correction."""
    solver = samplers.predictor_corrector(samplers.heun(), 0.2, 3, norms="example")
    times = samplers.karras(PATH, 4)
    assert samplers.nfe(solver, PATH, times) == 3 * (2 + 3) + 1
    assert solver.draws == 3
    x, draws = jnp.ones((2, 3)), jax.random.normal(key, (4, 3, 2, 3))
    run = lambda draws: samplers.sample(
        solver, lambda x, t: jnp.tanh(x), PATH, times, x, noise=draws
    )
    other = draws.at[-1].set(9.0)
    np.testing.assert_array_equal(run(draws), run(other))
    # An example does not see its neighbours.
    mixed = run(draws.at[:, :, 1].set(2.0))
    np.testing.assert_array_equal(mixed[0], run(draws)[0])
    assert (mixed[1] != run(draws)[1]).all()


def test_corrections_mend_a_poor_predictor(key):
    """Eight steps of DDIM's leave too narrow a normal, in 64 dimensions."""
    times = samplers.uniform_log_snr(PATH, 8, sigma_min=0.1, to_zero=False)
    denoise = lambda x, t: x / (1 + t**2)  # of standard normal data
    x = 80 * jax.random.normal(key, (64, 64))

    def spread(solver):
        run = lambda x, key: samplers.sample(solver, denoise, PATH, times, x, key).std()
        return jit_once(run)(x, key)

    want = (1 + 0.1**2) ** 0.5
    correct = samplers.predictor_corrector
    plain = abs(spread(samplers.ddim()) - want)
    solver = correct(samplers.ddim(), corrections=4, norms="example")
    corrected = abs(spread(solver) - want)
    assert corrected < 0.03 < 0.1 < plain


def test_ula_has_the_stationary_law_of_its_step_size(key):
    """x <- (1 - e) x + sqrt(2 e) z has the variance 1 / (1 - e / 2)."""
    step_size = jnp.repeat(jnp.array([0.5, 0.1]), 2000)
    run = lambda key, x: samplers.ula(key, lambda x: -x, x, step_size, 60)
    x = jit_once(run)(key, jnp.ones((4000, 4))).reshape(2, -1)
    np.testing.assert_allclose(x.var(1), [4 / 3, 1 / 0.95], rtol=0.04)


def test_mala_leaves_the_mixture_as_it_is(key):
    """Where the unadjusted chain of the same step size does not."""
    n, sigma, step_size = 8000, 0.3, 0.08
    key_x, key_z = jax.random.split(key)
    x = MIXTURE.sample(key_x, n) + sigma * jax.random.normal(key_z, (n, 2))
    density = lambda x: MIXTURE.log_density(x, 1.0, sigma)
    score = lambda x: MIXTURE.score(x, 1.0, sigma)

    @jit_once
    def run(x):
        end, rate = samplers.mala(key, density, x, step_size, 40)
        ends = [x, end, samplers.ula(key, score, x, step_size, 40)]
        stats = [
            (
                MIXTURE.responsibilities(v, 1.0, sigma).mean(0),
                v.mean(0),
                density(v).mean(),
            )
            for v in ends
        ]
        return jax.tree.map(lambda *c: jnp.stack(c), *stats), rate

    (share, mean, height), rate = run(x)
    assert 0.6 < rate.mean() < 0.95
    assert ((rate >= 0) & (rate <= 1)).all()
    np.testing.assert_allclose(share[1], MIXTURE.weights, atol=0.02)
    np.testing.assert_allclose(mean[1], mean[0], atol=0.03)
    # The mean log density is minus the entropy: its own standard error is about 0.01.
    assert abs(height[1] - height[0]) < 0.03 < 0.06 < height[0] - height[2]


def test_mala_accepts_by_the_ratio_of_metropolis_and_hastings(key, x64):
    """For a normal and e = 1, y = sqrt(2) v, and q(x | y) = N(x; 0, 2) for every y.

    Then r = p(y) q(x) / (p(x) q(y)) = exp((x^2 - y^2) / 4), and by detailed balance
    E min(1, r) = 2 P(r > 1) = 2 P(|x / v| > sqrt(2)).
    """
    key_x, key = jax.random.split(key)
    x = jax.random.normal(key_x, (20_000, 1))
    density = lambda x: -0.5 * jnp.sum(x**2, axis=1)
    end, rate = jit_once(lambda x: samplers.mala(key, density, x, 1.0, 1))(x)
    moved = (end != x)[:, 0]
    np.testing.assert_array_equal(moved, rate == 1)
    want = 2 * (1 - 2 / np.pi * np.arctan(2**0.5))
    np.testing.assert_allclose(rate.mean(), want, atol=0.01)
    np.testing.assert_allclose(end.var(), 1.0, atol=0.03)
    # Where it moved, x^2 - y^2 > 4 log(u) for a uniform u.
    assert (x**2 - end**2)[moved].min() > 4 * np.log(1e-6)


def test_chains_keep_dtype_and_are_each_on_their_own(key):
    x = jnp.ones((3, 2), jnp.bfloat16)
    density = lambda x: -0.5 * jnp.sum(x**2, axis=1)
    run = jit_once(
        lambda x, key: (
            *samplers.mala(key, density, x, 0.3, 5),
            samplers.ula(key, lambda x: -x, x, 0.3, 5),
        )
    )
    end, rate, plain = run(x, key)
    assert end.dtype == plain.dtype == x.dtype
    assert rate.dtype == jnp.float32
    other = run(x.at[1].set(3.0), key)
    for a, b in zip((end, rate, plain), other, strict=True):
        np.testing.assert_array_equal(a[::2], b[::2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.predictor_corrector(samplers.ddim(), -1.0), "snr must"),
        (
            lambda: samplers.predictor_corrector(samplers.ddim(), corrections=0),
            "corrections must be a positive integer",
        ),
        (
            lambda: samplers.predictor_corrector(samplers.ddim(), norms="batch"),
            "norms must be",
        ),
        (
            lambda: samplers.ula(jax.random.key(0), jnp.sin, jnp.ones((1, 1)), 0.0, 1),
            "step_size must be positive",
        ),
        (
            lambda: samplers.mala(jax.random.key(0), jnp.sum, jnp.ones((1, 1)), 0.1, 0),
            "steps must be a positive integer",
        ),
        (lambda: samplers.ula(0, jnp.sin, jnp.ones((1, 1)), 0.1, 1), "typed key"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()
