"""Per-example objectives. A loss never reduces over the batch: the train step does.

| function                                     | what it gives              |
|----------------------------------------------|----------------------------|
| `denoising(key, predict, path, x_0, kind=...)` | [B] weighted squared error |

| weight            | on the squared error of x_0                   | arXiv      |
|-------------------|-----------------------------------------------|------------|
| `unit`            | none: plain error of the network's own target |            |
| `snr`             | SNR, the plain error of eps                   | 2006.11239 |
| `edm(sigma_data)` | SNR + 1 / sigma_data^2                        | 2206.00364 |
| `min_snr(gamma)`  | min(SNR, gamma)                               | 2303.09556 |
| `on_x0(fn)`       | fn(log_snr): write your own                   |            |

| times                         | distribution                     | arXiv      |
|-------------------------------|----------------------------------|------------|
| `uniform`                     | uniform over the path            |            |
| `stratified`                  | one draw in each of B equal bins | 2107.00630 |
| `log_normal_sigma(mean, std)` | ln(sigma / alpha) normal         | 2206.00364 |
| `logit_normal(mean, std)`     | logit of the time normal         | 2403.03206 |

A `Weight` is any function (path, kind, t) -> [B]; a `TimeSampler` is any function
(key, path, n, dtype) -> [n].
"""

from genlib.losses._denoising import denoising
from genlib.losses._times import (
    TimeSampler,
    log_normal_sigma,
    logit_normal,
    stratified,
    uniform,
)
from genlib.losses._weights import Weight, edm, min_snr, on_x0, snr, unit

__all__ = [
    "TimeSampler",
    "Weight",
    "denoising",
    "edm",
    "log_normal_sigma",
    "logit_normal",
    "min_snr",
    "on_x0",
    "snr",
    "stratified",
    "uniform",
    "unit",
]
