"""Multistep and singlestep solvers against k-diffusion, diffusers and each other."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import LINEAR_BETAS, MIXTURE, X_UNIT, jit_optimized

from genlib import metrics, noise, samplers

FILE = Path(__file__).parent.parent / "golden/multistep.json"
WANT = json.loads(FILE.read_text())
LINEAR = noise.DiscreteBetas(LINEAR_BETAS)
SCALED = noise.DiscreteBetas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
# The grid of diffusers' multistep solvers, to the data and to its first noise level.
TO_ZERO = np.append(np.round(np.linspace(0, 999, 11))[:0:-1] + 1, 0.0)
TO_ONE = np.append(TO_ZERO[:-1], 1.0)


# The probability-flow solution from X_UNIT at t = 1 of the rectified path, by heun with
# 3000 uniform steps in float64.
TRUTH = np.array(
    [
        [1.03638, -0.74000],
        [-0.86204, 0.76026],
        [0.57601, -1.04261],
        [1.32276, -0.22301],
    ]
)


def run(solver, path, times, start):
    denoise = MIXTURE.denoiser(path)
    return samplers.sample(solver, denoise, path, times, jnp.asarray(start))


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("lms", samplers.lms()),
        ("lms/order1", samplers.lms(1)),
        ("lms/order2", samplers.lms(2)),
        ("lms/order3", samplers.lms(3)),
        ("dpmpp_3m_sde/eta0.0", samplers.dpmpp_3m(compat=True)),
        ("dpmpp_2s_ancestral/eta0.0", samplers.dpmpp_2s()),
    ],
)
def test_kdiffusion(name, solver, x64):
    path, want = noise.EDM(), WANT["kdiffusion"]["out"][name]
    times = samplers.karras(path, 10)
    x = run(solver, path, times, 80 * X_UNIT)
    np.testing.assert_allclose(x, want["x"], rtol=1e-8)
    assert samplers.nfe(solver, path, times) == want["nfe"]


def test_dpm_fast_of_kdiffusion(x64):
    path, want = noise.EDM(), WANT["kdiffusion"]["out"]["dpm_fast/nfe12"]
    orders = samplers.fast_orders(12)
    times = samplers.uniform_log_snr(path, len(orders), to_zero=False)
    solver = samplers.dpm_solver(orders)
    np.testing.assert_allclose(
        run(solver, path, times, 80 * X_UNIT), want["x"], rtol=1e-8
    )
    assert samplers.nfe(solver, path, times) == want["nfe"] == 12


def noise_dpm(order, solver_type="heun"):
    return samplers.dpm_solver_multistep(
        order, solver_type, compat=order == 3, lower_order_final=True
    )


def unipc(order, **settings):
    return samplers.unipc(order, **settings, lower_order_final=True)


def data_3m(solver_type):
    return samplers.dpmpp_3m(solver_type, compat=True, lower_order_final=True)


@pytest.mark.parametrize(
    ("name", "solver", "times"),
    [
        ("dpm_multi/dpmsolver++/o3/midpoint/zero", data_3m("midpoint"), TO_ZERO),
        ("dpm_multi/dpmsolver++/o3/heun/zero", data_3m("heun"), TO_ZERO),
        ("dpm_multi/dpmsolver/o1/midpoint/sigma_min", noise_dpm(1), TO_ONE),
        ("dpm_multi/dpmsolver/o2/midpoint/sigma_min", noise_dpm(2, "midpoint"), TO_ONE),
        ("dpm_multi/dpmsolver/o2/heun/sigma_min", noise_dpm(2), TO_ONE),
        ("dpm_multi/dpmsolver/o3/midpoint/sigma_min", noise_dpm(3, "midpoint"), TO_ONE),
        ("dpm_multi/dpmsolver/o3/heun/sigma_min", noise_dpm(3), TO_ONE),
        ("unipc/o1/bh2", unipc(1), TO_ZERO),
        ("unipc/o2/bh2", unipc(2), TO_ZERO),
        ("unipc/o3/bh2", unipc(3), TO_ZERO),
        ("unipc/o2/bh2/sigma_min", unipc(2), TO_ONE),
        ("unipc/o2/bh2/noise_pred", unipc(2, of="eps"), TO_ONE),
        ("deis/o1", samplers.deis(1), TO_ONE),
        ("deis/o2", samplers.deis(2, lower_order_final=True), TO_ONE),
        ("deis/o3", samplers.deis(3, compat=True, lower_order_final=True), TO_ONE),
    ],
)
def test_diffusers(name, solver, times):
    want = WANT["diffusers"][name]
    np.testing.assert_array_equal(times[:-1] - 1, want["timesteps"])
    x = run(solver, LINEAR, times, X_UNIT.astype(np.float32))
    np.testing.assert_allclose(x, want["x"], rtol=1e-5, atol=1e-5)
    assert samplers.nfe(solver, LINEAR, times) == want["nfe"]


@pytest.mark.parametrize(
    ("name", "path", "offset", "runge_kutta"),
    [("pndm/skip_prk", SCALED, 1, False), ("pndm/prk", LINEAR, 0, True)],
)
def test_pndm_of_diffusers(name, path, offset, runge_kutta):
    want, solver = WANT["diffusers"][name], samplers.pndm(runge_kutta=runge_kutta)
    times = samplers.leading(path, 10, offset=offset, to_zero=False)
    x = run(solver, path, times, X_UNIT.astype(np.float32))
    np.testing.assert_allclose(x, want["x"], rtol=1e-5, atol=1e-5)
    calls = [row["t"].ravel() for row in solver.plan(path, times)]
    calls = np.concatenate(calls) - 1
    # With Runge-Kutta theirs ends with a call whose step leads nowhere.
    np.testing.assert_array_equal(calls, want["timesteps"][: len(calls)])
    assert len(calls) == want["nfe"] - runge_kutta


def test_flow_samplers_of_diffusers(x64):
    """Their grids start just short of t = 1, and shift twice (issue 13243 there)."""
    path = noise.Rectified()
    sigma = 1 - np.linspace(1, 1 / 1000, 11)
    sigma = np.append((3 * sigma / (1 + 2 * sigma))[:0:-1], 0.0)
    x = run(samplers.dpmpp_2m(), path, sigma, X_UNIT)
    np.testing.assert_allclose(x[0], [1.004318, -0.770008], atol=1e-6)

    times = samplers.flow_shifted(path, 11, last=0.001)
    times = np.append(times[:10], 0.0)
    times[0] -= 1e-6
    x = run(unipc(2), path, times, X_UNIT)
    np.testing.assert_allclose(x[0], [1.007641, -0.775999], atol=1e-6)

    once = samplers.flow_shifted(path, 2, last=0.001)[1]
    twice = samplers.flow_shifted(path, 10, last=once)
    for solver, want in [
        (samplers.euler(), [0.899931, -0.665044]),
        (samplers.heun(), [1.032465, -0.736185]),
    ]:
        x = run(solver, path, twice, X_UNIT)
        np.testing.assert_allclose(x[0], want, atol=1.1e-6)


def test_vp_ablation_of_edm(x64):
    path, want = noise.VPLinear(), WANT["edm"]["abl_vp_heun"]
    times = np.append(np.linspace(1, 1e-3, 18), 0.0)
    x = run(samplers.heun(), path, times, X_UNIT * path(1.0).sigma)
    np.testing.assert_allclose(x, want["x"], rtol=1e-8)


def test_equal_solvers(x64):
    """Names of one method agree: papers describe them in different variables."""
    path = noise.Cosine()
    times = samplers.uniform_log_snr(path, 7, sigma_max=20.0)
    edm = noise.EDM()
    in_sigma = samplers.like(edm, times, path)
    x = lambda solver: run(solver, path, times, X_UNIT)
    pairs = [
        (samplers.deis(1), samplers.ddim()),
        (samplers.deis(2), samplers.dpm_solver_multistep(2)),
        (samplers.dpm_solver(1), samplers.ddim()),
        (samplers.dpm_solver_multistep(1), samplers.ddim()),
        (samplers.unipc(1, corrector=False), samplers.ddim()),
        (samplers.unipc(2, corrector=False), samplers.dpmpp_2m()),
        (samplers.adams_bashforth(1), samplers.euler()),
    ]
    for one, other in pairs:
        np.testing.assert_allclose(x(one), x(other), rtol=1e-10)
    for order in (2, 3):
        np.testing.assert_allclose(
            run(samplers.lms(order), edm, in_sigma, X_UNIT),
            run(samplers.adams_bashforth(order), edm, in_sigma, X_UNIT),
            rtol=1e-10,
        )


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_finite_at_both_ends(variant, order):
    """diffusers returns NaN for bh1 on the way to sigma = 0."""
    path = noise.Rectified()
    times = samplers.uniform(path, 8)
    for final in (True, False):
        solver = samplers.unipc(order, variant, lower_order_final=final)
        x = run(solver, path, times, X_UNIT.astype(np.float32))
        assert jnp.isfinite(x).all()
        ddim = run(samplers.ddim(), path, times, X_UNIT)
        assert jnp.abs(x - TRUTH).max() < 0.8 * jnp.abs(ddim - TRUTH).max()


def test_weights_are_exact_for_polynomials(x64):
    """A denoiser that is a parabola in log-SNR is integrated exactly.

    x_s / sigma_s - x_t / sigma_t = int e^l x_0(l) dl.
    """
    path = noise.Cosine()
    times = samplers.uniform(path, 12)[1:-1]
    table = samplers.tabulate(path, times)
    half = 0.5 * table.log_snr

    def denoise(x, t):
        l = 0.5 * path.log_snr(t)
        return jnp.ones_like(x) * (0.3 + 0.2 * l - 0.1 * l**2)

    # int e^l (a + b l + c l^2) dl = e^l (a - b + 2 c + (b - 2 c) l + c l^2)
    a, b, c = 0.3, 0.2, -0.1
    primitive = np.exp(half) * (a - b + 2 * c + (b - 2 * c) * half + c * half**2)
    x_at = lambda i: table.sigma[i] * primitive[i]
    solver = samplers.dpmpp_3m()
    _, saved = samplers.sample(
        solver, denoise, path, times, jnp.full((1, 1), x_at(0)), save=lambda x: x
    )
    # The start is not exact, so compare what each later step adds.
    scaled = saved[:, 0, 0] / table.sigma[1:]
    np.testing.assert_allclose(np.diff(scaled)[1:], np.diff(primitive)[2:], rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.dpmpp_3m("euler"), "solver_type must be"),
        (lambda: samplers.dpm_solver_multistep(4), "order must be 1, 2 or 3"),
        (lambda: samplers.deis(5), "order must be 1, 2, 3 or 4"),
        (lambda: samplers.deis(2, "sigma"), "variable must be"),
        (lambda: samplers.unipc(0), "order must be 1, 2 or 3"),
        (lambda: samplers.unipc(2, "bh3"), "variant must be"),
        (lambda: samplers.unipc(2, of="v"), "of must be"),
        (lambda: samplers.dpm_solver(4), "order must be 1, 2 or 3"),
        (lambda: samplers.dpm_solver(()), "order must be 1, 2 or 3"),
        (lambda: samplers.fast_orders(0), "calls must be a positive integer"),
        (
            lambda: samplers.nfe(
                samplers.dpm_solver((2, 1)), noise.EDM(), [3.0, 2.0, 1.0, 0.5]
            ),
            "one number for each of 3 steps",
        ),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_quality_per_call_on_the_mixture():
    """2M with 20 calls and Heun with 39, over eight pairs of 8192 samples."""
    n, path = 8192, noise.EDM()
    times = samplers.uniform_log_snr(path, 20, sigma_min=0.05)
    solvers = [samplers.dpmpp_2m(), samplers.heun()]
    assert [samplers.nfe(solver, path, times) for solver in solvers] == [20, 39]

    @jit_optimized
    def distances(key):
        keys = jax.random.split(key, 4)
        truth, other = (MIXTURE.sample(k, n) for k in (keys[0], keys[2]))
        x = noise.prior(keys[1], path, (n, 2))
        denoise = MIXTURE.denoiser(path)
        runs = [samplers.sample(s, denoise, path, times, x) for s in solvers]
        distance = lambda y: metrics.sliced_wasserstein(keys[3], y, truth)
        return jnp.stack([distance(y) for y in (other, *runs)])

    found = jnp.stack([distances(jax.random.key(seed)) for seed in range(8)])
    exact, second_order_multistep, heun = found.mean(0)
    assert exact < 0.038
    assert second_order_multistep < 0.037
    assert heun < 0.032


@pytest.mark.parametrize("solver", [samplers.dpmpp_2m(), samplers.unipc(3)])
def test_plans_stand_at_any_noise_level(solver):
    """What stands in for a missing history never equals a time of the grid."""
    for half_log_snr in (1.0, 2.0, 3.0):
        times = np.append(np.exp([half_log_snr, -half_log_snr]), 0.0)
        rows = solver.plan(noise.EDM(), times)
        assert all(np.isfinite(column).all() for column in rows.values())

    def total(sigma):
        times = jnp.stack([sigma, 1.0, 0.5, 0.1])
        rows = solver.plan(noise.EDM(sigma), times)
        return sum(jnp.sum(column) for column in rows.values())

    assert jnp.isfinite(jax.grad(total)(jnp.float32(np.exp(2.0))))
