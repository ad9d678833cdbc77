"""Convergence orders on the exact mixture, as papers claim them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import GOLDEN, MIXTURE, X_UNIT

from genlib import noise, samplers

ORDERS = GOLDEN["orders"]
SOLVERS = {
    "euler": (samplers.euler(), 1, "kd/euler"),
    "ddim": (samplers.ddim(), 1, "kd/euler"),
    "heun": (samplers.heun(), 2, "kd/heun"),
    "midpoint": (samplers.midpoint(), 2, None),
    "ralston": (samplers.ralston(), 2, None),
    "dpmpp_2m": (samplers.dpmpp_2m(), 2, "kd/dpmpp_2m"),
    "dpmpp_2m_heun": (samplers.dpmpp_2m("heun"), 2, None),
}


def errors(solver, path, reference, counts):
    """Root mean square errors for each number of steps, noise 20 -> 0.05."""
    x_T = jnp.asarray(X_UNIT * 20) * path(path.time_at(-2 * np.log(20.0))).alpha
    end = path(path.time_at(-2 * np.log(0.05))).alpha
    found = []
    for steps in counts:
        times = samplers.uniform_log_snr(
            path, steps, sigma_min=0.05, sigma_max=20.0, to_zero=False
        )
        x = samplers.sample(solver, MIXTURE.denoiser(path), path, times, x_T)
        found.append(float(jnp.sqrt(jnp.mean((x / end - reference) ** 2))))
    return np.array(found)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_in_sigma(name, x64):
    solver, order, golden = SOLVERS[name]
    error = errors(solver, noise.EDM(), np.array(ORDERS["ref"]), ORDERS["N"])
    slope = np.log2(error[:-1] / error[1:])
    np.testing.assert_allclose(slope[1:], order, atol=0.1 if order == 1 else 0.15)
    if golden:
        np.testing.assert_allclose(error, ORDERS["R"][golden]["err"], rtol=1e-6)


@pytest.mark.parametrize("path", [noise.Cosine(), noise.Rectified(), noise.VPLinear()])
@pytest.mark.parametrize("name", SOLVERS)
def test_order_on_other_paths(path, name, x64):
    """The same probability-flow solution, whatever time and scale it is written in."""
    solver, order, _ = SOLVERS[name]
    error = errors(solver, path, np.array(ORDERS["ref"]), [64, 256])
    slope = np.log2(error[0] / error[1]) / 2
    np.testing.assert_allclose(slope, order, atol=0.1 if order == 1 else 0.15)


def test_exponential_solvers_do_not_depend_on_the_path(x64):
    """DDIM and DPM-Solver++ see only log-SNR: equal grids in it give equal samples."""
    for name in ("ddim", "dpmpp_2m"):
        reference = np.zeros_like(X_UNIT)
        first, *others = (
            errors(SOLVERS[name][0], path, reference, [10])
            for path in (noise.EDM(), noise.Cosine(), noise.Rectified())
        )
        for other in others:
            np.testing.assert_allclose(other, first, rtol=1e-9)


def test_jacobian_of_a_sampler_is_finite(key):
    path = noise.Cosine()
    denoise = MIXTURE.denoiser(path)
    times = samplers.uniform(path, 4)
    run = lambda x: samplers.sample(samplers.heun(), denoise, path, times, x)
    assert jnp.isfinite(jax.jacrev(run)(jnp.asarray(X_UNIT, jnp.float32))).all()
