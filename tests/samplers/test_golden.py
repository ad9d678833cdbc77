"""What k-diffusion, diffusers and EDM computed with the same exact denoiser."""

import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import GOLDEN, LINEAR_BETAS, MIXTURE, X_UNIT

from genlib import noise, prediction, samplers

KDIFFUSION = GOLDEN["kdiffusion"]
DIFFUSERS = GOLDEN["diffusers"]["out"]
LINEAR = noise.DiscreteBetas(LINEAR_BETAS)
SCALED = noise.DiscreteBetas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def check(solver, path, times, start, want, nfe=None, rtol=1e-8, noise=None):
    x = samplers.sample(
        solver, MIXTURE.denoiser(path), path, times, jnp.asarray(start), noise=noise
    )
    np.testing.assert_allclose(x, want, rtol=rtol, atol=rtol)
    if nfe is not None:
        assert samplers.nfe(solver, path, times) == nfe


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_kdiffusion(name, x64):
    path, want = noise.EDM(), KDIFFUSION["out"][name]
    times = samplers.karras(path, 10)
    np.testing.assert_allclose(times, KDIFFUSION["sigmas_karras"], rtol=1e-12)
    solver = getattr(samplers, name)()
    check(solver, path, times, 80 * X_UNIT, want["x"], want["nfe"])


def test_kdiffusion_exponential_grid():
    times = samplers.uniform_log_snr(noise.EDM(), 10)
    np.testing.assert_allclose(times, KDIFFUSION["sigmas_exponential"], rtol=1e-12)


def test_ddim_is_euler_in_sigma(x64):
    path = noise.EDM()
    times = samplers.karras(path, 10)
    want = KDIFFUSION["out"]["euler"]["x"]
    check(samplers.ddim(), path, times, 80 * X_UNIT, want, 10)


def test_ddpm_is_ancestral_euler_in_sigma(x64):
    path = noise.EDM()
    times = samplers.karras(path, 10)
    want = KDIFFUSION["out"]["euler_ancestral/eta1.0"]["x"]
    draws = np.array(KDIFFUSION["noise"])
    for solver in (samplers.ddpm(), samplers.ddim(eta=1.0)):
        check(solver, path, times, 80 * X_UNIT, want, 10, noise=draws)


@pytest.mark.parametrize(
    ("name", "solver", "steps"),
    [
        ("edm_n18", samplers.heun(), 18),
        ("edm_n5", samplers.heun(), 5),
        ("abl_edm_euler", samplers.euler(), 18),
        ("abl_edm_alpha.5(midpoint)", samplers.midpoint(), 18),
        ("abl_edm_alpha2/3(ralston)", samplers.ralston(), 18),
    ],
)
def test_edm(name, solver, steps, x64):
    path, want = noise.EDM(), GOLDEN["edm"][name]
    times = samplers.karras(path, steps)
    check(solver, path, times, 80 * X_UNIT, want["x"], want["nfe"])


def dpm_grid(points):
    """The grid of diffusers' multistep solvers: one more point than DDIM's, then 0."""
    return np.append(np.round(np.linspace(0, 999, points + 1))[:0:-1] + 1, 0.0)


@pytest.mark.parametrize(
    ("name", "solver", "path", "times"),
    [
        ("ddim/leading", samplers.ddim(), LINEAR, samplers.leading(LINEAR, 10)),
        ("ddim/trailing", samplers.ddim(), LINEAR, samplers.trailing(LINEAR, 10)),
        (
            "ddim/leading/offset1/alpha_not_one",
            samplers.ddim(),
            SCALED,
            samplers.leading(SCALED, 10, offset=1, to_zero=False),
        ),
        (
            "dpm_multi/dpmsolver++/o1/midpoint/zero",
            samplers.ddim(),
            LINEAR,
            dpm_grid(10),
        ),
        (
            "dpm_multi/dpmsolver++/o2/midpoint/zero",
            samplers.dpmpp_2m(),
            LINEAR,
            dpm_grid(10),
        ),
        (
            "dpm_multi/dpmsolver++/o2/heun/zero",
            samplers.dpmpp_2m("heun"),
            LINEAR,
            dpm_grid(10),
        ),
        (
            "dpm_multi/dpmsolver++/o2/euler_at_final",
            samplers.dpmpp_2m(),
            LINEAR,
            dpm_grid(20),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_diffusers_on_its_own_grids(name, solver, path, times):
    want = DIFFUSERS[name]
    np.testing.assert_array_equal(times[:-1] - 1, want["timesteps"])
    check(solver, path, times, X_UNIT.astype(np.float32), want["x"], want["nfe"], 1e-5)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("midpoint/karras", samplers.karras),
        ("midpoint/karras/sigma_min", samplers.karras),
        ("exponential", samplers.uniform_log_snr),
    ],
)
def test_diffusers_on_warped_grids(name, grid):
    want = DIFFUSERS["dpm_multi/dpmsolver++/o2/" + name]
    sigma = np.array(want["sigmas"])
    times = grid(SCALED, 10, sigma_min=sigma[9], sigma_max=sigma[0])
    if name.endswith("sigma_min"):  # its last step goes from sigma_min to sigma_min
        times = times[:-1]
    solver, start = samplers.dpmpp_2m(), X_UNIT.astype(np.float32)
    check(solver, SCALED, times, start, want["x"], rtol=2e-5)


@pytest.mark.parametrize("name", ["euler", "heun", "euler/karras", "heun/karras"])
def test_diffusers_in_sigma_of_a_discrete_chain(name):
    """A denoiser of the chain, carried to the path whose time is sigma."""
    want = DIFFUSERS[name]
    sigmas = np.unique(np.round(want["sigmas"], 9))[::-1]
    path = noise.EDM(sigma_max=200.0)
    denoise = prediction.retime(MIXTURE.denoiser(SCALED), SCALED, path)
    solver = samplers.heun() if name.startswith("heun") else samplers.euler()
    start = jnp.asarray(X_UNIT * sigmas[0], jnp.float32)
    x = samplers.sample(solver, denoise, path, sigmas, start)
    np.testing.assert_allclose(x, want["x"], rtol=1e-5, atol=2e-5)
    assert samplers.nfe(solver, path, sigmas) == want["nfe"]


def test_diffusers_linspace_steps_to_the_wrong_time_and_we_do_not():
    """Its previous index is 899 where its grid says 888 (diffusers issue 12633)."""
    want = DIFFUSERS["ddim/linspace"]
    times = samplers.linspace(LINEAR, 10)
    np.testing.assert_array_equal(times[:-1] - 1, want["timesteps"])
    x = samplers.sample(
        samplers.ddim(),
        MIXTURE.denoiser(LINEAR),
        LINEAR,
        times,
        jnp.asarray(X_UNIT, jnp.float32),
    )
    assert np.abs(x - np.array(want["x"])).max() > 0.01
