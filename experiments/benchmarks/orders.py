"""Measure the order of convergence of every solver on the exact Gaussian mixture.

    python -m experiments.benchmarks.orders

prints a Markdown table: the root mean square error after 64 and 256 steps from
sigma = 20 to 0.05, equal in log-SNR, in float64, against a solution that has converged;
and the order, log2 of the ratio of errors, from 64 to 128 and from 128 to 256 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from genlib import metrics, noise, samplers

MIXTURE = metrics.GaussianMixture(
    weights=np.array([0.5, 0.3, 0.2]),
    means=np.array([[-1.0, 0.5], [0.8, -0.7], [0.3, 1.2]]),
    stds=np.array([0.25, 0.35, 0.2]),
)
START = np.array([[1.2, -0.7], [-0.3, 0.9], [0.05, -1.6], [2.1, 0.4]])
SIGMA_MAX, SIGMA_MIN = 20.0, 0.05

# Solver and the order that theory gives it.
SOLVERS = {
    "euler()": (samplers.euler(), 1),
    "ddim()": (samplers.ddim(), 1),
    "heun()": (samplers.heun(), 2),
    "midpoint()": (samplers.midpoint(), 2),
    "ralston()": (samplers.ralston(), 2),
    "adams_bashforth(2)": (samplers.adams_bashforth(2), 2),
    "dpm_solver(2)": (samplers.dpm_solver(2), 2),
    "dpm_solver(3)": (samplers.dpm_solver(3), 3),
    "dpmpp_2s()": (samplers.dpmpp_2s(), 2),
    "dpmpp_3s()": (samplers.dpmpp_3s(), 3),
    "dpmpp_2m()": (samplers.dpmpp_2m(), 2),
    'dpmpp_2m("heun")': (samplers.dpmpp_2m("heun"), 2),
    "dpmpp_3m()": (samplers.dpmpp_3m(), 3),
    "dpmpp_3m(compat=True)": (samplers.dpmpp_3m(compat=True), 2),
    "dpm_solver_multistep(2)": (samplers.dpm_solver_multistep(2), 2),
    "dpm_solver_multistep(3)": (samplers.dpm_solver_multistep(3), 3),
    "deis(2)": (samplers.deis(2), 2),
    "deis(3)": (samplers.deis(3), 3),
    "lms(2)": (samplers.lms(2), 2),
    "lms(3)": (samplers.lms(3), 3),
    "pndm()": (samplers.pndm(), 2),
    "pndm(runge_kutta=True)": (samplers.pndm(runge_kutta=True), 2),
    "unipc(1)": (samplers.unipc(1), 2),
    "unipc(2)": (samplers.unipc(2), 3),
    'unipc(2, "bh1")': (samplers.unipc(2, "bh1"), 3),
    'unipc(2, of="eps")': (samplers.unipc(2, of="eps"), 3),
    "unipc(3)": (samplers.unipc(3), 4),
}


def solve(solver: samplers.Solver, steps: int, path: noise.Path) -> jax.Array:
    """Return x / alpha at sigma / alpha = 0.05, from `START` times 20."""
    times = samplers.uniform_log_snr(
        path, steps, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, to_zero=False
    )
    start = jnp.asarray(START * SIGMA_MAX) * path(times[0]).alpha
    x = samplers.sample(solver, MIXTURE.denoiser(path), path, times, start)
    return x / path(times[-1]).alpha


def errors(
    solver: samplers.Solver, path: noise.Path, reference: jax.Array, counts: list[int]
) -> np.ndarray:
    """Return the root mean square error for each number of steps."""
    found = [solve(solver, steps, path) - reference for steps in counts]
    return np.array([float(jnp.sqrt(jnp.mean(jnp.square(e)))) for e in found])


def reference() -> jax.Array:
    """Return the solution, by a third-order method with 4096 steps."""
    return solve(samplers.dpm_solver(3), 4096, noise.EDM())


def main() -> None:
    """Print the table."""
    with jax.enable_x64(True):
        exact = reference()
        print(
            "| solver | order | error at 64 | at 256 | order, 64 to 128 | 128 to 256 |"
        )
        print("|---|---|---|---|---|---|")
        for name, (solver, order) in SOLVERS.items():
            error = errors(solver, noise.EDM(), exact, [64, 128, 256])
            slope = np.log2(error[:-1] / error[1:])
            print(
                f"| `{name}` | {order} | {error[0]:.2e} | {error[2]:.2e} "
                f"| {slope[0]:.2f} | {slope[1]:.2f} |"
            )


if __name__ == "__main__":
    main()
