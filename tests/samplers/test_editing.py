"""Inpainting, RePaint, DDIM inversion and SDEdit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE, jit_once

from genlib import guidance, noise, samplers

PATH = noise.Cosine()
TIMES = samplers.uniform_log_snr(PATH, 6)
MASK = np.array([True, False])
KNOWN = np.array([[0.6, 9.0], [-0.4, 9.0]], np.float32)
DENOISE = MIXTURE.denoiser(PATH)
RHO = 0.9  # of two normal components


def correlated(x, t, path=PATH):
    alpha, sigma = path(t)
    covariance = jnp.array([[1.0, RHO], [RHO, 1.0]])
    total = alpha**2 * covariance + sigma**2 * jnp.eye(2)
    return x @ (alpha * jnp.linalg.solve(total, covariance))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_inpainting_is_the_solver_with_replaced_states(eta, key):
    """By hand: a step of DDIM, then alpha_s known + sigma_s z from the last draw."""
    solver = samplers.inpaint(samplers.ddim(eta), KNOWN, MASK)
    assert solver.draws == (1 if eta == 0 else 2)
    draws = jax.random.normal(key, (6, 2, 2, 2))
    alpha, sigma = samplers.tabulate(PATH, TIMES)[1:3]
    want = x_T = jax.random.normal(key, (2, 2))
    for k in range(6):
        source = {} if eta == 0 else {"noise": draws[k, :1]}
        grid = TIMES[k : k + 2]
        want = samplers.sample(samplers.ddim(eta), DENOISE, PATH, grid, want, **source)
        seen = alpha[k + 1] * KNOWN + sigma[k + 1] * draws[k, -1]
        want = jnp.where(jnp.broadcast_to(MASK, (2, 2)), seen, want)
    given = draws[:, -1] if eta == 0 else draws
    got = samplers.sample(solver, DENOISE, PATH, TIMES, x_T, noise=given)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[:, 0], KNOWN[:, 0])


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc", "dpmpp_sde"])
def test_any_solver_of_the_grid_inpaints(name, key):
    """With several calls, segments, memory or draws; known to the last bit."""
    plain = getattr(samplers, name)()
    solver = samplers.inpaint(plain, KNOWN, MASK)
    assert solver.draws == plain.draws + 1
    assert samplers.nfe(solver, PATH, TIMES) == samplers.nfe(plain, PATH, TIMES)
    run = lambda x, key: samplers.sample(solver, DENOISE, PATH, TIMES, x, key)
    x = jax.random.normal(key, (2, 2))
    out = run(x, key)
    np.testing.assert_array_equal(out[:, 0], KNOWN[:, 0])
    assert (jnp.abs(out[:, 1]) < 3).all()


def test_an_example_does_not_see_its_batch(key):
    x = jax.random.normal(key, (2, 2))
    for wrap in (samplers.inpaint, samplers.repaint):
        settings = {"jump_length": 2} if wrap is samplers.repaint else {}
        run = lambda x, known, wrap=wrap, settings=settings: samplers.sample(
            wrap(samplers.ddpm(), known, MASK, **settings), DENOISE, PATH, TIMES, x, key
        )
        whole = run(x, KNOWN)
        np.testing.assert_allclose(run(x[:1], KNOWN[:1]), whole[:1], rtol=1e-5)
        other = run(x, np.stack([KNOWN[0], 0 * KNOWN[0]]))
        np.testing.assert_array_equal(other[0], whole[0])


def test_the_order_of_repaint():
    """Six steps, jumps of two back, each step three times."""
    path = noise.Rectified()
    times = samplers.uniform(path, 6)
    solver = samplers.repaint(samplers.ddpm(), 0.0, MASK, jump_length=2, resamplings=3)
    (rows,) = solver.plan(path, times)
    taken = np.round(6 - 6 * rows["t"]).astype(int).tolist()
    assert taken == [0, 1] * 3 + [2, 3] * 3 + [4, 5] * 3
    assert samplers.nfe(solver, path, times) == 18
    # Jumps lead to the times that the next steps start from.
    left = [1 - step / 6 for step in [*taken[1:], 6]]
    np.testing.assert_allclose(rows["sigma"], left, atol=1e-12)
    back = np.flatnonzero(rows["lift_std"])
    assert back.tolist() == [1, 3, 7, 9, 13, 15]
    for k in back:
        s, t = 1 - (taken[k] + 1) / 6, left[k]
        want = noise.transition(path, s, t)
        np.testing.assert_allclose(rows["lift"][k], want.alpha, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(rows["lift_std"][k], want.sigma, rtol=1e-5)
    plain = samplers.repaint(samplers.ddpm(), 0.0, MASK, resamplings=1, jump_length=6)
    (rows,) = plain.plan(path, times)
    (inpaint,) = samplers.inpaint(samplers.ddpm(), 0.0, MASK).plan(path, times)
    for name, column in inpaint.items():
        np.testing.assert_array_equal(rows[name], column)


def test_repaint_of_nothing_samples_the_data(key):
    """Jumps keep the law of x, back over the segments of Heun's solver."""
    path = noise.VPLinear()
    times = samplers.uniform_log_snr(path, 60)
    x = noise.prior(key, path, (20_000, 1), t=times[0])
    none = np.array(False)
    solver = samplers.repaint(samplers.heun(), 0.0, none, jump_length=30, resamplings=2)
    assert len(solver.plan(path, times)) == 4
    denoise = lambda x, t: path(t).alpha * x
    out = samplers.sample(solver, denoise, path, times, x, key)
    np.testing.assert_allclose(out.var(), 1.0, rtol=0.03)


