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
    WHOLE,
    each,
    jit_once,
    jit_optimized,
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
# Four kinds in turn for each pair, so that every kind meets every path and every solver
# (the laws of predictions show that every kind is exact on every path).
COMBINATIONS = [
    pytest.param(
        PATHS[path],
        SOLVERS[solver],
        [list(KINDS)[(row + column + turn) % len(KINDS)] for turn in range(4)],
        id=f"{path}-{solver}",
    )
    for row, path in enumerate(PATHS)
    for column, solver in enumerate(SOLVERS)
    if solver not in VARIANTS or path in ("edm", "cosine")
]


@jit_optimized
def measure(x, alpha, sigma):
    """Return the distance to exact samples at (alpha, sigma), and the mode weights."""
    eps = jax.random.normal(jax.random.key(2), TRUTH.shape)
    distance = metrics.sliced_wasserstein(
        jax.random.key(3), x, alpha * TRUTH + sigma * eps, projections=16
    )
    return distance, MIXTURE.responsibilities(x, alpha, sigma).mean(0)


def denoiser_through(path, kinds):
    """Carry the exact denoiser through one of the kinds, as a trained network is."""

    def through(kind):
        def denoise(x_t, t, x_0):
            # The network of the EDM kind sees scaled inputs; the exact one needs x_t.
            exact = prediction.convert(path, x_0, x_t, t, prediction.X0, kind)
            return prediction.denoiser(lambda x, s: exact, path, kind)(x_t, t)

        return denoise

    exact, branches = MIXTURE.denoiser(path), [through(KINDS[name]) for name in kinds]
    return lambda index: (
        lambda x_t, t: jax.lax.switch(index, branches, x_t, t, exact(x_t, t))
    )


def test_every_kind_meets_every_path_and_every_solver():
    for axis, names in enumerate((PATHS.values(), SOLVERS.values())):
        for one in names:
            mine = [case.values[2] for case in COMBINATIONS if case.values[axis] is one]
            assert {name for kinds in mine for name in kinds} == set(KINDS)


@pytest.fixture(scope="module")
def draws():
    """One table of noise for many runs: a key for each example takes longer to use."""
    return jax.random.normal(jax.random.key(5), (150, *TRUTH.shape))


@pytest.mark.parametrize(("path", "solver", "kinds"), COMBINATIONS)
def test_every_kind_samples_the_mixture(path, solver, kinds, key, draws):
    """Sliced Wasserstein near that of exact samples, mode weights within 0.02."""
    steps = 40 if solver in SECOND_ORDER else 150
    times = samplers.uniform_log_snr(path, steps)
    x_T = noise.prior(key, path, (N, 2), t=times[0])

    @jit_once
    def run(x, kind_index, draws):
        denoise = denoiser_through(path, kinds)(kind_index)
        return samplers.sample(solver, denoise, path, times, x, noise=draws)

    draws = draws if solver.stochastic else None
    for index, name in enumerate(kinds):
        # VE ends at its own sigma_min, and so does the truth that it samples.
        distance, share = measure(run(x_T, index, draws), *path(path.t_min))
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
    distance, share = measure(jit_once(run)(x_T), *path(path.t_min))
    assert distance < 0.08
    np.testing.assert_allclose(share, MIXTURE.weights, atol=0.02)


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_few_steps_work_from_end_to_end(name, key):
    solver = ALL_SOLVERS[name]
    paths = PATHS if name in SOLVERS else ("vp", "betas_zero_snr")

    @jit_once
    def run(key):
        ends = {}
        for path_name in paths:
            path = PATHS[path_name]
            x_T = noise.prior(key, path, (3, 2))
            for steps in (1, 2) if name in MORE_SOLVERS else (1,):
                times = samplers.uniform(path, steps)
                x = samplers.sample(solver, WHOLE.denoiser(path), path, times, x_T, key)
                ends[path_name, steps] = x
        return ends

    for case, x in run(key).items():
        assert x.shape == (3, 2), case
        assert jnp.isfinite(x).all(), case


