"""Per-example objectives. A loss never reduces over the batch: the train step does.

| loss [B]                                   | trains                     | arXiv      |
|--------------------------------------------|----------------------------|------------|
| `denoising(key, predict, path, x_0)`       | any kind of prediction     | 2006.11239 |
| `flow_matching(key, predict, x_0, x_1)`    | a velocity between any two | 2302.00482 |
| `mean_flow(key, predict, x_0, x_1)`        | a mean velocity u(x, s, t) | 2505.13447 |
| `shortcut(key, predict, x_0, x_1)`         | the same, by half steps    | 2410.12557 |
| `consistency_training(key, f, path, x_0)`  | x_0 from anywhere at once  | 2310.14189 |
| `consistency_distillation(key, f, ...)`    | the same, from a denoiser  | 2303.01469 |
| `progressive_distillation(key, ...)`       | one step for a model's two | 2202.00512 |
| `classification(key, logits, path, ...)`   | a classifier of noisy data | 2105.05233 |

`reflow_pairs(transport, x_1)` makes the pairs of a next round of `flow_matching`.

The variational bound of VDM (arXiv:2107.00630), in nats [B]: `vdm` is the sum of
`vdm_diffusion` (continuous, or of T steps), `vdm_prior` and `vdm_reconstruction`.
`hybrid` trains iDDPM's learned variance (arXiv:2102.09672), and `uncertainty` weighs
any loss by a learned log-variance (arXiv:2312.02696).

The terms of variational autoencoders (their decoders' likelihoods: `likelihood`):

| function                                   | what it gives              | arXiv      |
|--------------------------------------------|----------------------------|------------|
| `elbo(key, posterior, log_likelihood, x)`  | the bound, as an `ELBO`    | 1312.6114  |
| `iwae(key, posterior, log_joint, x)`       | that of several latents,   | 1509.00519 |
|                                            | with three estimators      | 1810.04152 |
| `reparameterize(key, mean, log_std)`       | mean + std eps             | 1312.6114  |
| `kl_normal`, `kl_multivariate_normal`,     | closed forms, in nats      |            |
| `kl_categorical`                           |                            |            |
| `free_bits(kl, minimum)`                   | max(kl, minimum)           | 1606.04934 |
| `cyclical_annealing(step, period)`         | a weight of the KL         | 1903.10145 |

| weight                | on the squared error of x_0                     | arXiv      |
|-----------------------|-------------------------------------------------|------------|
| `unit`                | none: plain error of the network's own target   |            |
| `snr`                 | SNR, the plain error of eps                     | 2006.11239 |
| `edm(sigma_data)`     | SNR + 1 / sigma_data^2                          | 2206.00364 |
| `min_snr(gamma)`      | min(SNR, gamma)                                 | 2303.09556 |
| `soft_min_snr(gamma)` | SNR gamma / (SNR + gamma)                       | 2401.11605 |
| `sigmoid(bias)`       | SNR sigmoid(bias - log_snr)                     | 2303.00848 |
| `p2(gamma, k)`        | SNR / (k + SNR)^gamma                           | 2204.00227 |
| `sigma_sqrt`          | sigma^-2 of the velocity on `Rectified`         | 2403.03206 |
| `cosmap`              | 2 / (pi (1 - 2 sigma + 2 sigma^2)) of the same  | 2403.03206 |
| `likelihood`          | -d log_snr / dt SNR: g^2 of the score           | 2101.09258 |
| `per_log_snr(weight)` | any weight times -d log_snr / dt                | 2303.00848 |
| `on_x0(fn)`           | fn(log_snr): write your own                     |            |

| times                            | distribution                         | arXiv      |
|----------------------------------|--------------------------------------|------------|
| `uniform`                        | uniform over the path                |            |
| `stratified`                     | one draw in each of B equal bins     | 2107.00630 |
| `low_discrepancy`                | equally spaced with a random offset  | 2107.00630 |
| `logit_normal(mean, std)`        | logit of the time normal             | 2403.03206 |
| `mode(scale)`                    | SD3's, with its mode in the middle   | 2403.03206 |
| `beta(a, b)`                     | beta                                 |            |
| `log_normal_sigma(mean, std)`    | ln(sigma / alpha) normal             | 2206.00364 |
| `log_logistic_sigma(mean, s)`    | ln(sigma / alpha) logistic           |            |
| `uniform_log_snr(low, high)`     | log-SNR uniform                      | 2303.00848 |
| `uniform_on(other)`              | uniform on another path              | 2202.00512 |
| `loss_second_moment(bins)`       | by the losses of late, in time       | 2102.09672 |
| `adaptive_log_snr(low, high)`    | by the losses of late, in log-SNR    | 2303.00848 |

The last two are `AdaptiveTimes`, with a state (`LossHistory`, `LossAverage`).

| steps s <= t                  | distribution                           | arXiv      |
|-------------------------------|----------------------------------------|------------|
| `uniform_steps(steps)`        | steps of equal length in t             |            |
| `karras_steps(steps)`         | steps of a Karras grid                 | 2303.01469 |
| `log_normal_steps(steps)`     | the same, log-normal in sigma / alpha  | 2310.14189 |
| `random_steps(times, share)`  | between two draws of times, or s = t   | 2505.13447 |
| `dyadic_steps(levels, share)` | of length 2^-k, or s = t               | 2410.12557 |

A `StepSampler` is any function (key, path, n, dtype) -> (s, t). `step_curriculum` gives
the number of steps during consistency training, `inverse_step` is its weight, and
`pseudo_huber` and `squared_distance` are distances of two answers.

A `Weight` is any function (path, kind, t) -> [B]; a `TimeSampler` is any function
(key, path, n, dtype) -> [n].

| loss [B] of a GAN                          | discriminator; generator   | arXiv      |
|--------------------------------------------|----------------------------|------------|
| `hinge_discriminator`, `hinge_generator`   | max(0, 1 -+ logit); -logit | 1705.02894 |
| `logistic_discriminator`,                  | cross-entropy;             | 1406.2661  |
| `logistic_generator`                       | non-saturating             |            |
| `least_squares_discriminator`,             | squared error from 1 and 0 | 1611.04076 |
| `least_squares_generator`                  |                            |            |
| `wasserstein_discriminator`,               | -+ value                   | 1701.07875 |
| `wasserstein_generator`                    |                            |            |
| `relativistic(better, worse)`              | cross-entropy of pairs     | 2501.05441 |
| `gradient_penalty(key, D, real, fake)`     | gradient of norm 1 between | 1704.00028 |
| `r1(D, real)`, `r2(D, fake)`               | gradient of norm 0 at them | 1801.04406 |

`adaptive_weight` balances an adversarial gradient with a reconstruction's
(arXiv:2012.09841), and `feature_distance` makes a perceptual loss of a network's
features (arXiv:1801.03924).
"""