def test_repaint_mends_what_replacement_breaks(key):
    """The mean of one of two correlated numbers given the other, known to be rho."""
    times = samplers.uniform_log_snr(PATH, 30)
    x = noise.prior(key, PATH, (4000, 2), t=times[0])
    known = np.array([1.0, 0.0], np.float32)
    run = lambda solver: samplers.sample(solver, correlated, PATH, times, x, key)[:, 1]
    once = run(samplers.inpaint(samplers.ddpm(), known, MASK))
    again = run(samplers.repaint(samplers.ddpm(), known, MASK, jump_length=1))
    assert np.abs(once.mean() - RHO) > 0.3
    assert np.abs(again.mean() - RHO) < 0.04


def test_wrappers_may_be_nested(key):
    """Two masks, one inside of the other, and Langevin steps."""
    other = np.array([False, True])
    inner = samplers.predictor_corrector(samplers.ddpm())
    solver = samplers.repaint(
        samplers.inpaint(inner, KNOWN, MASK), 0.3, other, jump_length=2
    )
    x = jax.random.normal(key, (2, 2))
    out = samplers.sample(solver, DENOISE, PATH, TIMES, x, key)
    np.testing.assert_array_equal(out[:, 0], KNOWN[:, 0])
    np.testing.assert_allclose(out[:, 1], 0.3, rtol=1e-6)


def test_inversion_goes_there_and_back(x64):
    """The fixed point is the exact inverse; one iteration is of first order."""
    x_0 = jnp.asarray(MIXTURE.means) + jnp.array([[0.1, -0.2]])

    def error(steps, iterations):
        times = np.append(np.linspace(1.0, 0.05, steps), 0.02)

        @jit_once
        def run(x):
            solver = samplers.ddim_inversion(iterations)
            x_T = samplers.sample(solver, DENOISE, PATH, times, x)
            return samplers.sample(samplers.ddim(), DENOISE, PATH, times, x_T)

        return np.abs(run(x_0) - x_0).max()

    first = [error(steps, 1) for steps in (40, 80)]
    assert 1e-4 < first[1] < 0.65 * first[0]
    assert error(40, 12) < 1e-5


def test_inversion_of_normal_data_is_exact_at_once(key):
    """From the data end itself to alpha = 0, N(0, 1) in one call a step."""
    x_0 = jax.random.normal(key, (4, 2))
    denoise = lambda x, t: PATH(t).alpha * x
    times = samplers.uniform(PATH, 5)
    solver = samplers.ddim_inversion()
    x_T = samplers.sample(solver, denoise, PATH, times, x_0)
    back = samplers.sample(samplers.ddim(), denoise, PATH, times, x_T)
    np.testing.assert_allclose(back, x_0, rtol=1e-5)
    more = samplers.ddim_inversion(3)
    assert samplers.nfe(more, PATH, times) == 15
    got = samplers.sample(more, denoise, PATH, times, x_0)
    np.testing.assert_allclose(got, x_T, rtol=1e-5)


def test_inversion_carries_the_memory_of_guidance():
    counted = []
    momentum = guidance.adaptive_projected(
        lambda x, t: 0.5 * x, lambda x, t: 0.1 * x, 2.0, momentum=-0.5
    )

    def apply(x, t, memory):
        counted.append(t)
        return momentum.apply(x, t, memory)

    x = jnp.ones((1, 2))
    out = samplers.sample(
        samplers.ddim_inversion(2),
        dataclasses.replace(momentum, apply=apply),
        PATH,
        TIMES,
        x,
    )
    assert len(counted) == 2
    assert jnp.isfinite(out).all()


