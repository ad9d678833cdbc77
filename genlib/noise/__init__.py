"""Forward processes: Gaussian paths q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I).

Time runs from data (`path.t_min`) to noise (`path.t_max`).

| path            | alpha(t), sigma(t)                     | t          | arXiv      |
|-----------------|----------------------------------------|------------|------------|
| `VPLinear`      | alpha = exp(-B / 2), B = int_0^t beta  | [0, 1]     | 2011.13456 |
| `SubVP`         | the same alpha, sigma = 1 - alpha^2    | [0, 1]     | 2011.13456 |
| `LinearVP`      | 1 - t, sqrt(1 - alpha^2)               | [0, 1]     |            |
| `Cosine`        | cos(pi t / 2), sin(pi t / 2)           | [0, 1]     | 2202.00512 |
| `Rectified`     | 1 - t, t                               | [0, 1]     | 2209.03003 |
| `Polynomial`    | (1 - t)^power, 1 - (1 - t)^power       | [0, 1]     |            |
| `VE`            | 1, sigma_min (sigma_max / sigma_min)^t | [0, 1]     | 2011.13456 |
| `EDM`           | 1, t                                   | [0, 80]    | 2206.00364 |
| `DiscreteBetas` | alpha^2 = prod (1 - beta_k), any betas | [0, steps] | 2006.11239 |

| of another path                      | log-SNR                          | arXiv      |
|--------------------------------------|----------------------------------|------------|
| `Shifted(base, shift)`               | less 2 ln shift                  | 2403.03206 |
| `InterpolatedShift(base, data, end)` | the shift runs from data to end  | 2301.11093 |
| `dynamic_mu(tokens)`                 | ln shift for a sequence length   |            |

| betas for `DiscreteBetas` (float64)  | beta_k or alpha_bar              | arXiv      |
|--------------------------------------|----------------------------------|------------|
| `linear_betas`                       | linear                           | 2006.11239 |
| `scaled_linear_betas`                | the square of a linear root      | 2112.10752 |
| `sigmoid_betas`                      | a sigmoid                        | 2203.02923 |
| `cosine_betas`                       | alpha_bar a squared cosine       | 2102.09672 |
| `exponential_betas`                  | alpha_bar = exp(-rate t)         |            |
| `laplace_betas`                      | log-SNR with Laplace quantiles   | 2407.03297 |
| `rescale_zero_terminal_snr(betas)`   | the same, ending in pure noise   | 2305.08891 |

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

How noise comes about, in one dimension (for teaching): `random_walk` takes equal steps
left or right, `walk_distribution` is where they lead, `heat_kernel` the Gaussian limit.

A new path is a frozen dataclass with `__call__`; see `Path`.

Between two distributions, x_t = alpha x_0 + beta x_1 + gamma z (see `Interpolant`, and
its `Coefficients`); of a path x_1 is the noise:

| interpolant                       | alpha, beta, gamma                  | arXiv      |
|-----------------------------------|-------------------------------------|------------|
| `LinearInterpolant(sigma)`        | 1 - t, t, none or sigma             | 2302.00482 |
| `TrigonometricInterpolant(sigma)` | cos, sin of pi t / 2, none or sigma | 2303.08797 |
| `BridgeInterpolant(sigma)`        | 1 - t, t, sigma sqrt(t (1 - t))     | 2307.03672 |
| `EncodingDecodingInterpolant()`   | cos^2, cos^2, sin^2 of pi t         | 2303.08797 |
| `TargetInterpolant(sigma)`        | 1 - t, sigma + (1 - sigma) t, none  | 2210.02747 |

| function                                             | what it gives                 |
|------------------------------------------------------|-------------------------------|
| `interpolate(interpolant, x_0, x_1, t, z)`           | x_t                           |
| `conditional_velocity(interpolant, x_0, x_1, t, z)`  | u_t = dx_t / dt               |
| `is_stochastic(interpolant)`                         | whether it takes noise z      |

Which source sample goes with which data sample: a `Coupling` is called with
`(key, x_0, x_1, condition)` and returns `Pairs`.

| coupling                       | pairs                                  | arXiv      |
|--------------------------------|----------------------------------------|------------|
| `independent_coupling`         | at random                              |            |
| `optimal_coupling`             | by exact optimal transport, on the host| 2302.00482 |
| `conditional_coupling(weight)` | within like conditions                 | 2503.10636 |
| `sinkhorn_coupling(reg)`       | drawn from the entropic plan           | 1306.0895  |
| `schroedinger_coupling(sigma)` | as a Schroedinger bridge               | 2307.03672 |
"""

from genlib.noise._betas import (
    cosine_betas,
    exponential_betas,
    laplace_betas,
    linear_betas,
    rescale_zero_terminal_snr,
    scaled_linear_betas,
    sigmoid_betas,
)
from genlib.noise._couplings import (
    Coupling,
    Pairs,
    conditional_coupling,
    independent_coupling,
    optimal_coupling,
    schroedinger_coupling,
    sinkhorn_coupling,
)
from genlib.noise._discrete import DiscreteBetas
from genlib.noise._gaussian import (
    Normal,
    drift_diffusion,
    perturb,
    posterior,
    prior,
    transition,
)
from genlib.noise._interpolants import (
    BridgeInterpolant,
    Coefficients,
    EncodingDecodingInterpolant,
    Interpolant,
    LinearInterpolant,
    TargetInterpolant,
    TrigonometricInterpolant,
    conditional_velocity,
    interpolate,
    is_stochastic,
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
from genlib.noise._paths import (
    EDM,
    VE,
    Cosine,
    LinearVP,
    Polynomial,
    Rectified,
    SubVP,
    VPLinear,
)
from genlib.noise._shifted import InterpolatedShift, Shifted, dynamic_mu
from genlib.noise._walk import heat_kernel, random_walk, walk_distribution

__all__ = [
    "EDM",
    "VE",
    "BridgeInterpolant",
    "Coefficients",
    "Cosine",
    "Coupling",
    "DiscreteBetas",
    "EncodingDecodingInterpolant",
    "Interpolant",
    "InterpolatedShift",
    "LinearInterpolant",
    "LinearVP",
    "Marginal",
    "Normal",
    "Pairs",
    "Path",
    "Polynomial",
    "Rectified",
    "Shifted",
    "SubVP",
    "TargetInterpolant",
    "TrigonometricInterpolant",
    "VPLinear",
    "check_time",
    "conditional_coupling",
    "conditional_velocity",
    "cosine_betas",
    "drift_diffusion",
    "dynamic_mu",
    "exponential_betas",
    "heat_kernel",
    "independent_coupling",
    "inside",
    "interpolate",
    "is_stochastic",
    "laplace_betas",
    "linear_betas",
    "log_snr",
    "marginal_and_rate",
    "optimal_coupling",
    "perturb",
    "posterior",
    "prior",
    "random_walk",
    "rescale_zero_terminal_snr",
    "scaled_linear_betas",
    "schroedinger_coupling",
    "sigmoid_betas",
    "sinkhorn_coupling",
    "time_at",
    "transition",
    "walk_distribution",
]
