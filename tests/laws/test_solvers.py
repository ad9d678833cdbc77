"""Laws of every solver, on every path and with every kind of prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import (
    FEW_STEP_SOLVERS,
    KINDS,
    MIXTURE,
    MORE_SOLVERS,
    PATHS,
    SOLVERS,
    each,
    jit_once,
)

from genlib import metrics, noise, prediction, samplers

ALL_SOLVERS = SOLVERS | MORE_SOLVERS | FEW_STEP_SOLVERS
# Of the same plan as another one: the dearest law leaves them out.
ALIKE = {
    "dpmpp_3m_compat",
    "dpm_solver_multistep_3",
    "dpm_solver_2",
    "dpmpp_2s",
    "dpmpp_3s",
    "deis_2_t",
    "pndm",
    "unipc_3_bh1",
    "dpm2",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
}
every_solver = pytest.mark.parametrize("solver", **each(ALL_SOLVERS))
more_solvers = pytest.mark.parametrize("solver", **each(MORE_SOLVERS))

N = 4096
TRUTH = MIXTURE.sample(jax.random.key(1), N)

# Variants of one another: the battery of all kinds runs them on two paths only.
VARIANTS = {"midpoint", "ralston", "ddim_half", "ddpm_large", "dpmpp_2m_heun"}
SECOND_ORDER = [
    SOLVERS[name]
    for name in ("heun", "midpoint", "ralston", "dpmpp_2m", "dpmpp_2m_heun")
]
# These integrate in the path's own time, where only a straight path is one step.
IN_TIME = [SOLVERS[name] for name in ("euler", "heun", "midpoint", "ralston")]
IN_TIME += [MORE_SOLVERS[name] for name in ("adams_bashforth_3", "heun_churn")]
COMBINATIONS = [
    pytest.param(PATHS[path], SOLVERS[solver], id=f"{path}-{solver}")
    for path in PATHS
    for solver in SOLVERS
    if solver not in VARIANTS or path in ("edm", "cosine")
]


@jax.jit
def measure(x, alpha, sigma):
    """Return the distance to exact samples at (alpha, sigma), and the mode weights."""
    eps = jax.random.normal(jax.random.key(2), TRUTH.shape)
    distance = metrics.sliced_wasserstein(
        jax.random.key(3), x, alpha * TRUTH + sigma * eps, projections=16
    )
    return distance, MIXTURE.responsibilities(x, alpha, sigma).mean(0)


def network_of(kind, path):
    """Return the exact network of a kind, which sees what a trained one would see."""
    exact = MIXTURE.denoiser(path)

    def predict_at(x_t, t):
        return prediction.convert(path, exact(x_t, t), x_t, t, prediction.X0, kind)

    return predict_at


def denoiser_of(kind, path):
    """Carry the exact denoiser through a kind and back, as a trained network is."""
    network = network_of(kind, path)

    def denoise(x_t, t):
        # The network of the EDM kind sees scaled inputs; the exact one needs x_t.
        through = prediction.denoiser(lambda x, s: network(x_t, t), path, kind)
        return through(x_t, t)

    return denoise


@pytest.mark.parametrize(("path", "solver"), COMBINATIONS)
def test_every_kind_samples_the_mixture(path, solver, key):
    """Sliced Wasserstein near that of exact samples, mode weights within 0.02."""
    steps = 40 if solver in SECOND_ORDER else 150
    times = samplers.uniform_log_snr(path, steps)
    x_T = noise.prior(key, path, (N, 2), t=times[0])

    @jax.jit
    def run(x, kind_index):
        branches = [denoiser_of(kind, path) for kind in KINDS.values()]
        denoise = lambda x, t: jax.lax.switch(kind_index, branches, x, t)
        return samplers.sample(solver, denoise, path, times, x, key)

    for index, name in enumerate(KINDS):
        # VE ends at its own sigma_min, and so does the truth that it samples.
        distance, share = measure(run(x_T, index), *path(path.t_min))
        assert distance < 0.08, name  # two sets of exact samples are 0.03 apart
        np.testing.assert_allclose(share, MIXTURE.weights, atol=0.02, err_msg=name)


@more_solvers
def test_more_solvers_sample_the_mixture(solver, key):
    path = noise.Rectified()
    steps = 150 if solver.stochastic else 40
    times = samplers.uniform_log_snr(path, steps)
    x_T = noise.prior(key, path, (N, 2), t=times[0])
    run = lambda x: samplers.sample(
        solver, MIXTURE.denoiser(path), path, times, x, key if solver.draws else None
    )
    distance, share = measure(jax.jit(run)(x_T), *path(path.t_min))
    assert distance < 0.08
    np.testing.assert_allclose(share, MIXTURE.weights, atol=0.02)


@pytest.mark.parametrize(
    ("path", "solver"),
    [
        pytest.param(PATHS[path], solver, id=f"{path}-{name}")
        for name, solver in ALL_SOLVERS.items()
        for path in (PATHS if name in SOLVERS else ("vp", "betas_zero_snr"))
    ],
)
def test_few_steps_work_from_end_to_end(path, solver, key):
    for steps in (1, 2) if solver in MORE_SOLVERS.values() else (1,):
        times = samplers.uniform(path, steps)
        x_T = noise.prior(key, path, (3, 2))
        x = samplers.sample(solver, MIXTURE.denoiser(path), path, times, x_T, key)
        assert x.shape == (3, 2)
        assert jnp.isfinite(x).all()


@every_solver
def test_one_step_to_zero_is_the_denoiser(solver, key):
    straight = [noise.EDM(), noise.Rectified()]
    for path in straight if solver in IN_TIME else [*straight, noise.Cosine()]:
        x = noise.prior(key, path, (5, 2))
        denoise = MIXTURE.denoiser(path)
        got = samplers.sample(solver, denoise, path, [path.t_max, path.t_min], x, key)
        want = denoise(x, jnp.float32(path.t_max))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        pytest.param(solver, dtype, id=f"{name}-{dtype}")
        for name, solver in ALL_SOLVERS.items()
        for dtype in ("bfloat16", "float16", "float32", "float64")
        if name in SOLVERS or dtype in ("bfloat16", "float32")
    ],
)
def test_dtype_is_kept(solver, dtype, key, x64):
    path = noise.Cosine()
    seen = set()

    def denoise(x, t):
        seen.add((x.dtype.name, t.dtype.name))
        return 0.5 * x

    x = jnp.ones((2, 3), dtype)
    out = samplers.sample(solver, denoise, path, samplers.uniform(path, 3), x, key)
    assert out.dtype == x.dtype
    assert seen == {(dtype, "float64" if dtype == "float64" else "float32")}


@every_solver
def test_declared_calls_are_the_calls_made(solver, key):
    path = noise.EDM()
    for times in (samplers.karras(path, 7), samplers.karras(path, 7, to_zero=False)):
        calls = []

        def denoise(x, t, calls=calls):
            jax.debug.callback(lambda t: calls.append(t), t)
            return 0.5 * x

        samplers.sample(solver, denoise, path, times, jnp.ones((2, 3)), key)
        jax.effects_barrier()
        assert len(calls) == samplers.nfe(solver, path, times)


@every_solver
def test_saved_states_are_the_ends_of_the_steps(solver, key):
    path = noise.EDM()
    times = samplers.karras(path, 5)
    x, denoise = jnp.full((2, 3), 80.0), lambda x, t: jnp.tanh(x)
    several = (solver.draws,) if solver.draws > 1 else ()
    draws = jax.random.normal(key, (5, *several, 2, 3))
    source = {"noise": draws} if solver.stochastic else {}
    end, saved = samplers.sample(
        solver, denoise, path, times, x, **source, save=lambda x: x
    )
    assert saved.shape == (5, 2, 3)
    np.testing.assert_array_equal(saved[-1], end)
    np.testing.assert_array_equal(
        samplers.sample(solver, denoise, path, times, x, **source), end
    )
    if solver in FEW_STEP_SOLVERS.values() or solver is MORE_SOLVERS["heun_churn"]:
        return  # what their first step does depends on the steps to come
    source = {"noise": draws[:1]} if solver.stochastic else {}
    first = samplers.sample(solver, denoise, path, times[:2], x, **source)
    np.testing.assert_allclose(saved[0], first, rtol=1e-5)


@every_solver
def test_jaxpr_has_random_bits_only_if_the_solver_is_stochastic(solver, key):
    path = noise.Cosine()
    jaxpr = jax.make_jaxpr(
        lambda x, key: samplers.sample(
            solver, lambda x, t: 0.5 * x, path, samplers.uniform(path, 4), x, key
        )
    )(jnp.ones((2, 3)), key)
    assert ("random_bits" in str(jaxpr)) == solver.stochastic


@every_solver
def test_jit_equals_eager_and_vmap_equals_a_loop(solver, key):
    path = noise.Rectified()
    times = samplers.uniform(path, 5)
    run = lambda x, key: samplers.sample(
        solver, MIXTURE.denoiser(path), path, times, x, key
    )
    x = jax.random.normal(key, (3, 4, 2))
    keys = jax.random.split(key, 3)
    eager = jnp.stack([run(x[i], keys[i]) for i in range(3)])
    np.testing.assert_allclose(jax.vmap(run)(x, keys), eager, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(run)(x[0], keys[0]), eager[0], rtol=1e-4)


@pytest.mark.parametrize(
    "solver",
    **each({name: ALL_SOLVERS[name] for name in ALL_SOLVERS if name not in ALIKE}),
)
def test_traced_path_and_grid_give_the_same_samples(solver, key):
    x = jax.random.normal(key, (4, 2))

    def run(beta_max):
        path = noise.VPLinear(beta_max=beta_max)
        times = samplers.uniform_log_snr(path, 6)
        return samplers.sample(solver, MIXTURE.denoiser(path), path, times, x, key)

    value, gradient = jit_once(jax.value_and_grad(lambda b: run(b).sum()))(20.0)
    np.testing.assert_allclose(value, run(20.0).sum(), rtol=2e-2, atol=5e-3)
    assert jnp.isfinite(gradient)