@every_solver
def test_one_step_to_zero_is_the_denoiser(solver, key):
    straight = [noise.EDM(), noise.Rectified()]
    paths = straight if solver in IN_TIME else [*straight, noise.Cosine()]
    denoise = lambda x, t: jnp.sin(x + t)
    starts = [noise.prior(key, path, (5, 2)) for path in paths]

    @jit_once
    def run(starts):
        ends = [[path.t_max, path.t_min] for path in paths]
        settings = zip(paths, ends, starts, strict=True)
        return [samplers.sample(solver, denoise, *each, key) for each in settings]

    for path, x, got in zip(paths, starts, run(starts), strict=True):
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

    out = jax.eval_shape(
        lambda x: samplers.sample(
            solver, denoise, path, samplers.uniform(path, 3), x, key
        ),
        jax.ShapeDtypeStruct((2, 3), dtype),
    )
    assert out.dtype == dtype
    assert seen == {(dtype, "float64" if dtype == "float64" else "float32")}


@every_solver
def test_declared_calls_are_the_calls_made(solver, key):
    """Those in the body of each scan, as often as it runs."""
    path = noise.EDM()

    def denoise(x, t):
        jax.debug.callback(lambda t: None, t)
        return 0.5 * x

    for times in (samplers.karras(path, 7), samplers.karras(path, 7, to_zero=False)):
        traced = jax.make_jaxpr(
            lambda x, times=times: samplers.sample(solver, denoise, path, times, x, key)
        )(jnp.ones((2, 3)))
        scans = [eqn.params for eqn in traced.eqns if eqn.primitive.name == "scan"]
        calls = [str(scan["jaxpr"]).count("debug_callback[") for scan in scans]
        assert str(traced).count("debug_callback[") == sum(calls)  # none elsewhere
        made = sum(n * scan["length"] for n, scan in zip(calls, scans, strict=True))
        assert made == samplers.nfe(solver, path, times)


@every_solver
def test_saved_states_are_the_ends_of_the_steps(solver, key):
    path = noise.EDM()
    times = samplers.karras(path, 5)
    x, denoise = jnp.full((2, 3), 80.0), lambda x, t: jnp.tanh(x)
    several = (solver.draws,) if solver.draws > 1 else ()
    draws = jax.random.normal(key, (5, *several, 2, 3))
    # What their first step does depends on the steps to come.
    ahead = solver in FEW_STEP_SOLVERS.values() or solver is MORE_SOLVERS["heun_churn"]

    def run(times, **save):
        source = {"noise": draws[: len(times) - 1]} if solver.stochastic else {}
        return samplers.sample(solver, denoise, path, times, x, **source, **save)

    @jit_once
    def every():
        first = None if ahead else run(times[:2])
        return run(times, save=lambda x: x), run(times), first

    (end, saved), unsaved, first = every()
    assert saved.shape == (5, 2, 3)
    np.testing.assert_array_equal(saved[-1], end)
    np.testing.assert_array_equal(unsaved, end)
    if not ahead:
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
        solver, WHOLE.denoiser(path), path, times, x, key
    )
    x = jax.random.normal(key, (3, 4, 2))
    keys = jax.random.split(key, 3)
    compiled = jit_once(run)
    loop = jnp.stack([compiled(x[i], keys[i]) for i in range(3)])
    vmapped = jit_once(jax.vmap(run))(x, keys)
    np.testing.assert_allclose(vmapped, loop, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(x[0], keys[0]), loop[0], rtol=1e-4)


@pytest.mark.parametrize(
    "solver",
    **each({name: ALL_SOLVERS[name] for name in ALL_SOLVERS if name not in ALIKE}),
)
def test_traced_path_and_grid_give_the_same_samples(solver, key):
    x = jax.random.normal(key, (4, 2))

    def run(beta_max):
        path = noise.VPLinear(beta_max=beta_max)
        times = samplers.uniform_log_snr(path, 6)
        return samplers.sample(solver, WHOLE.denoiser(path), path, times, x, key).sum()

    value, gradient = jit_once(jax.value_and_grad(run))(20.0)
    np.testing.assert_allclose(value, run(20.0), rtol=2e-2, atol=5e-3)
    assert jnp.isfinite(gradient)
