"""Forward processes: Gaussian paths q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I).

Time runs from data (`path.t_min`) to noise (`path.t_max`).

| path            | alpha(t), sigma(t)                     | t          | arXiv      |
|-----------------|----------------------------------------|------------|------------|
| `VPLinear`      | alpha = exp(-B / 2), B = int_0^t beta  | [0, 1]     | 2011.13456 |
| `Cosine`        | cos(pi t / 2), sin(pi t / 2)           | [0, 1]     | 2202.00512 |
| `Rectified`     | 1 - t, t                               | [0, 1]     | 2209.03003 |
| `VE`            | 1, sigma_min (sigma_max / sigma_min)^t | [0, 1]     | 2011.13456 |
| `EDM`           | 1, t                                   | [0, 80]    | 2206.00364 |
| `DiscreteBetas` | alpha^2 = prod (1 - beta_k), any betas | [0, steps] | 2006.11239 |

| function                          | what it gives                                   |
|-----------------------------------|-------------------------------------------------|
| `perturb(path, x_0, eps, t)`      | x_t = alpha x_0 + sigma eps                     |
| `transition(path, s, t)`          | q(x_t | x_s), s <= t, as a `Marginal`           |
| `posterior(path, x_0, x_t, s, t)` | q(x_s | x_t, x_0) as a `Normal`                 |
| `drift_diffusion(path, t)`        | f, g of dx = f x dt + g dw                      |
| `prior(key, path, shape)`         | a draw of x_T                                   |
| `log_snr(path, t)`                | log(alpha^2 / sigma^2)                          |
| `time_at(path, log_snr)`          | its inverse                                     |
| `marginal_and_rate(path, t)`      | (alpha, sigma) and their time derivatives       |
| `check_time(path, t)`             | refuses times outside the path                  |
| `inside(path, t)`                 | times at an end moved inside, for limits        |

A new path is a frozen dataclass with `__call__`; see `Path`.
"""

from genlib.noise._discrete import DiscreteBetas
from genlib.noise._gaussian import (
    Normal,
    drift_diffusion,
    perturb,
    posterior,
    prior,
    transition,
)
from genlib.noise._path import (
    Marginal,
    Path,
    check_time,
    inside,
    log_snr,
    marginal_and_rate,
    time_at,
)
from genlib.noise._paths import EDM, VE, Cosine, Rectified, VPLinear

__all__ = [
    "EDM",
    "VE",
    "Cosine",
    "DiscreteBetas",
    "Marginal",
    "Normal",
    "Path",
    "Rectified",
    "VPLinear",
    "check_time",
    "drift_diffusion",
    "inside",
    "log_snr",
    "marginal_and_rate",
    "perturb",
    "posterior",
    "prior",
    "time_at",
    "transition",
]
