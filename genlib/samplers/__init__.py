"""Solvers, time grids and the one sampling loop.

    x = samplers.sample(solver, denoise, path, times, x_T, key)

| solver                                | order  | denoiser calls a step | arXiv      |
|---------------------------------------|--------|-----------------------|------------|
| `ddim(eta)`                           | 1      | 1, noise if eta != 0  | 2010.02502 |
| `ddpm(variance)`                      | 1      | 1, noise              | 2006.11239 |
| `dpmpp_2m(solver_type)`               | 2      | 1                     | 2211.01095 |
| `dpmpp_3m()`                          | 3      | 1                     | 2211.01095 |
| `dpm_solver_multistep(order)`         | 1 to 3 | 1                     | 2206.00927 |
| `unipc(order, variant)`               | 2 to 4 | 1                     | 2302.04867 |
| `deis(order, variable)`, `lms(order)` | 1 to 4 | 1                     | 2204.13902 |
| `pndm()`                              | 2      | 1 after the start     | 2202.09778 |
| `dpm_solver(order)`                   | 1 to 3 | order                 | 2206.00927 |
| `dpmpp_2s()`, `dpmpp_3s()`            | 2, 3   | 2, 3                  | 2211.01095 |
| `euler()`                             | 1      | 1                     | 2011.13456 |
| `heun()`, `midpoint()`, `ralston()`   | 2      | 2                     | 2206.00364 |
| `adams_bashforth(order)`              | 1 to 4 | 1                     |            |

`euler`, `heun`, `midpoint`, `ralston` and `adams_bashforth` integrate dx/dt in the
path's own time; the others in log-SNR, where DDIM is exact for a constant x_0.
`fast_orders(calls)` are the orders of DPM-Solver-fast.

| with noise                                | what it is                  | arXiv      |
|-------------------------------------------|-----------------------------|------------|
| `euler_ancestral(eta)`                    | `ddim(eta)`                 | 2010.02502 |
| `dpm2()`, `dpm2_ancestral(eta)`           | 2 calls, sigma / alpha      | 2206.00364 |
| `dpmpp_2s_ancestral(eta)`                 | 2 calls                     | 2211.01095 |
| `dpmpp_sde(eta, r)`                       | 2 calls, 2 draws of noise   | 2211.01095 |
| `dpmpp_2m_sde(eta)`, `dpmpp_3m_sde(eta)`  | multistep                   | 2211.01095 |
| `sa_solver(predictor, corrector, tau)`    | Adams, multistep            | 2309.05019 |
| `euler(Churn(...))`, `heun(Churn(...))`   | EDM's churn                 | 2206.00364 |
| `predictor_corrector(solver, snr)`        | Langevin after every step   | 2011.13456 |
| `consistency()`, `lcm()`, `tcd(gamma)`    | for consistency models      | 2303.01469 |
| `addim()`                                 | DDIM, wider and still no z  | 2403.06807 |

Noise comes from a key, an array, a function, or from `brownian(key)`, one path for
every grid. `ula` and `mala` are Langevin chains at one noise level.

| editing                              | what it is                    | arXiv      |
|--------------------------------------|-------------------------------|------------|
| `inpaint(solver, known, mask)`       | replaces what is known        | 2011.13456 |
| `repaint(solver, known, mask)`       | the same, going back and forth| 2201.09865 |
| `ddim_inversion(iterations)`         | `ddim()` from data to noise   | 2010.02502 |
| `sdedit(key, path, times, x_0, ...)` | no solver, a start from data  | 2108.01073 |

`adaptive_ode` and `adaptive_sde` need no grid: diffrax chooses the steps of the
probability-flow ODE and of the reverse SDE. They return an `Adaptive`, x and steps.

| grid                              | times                                       |
|-----------------------------------|---------------------------------------------|
| `uniform`, `power(exponent)`      | t equally spaced, or a power of it          |
| `flow_shifted(shift)`             | t shifted in log-SNR (Stable Diffusion 3)   |
| `uniform_log_snr`                 | log-SNR equally spaced ("exponential", Lu)  |
| `polyexponential(rho)`            | powers of it                                |
| `karras(rho)`                     | (sigma / alpha)^(1/rho) equally spaced      |
| `beta(a, b)`                      | quantiles of a beta distribution            |
| `entropic(mmse)`                  | equal falls of the entropy of x_0           |
| `like(path, times, source)`       | the noise levels of another path's times    |
| `leading`, `trailing`, `linspace` | diffusers' grids, for `noise.DiscreteBetas` |
| `distilled(teacher_steps)`        | LCM's grid, for `noise.DiscreteBetas`       |

Grids are called with a path and a number of steps, and are plain arrays from noise to
data; any decreasing array of times is one.
`nfe(solver, path, times)` counts the calls of the denoiser. A new solver is a `Solver`
of a few lines: `plan` turns the `Table` of `tabulate` (or of `times_at`) into
coefficients, written against `namespace` so that settings can be traced; `step` adds
arrays up.
"""

from genlib.samplers._adams import adams_bashforth, deis, lms
from genlib.samplers._adaptive import Adaptive, adaptive_ode, adaptive_sde
from genlib.samplers._ancestral import (
    dpm2,
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler_ancestral,
)
from genlib.samplers._brownian import brownian
from genlib.samplers._chain_grids import distilled, leading, linspace, trailing
from genlib.samplers._churn import Churn
from genlib.samplers._consistency import addim, consistency, lcm, tcd
from genlib.samplers._entropic_grid import entropic
from genlib.samplers._exponential import ddim, ddpm
from genlib.samplers._grids import (
    beta,
    flow_shifted,
    karras,
    like,
    polyexponential,
    power,
    uniform,
    uniform_log_snr,
)
from genlib.samplers._inpainting import inpaint, repaint
from genlib.samplers._inversion import ddim_inversion, sdedit
from genlib.samplers._langevin import mala, predictor_corrector, ula
from genlib.samplers._multistep import dpm_solver_multistep, dpmpp_2m, dpmpp_3m
from genlib.samplers._pndm import pndm
from genlib.samplers._runge_kutta import euler, heun, midpoint, ralston
from genlib.samplers._sa_solver import sa_solver
from genlib.samplers._sample import Solver, nfe, sample
from genlib.samplers._sde import dpmpp_2m_sde, dpmpp_3m_sde
from genlib.samplers._singlestep import dpm_solver, dpmpp_2s, dpmpp_3s, fast_orders
from genlib.samplers._table import Table, namespace, tabulate, times_at
from genlib.samplers._unipc import unipc

__all__ = [
    "Adaptive",
    "Churn",
    "Solver",
    "Table",
    "adams_bashforth",
    "adaptive_ode",
    "adaptive_sde",
    "addim",
    "beta",
    "brownian",
    "consistency",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "distilled",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver",
    "dpm_solver_multistep",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_sde",
    "entropic",
    "euler",
    "euler_ancestral",
    "fast_orders",
    "flow_shifted",
    "heun",
    "inpaint",
    "karras",
    "lcm",
    "leading",
    "like",
    "linspace",
    "lms",
    "mala",
    "midpoint",
    "namespace",
    "nfe",
    "pndm",
    "polyexponential",
    "power",
    "predictor_corrector",
    "ralston",
    "repaint",
    "sa_solver",
    "sample",
    "sdedit",
    "tabulate",
    "tcd",
    "times_at",
    "trailing",
    "ula",
    "uniform",
    "uniform_log_snr",
    "unipc",
]