from genlib.losses._adaptive_times import (
    AdaptiveTimes,
    LossAverage,
    LossHistory,
    adaptive_log_snr,
    loss_second_moment,
)
from genlib.losses._adversarial import (
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    least_squares_discriminator,
    least_squares_generator,
    logistic_discriminator,
    logistic_generator,
    relativistic,
    wasserstein_discriminator,
    wasserstein_generator,
)
from genlib.losses._classifier import classification
from genlib.losses._consistency import (
    consistency_distillation,
    consistency_training,
    inverse_step,
    pseudo_huber,
    squared_distance,
)
from genlib.losses._denoising import denoising
from genlib.losses._distillation import progressive_distillation
from genlib.losses._elbo import vdm, vdm_diffusion, vdm_prior, vdm_reconstruction
from genlib.losses._flow_matching import flow_matching, reflow_pairs
from genlib.losses._gradient_penalty import gradient_penalty, r1, r2
from genlib.losses._hybrid import hybrid
from genlib.losses._importance import iwae
from genlib.losses._kl import (
    cyclical_annealing,
    free_bits,
    kl_categorical,
    kl_multivariate_normal,
    kl_normal,
)
from genlib.losses._latents import reparameterize
from genlib.losses._mean_flow import mean_flow, shortcut
from genlib.losses._perceptual import feature_distance
from genlib.losses._steps import (
    StepSampler,
    dyadic_steps,
    karras_steps,
    log_normal_steps,
    random_steps,
    step_curriculum,
    uniform_steps,
)
from genlib.losses._times import (
    TimeSampler,
    beta,
    logit_normal,
    low_discrepancy,
    mode,
    stratified,
    uniform,
)
from genlib.losses._times_log_snr import (
    log_logistic_sigma,
    log_normal_sigma,
    uniform_log_snr,
    uniform_on,
)
from genlib.losses._uncertainty import uncertainty
from genlib.losses._vae import ELBO, elbo
from genlib.losses._weights import (
    Weight,
    cosmap,
    edm,
    likelihood,
    min_snr,
    on_x0,
    p2,
    per_log_snr,
    sigma_sqrt,
    sigmoid,
    snr,
    soft_min_snr,
    unit,
)

__all__ = [
    "ELBO",
    "AdaptiveTimes",
    "LossAverage",
    "LossHistory",
    "StepSampler",
    "TimeSampler",
    "Weight",
    "adaptive_log_snr",
    "adaptive_weight",
    "beta",
    "classification",
    "consistency_distillation",
    "consistency_training",
    "cosmap",
    "cyclical_annealing",
    "denoising",
    "dyadic_steps",
    "edm",
    "elbo",
    "feature_distance",
    "flow_matching",
    "free_bits",
    "gradient_penalty",
    "hinge_discriminator",
    "hinge_generator",
    "hybrid",
    "inverse_step",
    "iwae",
    "karras_steps",
    "kl_categorical",
    "kl_multivariate_normal",
    "kl_normal",
    "least_squares_discriminator",
    "least_squares_generator",
    "likelihood",
    "log_logistic_sigma",
    "log_normal_sigma",
    "log_normal_steps",
    "logistic_discriminator",
    "logistic_generator",
    "logit_normal",
    "loss_second_moment",
    "low_discrepancy",
    "mean_flow",
    "min_snr",
    "mode",
    "on_x0",
    "p2",
    "per_log_snr",
    "progressive_distillation",
    "pseudo_huber",
    "r1",
    "r2",
    "random_steps",
    "reflow_pairs",
    "relativistic",
    "reparameterize",
    "shortcut",
    "sigma_sqrt",
    "sigmoid",
    "snr",
    "soft_min_snr",
    "squared_distance",
    "step_curriculum",
    "stratified",
    "uncertainty",
    "uniform",
    "uniform_log_snr",
    "uniform_on",
    "uniform_steps",
    "unit",
    "vdm",
    "vdm_diffusion",
    "vdm_prior",
    "vdm_reconstruction",
    "wasserstein_discriminator",
    "wasserstein_generator",
]
