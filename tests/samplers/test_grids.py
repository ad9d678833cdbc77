"""Time grids."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import GOLDEN, GRIDS, LINEAR_BETAS, PATHS, each

from genlib import noise, samplers

CHAIN = noise.DiscreteBetas(LINEAR_BETAS)


@pytest.mark.parametrize("path", **each(PATHS))
@pytest.mark.parametrize("grid", **each(GRIDS))
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_every_grid_is_valid_on_every_path(path, grid, steps):
    times = grid(path, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == np.float64
    assert (np.diff(times) < 0).all()
    assert times[0] <= path.t_max
    assert times[-1] == path.t_min


@pytest.mark.parametrize("path", **each(PATHS))
def test_uniform_log_snr_is_uniform(path):
    times = samplers.uniform_log_snr(path, 9, to_zero=False)
    log_snr = samplers.tabulate(path, times).log_snr
    np.testing.assert_allclose(np.diff(log_snr), np.diff(log_snr)[0], rtol=1e-6)


def test_tables_stay_float64_where_their_arrays_were_once_seen_as_float32():
    """JAX remembers a NumPy array as it first saw it, as long as a program holds it."""
    betas, times = LINEAR_BETAS.copy(), np.linspace(1000.0, 0.5, 9)
    tables = []

    @jax.jit
    def program(x):
        seen = x + jnp.asarray(betas).sum() + jnp.asarray(times).sum()
        tables.append(samplers.tabulate(noise.DiscreteBetas(betas), times))
        return seen

    program(1.0)
    want = samplers.tabulate(CHAIN, times.copy())
    np.testing.assert_array_equal(np.stack(tables[0]), np.stack(want))


def test_edm_times():
    times = samplers.karras(noise.EDM(), 18)
    np.testing.assert_allclose(times[:-1], GOLDEN["edm"]["t_steps18"], rtol=1e-12)


def test_karras_without_zero_ends_at_sigma_min():
    times = samplers.karras(noise.EDM(), 5, sigma_min=0.1, sigma_max=3, to_zero=False)
    np.testing.assert_allclose(times[[0, -1]], [3.0, 0.1])
    assert times.shape == (6,)


def test_grids_of_diffusers():
    np.testing.assert_array_equal(samplers.leading(CHAIN, 1000)[[0, -2]], [1000, 1])
    np.testing.assert_array_equal(samplers.trailing(CHAIN, 3), [1000, 667, 333, 0])
    np.testing.assert_array_equal(samplers.linspace(CHAIN, 1), [1000, 0])
    np.testing.assert_array_equal(
        samplers.linspace(CHAIN, 3, to_zero=False), [1000, 500, 1]
    )


def test_grids_can_be_traced():
    """Sweeping the settings of a path or of a grid traces once."""
    traces = []

    @jax.jit
    def grid(sigma_max, rho):
        traces.append(rho)
        return samplers.karras(noise.EDM(sigma_max), 5, rho=rho)

    for sigma_max, rho in ((80.0, 7.0), (20.0, 3.0)):
        want = samplers.karras(noise.EDM(sigma_max), 5, rho=rho)
        np.testing.assert_allclose(grid(sigma_max, rho), want, rtol=1e-4)
    assert len(traces) == 1


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "3"])
@pytest.mark.parametrize(
    "grid", [*GRIDS.values(), samplers.leading, samplers.trailing, samplers.linspace]
)
def test_bad_steps(grid, steps):
    with pytest.raises(ValueError, match="steps must be a positive integer"):
        grid(CHAIN, steps)


@pytest.mark.parametrize(
    "call",
    [
        lambda: samplers.karras(noise.EDM(), 5, sigma_max=100.0),
        lambda: samplers.karras(noise.EDM(), 5, sigma_min=3.0, sigma_max=2.0),
        lambda: samplers.karras(noise.EDM(), 5, sigma_min=0.0),
        lambda: samplers.karras(noise.VE(0.01, 50.0), 5, sigma_min=0.001),
        lambda: samplers.uniform_log_snr(CHAIN, 5, sigma_max=1e4),
        lambda: samplers.leading(CHAIN, 1001),
        lambda: samplers.leading(CHAIN, 1000, offset=1),
        lambda: samplers.leading(CHAIN, 10, offset=-1),
        lambda: samplers.trailing(noise.Cosine(), 10),
    ],
)
def test_bad_settings(call):
    with pytest.raises(ValueError, match="must"):
        call()


@pytest.mark.parametrize("sigma_min", np.geomspace(0.011, 0.9, 12))
def test_ve_grids_end_once_at_its_own_smallest_noise(sigma_min):
    path = noise.VE(sigma_min, 50.0)
    for grid in (samplers.karras, samplers.uniform_log_snr):
        times = grid(path, 5, sigma_min=sigma_min)
        assert times.shape == (6,)
        assert times[0] == 1
        assert times[-1] == 0
        assert np.diff(times).max() < -1e-3


WANT = json.loads((Path(__file__).parent.parent / "golden/multistep.json").read_text())
FLOW = WANT["flow"]


def test_grids_of_kdiffusion():
    path = noise.EDM(200.0)
    times = samplers.polyexponential(path, 10, 2.0, sigma_min=0.002, sigma_max=80)
    want = WANT["kdiffusion"]["sigmas_polyexponential_rho2"]
    np.testing.assert_allclose(times, want, rtol=1e-12)
    source = np.linspace(1, 1e-3, 10)
    times = np.append(samplers.like(path, source, noise.VPLinear()), 0.0)
    want = WANT["kdiffusion"]["sigmas_vp"]
    np.testing.assert_allclose(times, want, rtol=1e-12)


def test_beta_and_lu_grids_of_diffusers():
    """The Lu grid is the exponential one."""
    scaled = noise.DiscreteBetas(noise.scaled_linear_betas(1000))
    for name, grid in [
        ("diffusers_beta", samplers.beta),
        ("diffusers_lu", samplers.uniform_log_snr),
    ]:
        sigma = np.array(WANT[name]["sigmas"])
        ends = {"sigma_min": sigma[9], "sigma_max": sigma[0]}
        edm = grid(noise.EDM(200.0), 10, **ends)
        np.testing.assert_allclose(edm, sigma, rtol=1e-6)
        chain = grid(scaled, 10, **ends)
        back = samplers.tabulate(scaled, chain).log_snr
        want = -2 * np.log(edm[:-1])
        # The first, in float32 the end of the chain, is taken to be that end.
        np.testing.assert_allclose(back[0], want[0], atol=1e-6)
        np.testing.assert_allclose(back[1:-1], want[1:], atol=1e-9)


def test_grids_of_flow_matching_in_diffusers():
    """Its karras and beta grids are of sigma itself, which is t on this path."""
    path, edm = noise.Rectified(), noise.EDM(1.0)
    for name, grid in [
        ("karras", samplers.karras),
        ("exponential", samplers.uniform_log_snr),
        ("beta", samplers.beta),
    ]:
        times = grid(edm, 5, sigma_min=0.001, sigma_max=1.0)
        want = FLOW[f"FlowMatchEuler use_{name}_sigmas n=5"]
        np.testing.assert_allclose(times, want, rtol=1e-5, atol=1e-9)
    times = samplers.flow_shifted(path, 5, 3.0)
    want = FLOW["FlowMatchEuler shift=3.0 custom sigmas linspace(1,.2,5)"]
    np.testing.assert_allclose(times, want, rtol=1e-6)
    times = samplers.flow_shifted(path, 5, np.exp(1.15))
    want = FLOW["FlowMatchEuler dynamic exponential mu=1.15"]
    np.testing.assert_allclose(times, want, rtol=1e-6)
    times = samplers.flow_shifted(path, 5, 1.0, terminal=0.1)
    want = FLOW["FlowMatchEuler shift_terminal=.1 n=5"]
    np.testing.assert_allclose(times, want, rtol=1e-6)


def test_the_shift_is_applied_once():
    """diffusers shifts its default grid twice (issue 13243)."""
    times = samplers.flow_shifted(noise.Rectified(), 5, 3.0, last=0.001)
    want = [1, 0.9001200, 0.7503748, 0.5009990, 0.002994012, 0]
    np.testing.assert_allclose(times, want, rtol=1e-6)
    twice = FLOW["FlowMatchEuler shift=3.0 n=5 sigmas (default path, issue 13243)"]
    assert np.abs(times - twice).max() > 1e-3


def test_shift_terminal_of_one_step_is_finite():
    """diffusers divides by zero there (issue 14411)."""
    times = samplers.flow_shifted(noise.Rectified(), 1, 3.0, terminal=0.1)
    np.testing.assert_array_equal(times, [1, 0])


def test_a_shifted_grid_is_the_grid_of_the_shifted_path():
    path = noise.Rectified()
    times = samplers.flow_shifted(path, 6, 2.5)[1:-1]
    want = samplers.tabulate(noise.Shifted(path, 2.5), samplers.uniform(path, 6)[1:-1])
    got = samplers.tabulate(path, times)
    np.testing.assert_allclose(got.log_snr, want.log_snr, atol=1e-9)


def test_entropic_steps_decide_equally():
    """For data N(0, s^2) the entropy falls as log(1 + s^2 SNR) / 2."""
    s = 0.7
    mmse = lambda log_snr: s**2 / (1 + s**2 * np.exp(log_snr))
    times = samplers.entropic(noise.Cosine(), 8, mmse, to_zero=False)
    log_snr = samplers.tabulate(noise.Cosine(), times).log_snr
    fall = np.diff(np.log1p(s**2 * np.exp(log_snr)))
    np.testing.assert_allclose(fall, fall.mean(), rtol=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: samplers.beta(p, 4, a=0.0), "a and b must be positive"),
        (lambda p: samplers.power(p, 0), "steps must be"),
        (lambda p: samplers.flow_shifted(p, 2.5), "steps must be"),
        (lambda p: samplers.flow_shifted(p, 4, 0.0), "shift must be positive"),
        (lambda p: samplers.entropic(p, 4, lambda l: -l), "mmse must return"),
        (
            lambda p: samplers.like(noise.EDM(), [1.0, 0.5], noise.VPLinear()),
            "times must have log-SNRs within",
        ),
    ],
)
def test_bad_grids(call, message):
    with pytest.raises(ValueError, match=message):
        call(noise.Cosine())
