"""Solvers, time grids and the one sampling loop.

    x = samplers.sample(solver, denoise, path, times, x_T, key)

| solver                    | order | draws noise | arXiv                         |
|---------------------------|-------|-------------|-------------------------------|
| `ddim(eta)`               | 1     | if eta != 0 | 2010.02502, eq. 12            |
| `ddpm(variance)`          | 1     | yes         | 2006.11239, eq. 6-7           |
| `euler()`                 | 1     | no          | 2011.13456, eq. 13            |
| `heun()`                  | 2     | no          | 2206.00364, alg. 1            |
| `midpoint()`, `ralston()` | 2     | no          | 2206.00364, alg. 3            |
| `dpmpp_2m()`              | 2     | no          | 2211.01095, alg. 2            |

`euler`, `heun`, `midpoint` and `ralston` integrate dx/dt in the path's own time; the
others in log-SNR, where `ddim` is exact for a constant x_0.

| grid                              | times                                         |
|-----------------------------------|-----------------------------------------------|
| `uniform(path, steps)`            | equally spaced in t                           |
| `uniform_log_snr(path, steps)`    | equally spaced in log-SNR                     |
| `karras(path, steps, rho)`        | (sigma / alpha)^(1/rho) equally spaced        |
| `leading`, `trailing`, `linspace` | diffusers' grids, for `noise.DiscreteBetas`   |

Grids are plain arrays from noise to data; any decreasing array of times is one.
`nfe(solver, path, times)` counts the calls of the denoiser. A new solver is a `Solver`
of a few lines: `plan` turns the `Table` of `tabulate` (or of `times_at`) into
coefficients, written against `namespace` so that settings can be traced; `step` adds
arrays up.
"""

from genlib.samplers._exponential import ddim, ddpm, dpmpp_2m
from genlib.samplers._grids import (
    karras,
    leading,
    linspace,
    trailing,
    uniform,
    uniform_log_snr,
)
from genlib.samplers._runge_kutta import euler, heun, midpoint, ralston
from genlib.samplers._sample import Solver, nfe, sample
from genlib.samplers._table import Table, namespace, tabulate, times_at

__all__ = [
    "Solver",
    "Table",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "heun",
    "karras",
    "leading",
    "linspace",
    "midpoint",
    "namespace",
    "nfe",
    "ralston",
    "sample",
    "tabulate",
    "times_at",
    "trailing",
    "uniform",
    "uniform_log_snr",
]