def test_sdedit_starts_where_the_path_is(key):
    x_0 = jnp.full((20_000, 2), 0.7)
    for strength, left in ((1.0, 6), (0.5, 3), (0.2, 1)):
        x_t, times = samplers.sdedit(key, PATH, TIMES, x_0, strength)
        np.testing.assert_array_equal(times, TIMES[6 - left :])
        alpha, sigma = PATH(times[0])
        np.testing.assert_allclose(x_t.mean(0), 0.7 * alpha, atol=0.03)
        np.testing.assert_allclose(x_t.std(0), sigma, rtol=0.02)
    half, _ = samplers.sdedit(key, PATH, TIMES, x_0[:4].astype(jnp.bfloat16), 0.5)
    assert half.dtype == jnp.bfloat16
    # Noise of an example does not depend on its batch.
    whole, _ = samplers.sdedit(key, PATH, TIMES, x_0[:4], 0.5)
    alone, _ = samplers.sdedit(key, PATH, TIMES, x_0[:1], 0.5)
    np.testing.assert_array_equal(alone, whole[:1])


def test_sdedit_of_little_strength_stays_near(key):
    """Farther edits are farther from the start, and all end on the data."""
    x_0 = jnp.asarray(MIXTURE.means[:1] + 0.3, jnp.float32).repeat(500, axis=0)
    times = samplers.uniform_log_snr(PATH, 20)
    distance = []
    for strength in (0.2, 0.6, 1.0):
        x_t, left = samplers.sdedit(key, PATH, times, x_0, strength)
        out = samplers.sample(samplers.ddim(), DENOISE, PATH, left, x_t)
        distance.append(jnp.linalg.norm(out - x_0, axis=1).mean())
    assert 0 < distance[0] < 0.6 * distance[1] < 0.6 * distance[2]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: samplers.inpaint(samplers.ddim(), KNOWN, MASK),
        lambda: samplers.repaint(samplers.ddim(0.5), KNOWN, MASK, jump_length=2),
        lambda: samplers.ddim_inversion(2),
    ],
    ids=["inpaint", "repaint", "ddim_inversion"],
)
def test_traced_paths_and_dtypes(wrap, key):
    x = jnp.ones((2, 2))

    def run(beta_max, x):
        path = noise.VPLinear(beta_max=beta_max)
        times = samplers.uniform(path, 4)
        source = {"key": key} if wrap().stochastic else {}
        denoise = lambda x, t: path(t).alpha.astype(x.dtype) * x
        return samplers.sample(wrap(), denoise, path, times, x, **source)

    value, slope = jit_once(jax.value_and_grad(lambda b: run(b, x).sum()))(20.0)
    np.testing.assert_allclose(value, run(20.0, x).sum(), rtol=2e-3)
    assert jnp.isfinite(slope)
    half = jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)
    assert jax.eval_shape(run, 20.0, half).dtype == jnp.bfloat16


X = jnp.ones((2, 2))
KEY = jax.random.key(0)


def run(solver, times=TIMES):
    return samplers.sample(solver, DENOISE, PATH, times, X, KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: samplers.inpaint(samplers.ddim(), KNOWN, np.ones(2)),
            "mask must be boolean.*float",
        ),
        (
            lambda: run(samplers.inpaint(samplers.ddim(), KNOWN, np.ones(3, bool))),
            r"mask must broadcast to the shape \(2, 2\) of x.*\(3,\)",
        ),
        (
            lambda: run(samplers.inpaint(samplers.ddim(), KNOWN[None], MASK)),
            r"known must broadcast to the shape \(2, 2\) of x.*\(1, 2, 2\)",
        ),
        (
            lambda: run(
                samplers.inpaint(
                    samplers.repaint(samplers.ddim(), KNOWN, MASK, jump_length=2),
                    KNOWN,
                    MASK,
                )
            ),
            "solver must have one row for each of 6 steps of the grid; it has 60",
        ),
        (
            lambda: run(
                samplers.repaint(samplers.dpmpp_2m(), KNOWN, MASK, jump_length=2)
            ),
            "solver must have no memory",
        ),
        (
            lambda: run(samplers.repaint(samplers.ddim(), KNOWN, MASK)),
            "jump_length must be at most the 6 steps of the grid; it is 10",
        ),
        (
            lambda: samplers.repaint(samplers.ddim(), KNOWN, MASK, resamplings=0),
            "resamplings must be a positive integer; it is 0",
        ),
        (lambda: samplers.ddim_inversion(0), "iterations must be a positive integer"),
        (
            lambda: run(samplers.ddim_inversion(), [1.0, 0.0]),
            "times must not go from alpha = 0 to sigma = 0 in one step",
        ),
        (
            lambda: samplers.sdedit(KEY, PATH, TIMES, X, 0.0),
            r"strength must be .* 0\.0",
        ),
        (
            lambda: samplers.sdedit(KEY, PATH, TIMES, X, 1.2),
            r"strength must be .* 1\.2",
        ),
        (lambda: samplers.sdedit(KEY, PATH, TIMES, X, 0.01), "at least one of 6 steps"),
        (
            lambda: samplers.sample(
                samplers.inpaint(samplers.ddpm(), KNOWN, MASK),
                DENOISE,
                PATH,
                TIMES,
                X,
                noise=samplers.brownian(KEY),
            ),
            "noise must be a key, an array or a function",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
