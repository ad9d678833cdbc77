"""The sampling loop: noise, keys, sweeps and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE, traced_once

from genlib import guidance, noise, prediction, samplers
from genlib.types import StatefulDenoiser

PATH = noise.Cosine()
TIMES = samplers.uniform(PATH, 6)
DENOISE = MIXTURE.denoiser(PATH)


def run(solver, x, *args, **kwargs):
    return samplers.sample(solver, DENOISE, PATH, TIMES, x, *args, **kwargs)


def test_noise_from_an_array_and_from_a_function_agree(key):
    x, draws = jnp.ones((4, 2)), jax.random.normal(key, (6, 4, 2))
    table = run(samplers.ddpm(), x, noise=draws)
    called = run(samplers.ddpm(), x, noise=lambda i: draws[i])
    np.testing.assert_array_equal(table, called)
    assert (table != run(samplers.ddpm(), x, noise=-draws)).all()


def test_a_sample_does_not_depend_on_its_batch(key):
    x = jax.random.normal(key, (4, 2))
    whole = run(samplers.ddpm(), x, key)
    np.testing.assert_allclose(run(samplers.ddpm(), x[:1], key), whole[:1], rtol=1e-5)
    keys = jax.random.split(key, 4)
    each = run(samplers.ddpm(), x, keys)
    last = run(samplers.ddpm(), x[3:], keys[3:])
    np.testing.assert_allclose(last, each[3:], rtol=1e-5)


def test_noise_differs_between_steps_and_examples(key):
    path = noise.EDM()
    _, saved = samplers.sample(
        samplers.ddpm(),
        lambda x, t: x,
        path,
        [3.0, 2.0, 1.0],
        jnp.zeros((2, 500)),
        key,
        save=lambda x: x,
    )
    steps = jnp.stack([saved[0], saved[1] - saved[0]]).reshape(4, 500)
    correlation = jnp.corrcoef(steps) - jnp.eye(4)
    assert jnp.abs(correlation).max() < 0.15


def test_ddpm_large_adds_the_variance_of_the_forward_step(key):
    """beta_k of the chain, where the small variance is the posterior's."""
    path = noise.DiscreteBetas(np.array([0.1, 0.2, 0.3]))
    x = jnp.zeros((1, 100_000))
    last = [3.0, 2.0]
    for variance, want in (("large", 0.3), ("small", 0.3 * (1 - 0.72) / (1 - 0.504))):
        out = samplers.sample(
            samplers.ddpm(variance), lambda x, t: 0 * x, path, last, x, key
        )
        np.testing.assert_allclose(out.var(), want, rtol=0.02)


def test_lower_order_final_ends_in_a_ddim_step():
    times = samplers.uniform_log_snr(PATH, 6, to_zero=False)
    x = jnp.array([[0.9, -0.2]])
    get = lambda solver, times, x: samplers.sample(solver, DENOISE, PATH, times, x)
    got = get(samplers.dpmpp_2m(lower_order_final=True), times, x)
    before = get(samplers.dpmpp_2m(), times[:-1], x)
    want = get(samplers.ddim(), times[-2:], before)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert (jnp.abs(got - get(samplers.dpmpp_2m(), times, x)) > 1e-5).all()


def test_no_noise_in_the_last_step(key):
    x = jnp.ones((2, 2))
    draws = jax.random.normal(key, (6, 2, 2))
    other = draws.at[-1].set(100.0)
    np.testing.assert_array_equal(
        run(samplers.ddpm("large"), x, noise=draws),
        run(samplers.ddpm("large"), x, noise=other),
    )


def test_sweeping_eta_beta_max_and_guidance_scale_traces_once(key):
    @jax.jit
    @traced_once
    def sweep(eta, beta_max, scale):
        path = noise.VPLinear(beta_max=beta_max)
        denoise = MIXTURE.denoiser(path)
        guided = guidance.classifier_free(denoise, lambda x, t: 0 * x, scale)
        x = jnp.ones((2, 2))
        return samplers.sample(samplers.ddim(eta), guided, path, TIMES, x, key)

    results = [
        sweep(0.0, 20.0, 1.0),
        sweep(0.5, 20.0, 1.0),
        sweep(0.0, 15.0, 1.0),
        sweep(0.0, 20.0, 2.0),
    ]
    for other in results[1:]:
        assert (jnp.abs(other - results[0]) > 1e-4).any()
    fixed = noise.VPLinear()
    want = samplers.sample(
        samplers.ddim(), MIXTURE.denoiser(fixed), fixed, TIMES, jnp.ones((2, 2))
    )
    np.testing.assert_allclose(results[0], want, rtol=1e-3)


def test_one_compilation_for_other_keys_and_inputs(key):
    step = jax.jit(traced_once(lambda x, key: run(samplers.ddpm(), x, key)))
    step(jnp.ones((2, 2)), key)
    step(jnp.zeros((2, 2)), jax.random.key(5))
    assert step._cache_size() <= 1  # 0: forgotten


def test_coefficients_are_float64_tables_even_inside_a_trace():
    """Ten thousand steps of DDIM in float32 stay on the float64 solution."""
    times = samplers.uniform(PATH, 10_000)
    x = jnp.array([[0.7, -1.1]])
    got = jax.jit(
        lambda x: samplers.sample(samplers.ddim(), lambda x, t: x, PATH, times, x)
    )(x)
    with jax.enable_x64(True):
        wide = samplers.sample(
            samplers.ddim(), lambda x, t: x, PATH, times, jnp.asarray(x, jnp.float64)
        )
    np.testing.assert_allclose(got, wide, rtol=1e-4)


