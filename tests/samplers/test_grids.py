"""Time grids."""

import jax
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