@pytest.mark.parametrize(
    "times",
    [
        [0.5],
        [],
        0.5,
        [[1.0, 0.5]],
        [0.5, 0.5],
        [0.2, 0.5],
        [1.0, 0.5, 0.7],
        [1.1, 0.0],
        [1.0, -0.1],
        [1.0, np.nan],
    ],
)
def test_bad_times(times):
    with pytest.raises(ValueError, match="times must"):
        samplers.sample(samplers.ddim(), DENOISE, PATH, times, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="times must"):
        samplers.nfe(samplers.ddim(), PATH, times)


@pytest.mark.parametrize(
    ("x", "kwargs", "message"),
    [
        (jnp.ones(()), {}, "x must be a floating batch"),
        (jnp.ones((2, 2), int), {}, "x must be a floating batch"),
        (jnp.ones((2, 2)), {}, "needs either key or noise; it got neither"),
        (
            jnp.ones((2, 2)),
            {"key": jax.random.key(0), "noise": jnp.ones((6, 2, 2))},
            "both",
        ),
        (jnp.ones((2, 2)), {"noise": jnp.ones((5, 2, 2))}, r"noise must be one draw"),
        (jnp.ones((2, 2)), {"noise": jnp.ones((6, 3, 2))}, r"noise must be one draw"),
        (jnp.ones((2, 2)), {"key": jax.random.PRNGKey(0)}, "typed key"),
        (
            jnp.ones((2, 2)),
            {"key": jax.random.split(jax.random.key(0), 3)},
            "one key or",
        ),
    ],
)
def test_bad_arguments(x, kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(samplers.ddpm(), x, **kwargs)


@pytest.mark.parametrize(
    "call",
    [
        lambda: samplers.ddim(-0.1),
        lambda: samplers.ddim(1.5),
        lambda: samplers.ddim(np.nan),
        lambda: samplers.ddpm("tiny"),
        lambda: samplers.dpmpp_2m("euler"),
    ],
)
def test_bad_settings(call):
    with pytest.raises(ValueError, match="must be"):
        call()


def test_float32_grids_may_round_past_the_end():
    path = noise.EDM(14.6)
    times = np.linspace(np.float32(path.t_max), 0, 4)
    x = samplers.sample(
        samplers.euler(), lambda x, t: 0 * x, path, times, jnp.ones((1, 1))
    )
    assert x == 0


@pytest.mark.parametrize("solver", [samplers.euler(), samplers.heun()])
def test_solvers_in_time_start_at_zero_terminal_snr(solver):
    """A finite slope at alpha = 0, with data that is not centred."""
    path = noise.DiscreteBetas(np.append(np.linspace(1e-4, 0.02, 999), 1.0))
    denoise = lambda x, t: jnp.broadcast_to(jnp.array([[1.0, 2.0]]), x.shape)
    x = samplers.sample(
        solver, denoise, path, samplers.uniform(path, 50), jnp.ones((3, 2))
    )
    # Their own error of the first order is 2 %; an infinite slope would give 1e4.
    np.testing.assert_allclose(x, [[1.0, 2.0]] * 3, rtol=0.03)


def test_runs_under_a_transfer_guard(key):
    x = jnp.ones((2, 2))
    step = jax.jit(lambda x, key: run(samplers.ddpm(), x, key))
    with jax.transfer_guard("disallow"):
        assert jnp.isfinite(step(x, key)).all()


def test_double_numpy_data_becomes_the_default_float():
    x = run(samplers.heun(), np.ones((2, 2)))
    assert x.dtype == jnp.float32


def test_noise_of_a_function_must_have_the_shape_of_x():
    with pytest.raises(ValueError, match="noise must return the shape"):
        run(samplers.ddpm(), jnp.ones((2, 2)), noise=lambda i: jnp.ones(2))


def test_a_denoiser_may_remember_its_calls(key):
    """Its memory goes from call to call, over segments too, and starts afresh."""
    path = noise.EDM()
    counting = StatefulDenoiser(
        init=lambda x: jnp.zeros(()),
        apply=lambda x, t, count: (x * 0 + count, count + 1.0),
    )
    x = jnp.ones((1, 1))
    # The last call, on the way to sigma = 0, returns how many there were before it.
    elsewhere = noise.Cosine()
    moved = prediction.retime(counting, path, elsewhere)
    cases = [
        (counting, path, samplers.karras(path, 4)),
        (moved, elsewhere, samplers.uniform(elsewhere, 4)),
    ]
    for given in cases:
        for solver in (samplers.unipc(), samplers.dpmpp_2s(), samplers.ddpm()):
            drawn = [key] if solver.stochastic else []
            last = samplers.sample(solver, *given, x, *drawn).item()
            want = samplers.nfe(solver, *given[1:]) - 1
            np.testing.assert_allclose(last, want, rtol=1e-5)
        assert jax.jit(given[0])(x, 0.5) == 0


def test_two_draws_a_step(key):
    path = noise.EDM()
    times = samplers.karras(path, 4)
    solver = samplers.Solver(
        plan=lambda path, times: {"t": times[:-1]},
        step=lambda denoise, x, state, row: (row["noise"][0] - row["noise"][1], state),
        draws=2,
    )
    assert solver.stochastic
    x = jnp.zeros((3, 2))
    run = lambda **source: samplers.sample(
        solver, lambda x, t: x, path, times, x, **source, save=lambda x: x
    )[1]
    table = jax.random.normal(key, (4, 2, 3, 2))
    np.testing.assert_array_equal(run(noise=table), table[:, 0] - table[:, 1])
    np.testing.assert_array_equal(run(noise=lambda i: table[i]), run(noise=table))
    drawn = run(key=key)
    assert len(np.unique(drawn)) == drawn.size
    with pytest.raises(ValueError, match=r"one draw of \(2, 3, 2\)"):
        run(noise=table[:, 0])
