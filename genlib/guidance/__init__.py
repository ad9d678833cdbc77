"""Guidance: denoiser -> denoiser, for any sampler and any kind of prediction.

| function                                              | with scale=1 it is           |
|-------------------------------------------------------|------------------------------|
| `classifier_free(conditional, unconditional, scale)`  | the conditional model        |
| `autoguidance(model, weakened, scale)`                | the model                    |
| `compose(base, models, scales)`                       | the model, for a single one  |
| `adaptive_projected(conditional, unconditional, ...)` | the conditional model        |
| `cfg_zero_star(conditional, unconditional, ...)`      | the conditional model        |
| `tangential(conditional, unconditional, ...)`         | the conditional model        |
| `classifier(denoise, log_likelihood, scale, path)`    | Bayes' conditional model     |
| `dps(denoise, operator, y, scale, path)`              | the likelihood of x_0_hat    |
| `pigdm(denoise, operator, y, scale, path)`            | E[x_0 | x_t, y], near it     |
| `mmps(denoise, operator, y, scale, path)`             | E[x_0 | x_t, y], nearer      |

The first three are the same whatever the network predicts. The next three are not: they
take the space in which to project as `kind`, and the path with it; so does `rescale`.
The last three solve inverse problems, y = A(x_0) + noise.

| function                                        | what it does                       |
|-------------------------------------------------|------------------------------------|
| `interval(guided, conditional, path, low, high)`| guides within log-SNRs only        |
| `linear_scale`, `cosine_scale(path, noisy, clean)` | a scale that depends on time    |
| `rescale(guided, conditional, phi)`             | restores the contrast              |
| `static_threshold(denoise, low, high)`          | clips x_0                          |
| `dynamic_threshold(denoise, quantile, limit)`   | shrinks x_0, then clips            |

A scale is a number, one for each example, or a function of the time; it may be traced.
Nothing mixes the examples of a batch. Guidance applies to guidance, with or without
memory.
"""

from genlib.guidance._classifier import classifier
from genlib.guidance._classifier_free import autoguidance, classifier_free, compose
from genlib.guidance._inverse import dps, mmps, pigdm
from genlib.guidance._projected import adaptive_projected, cfg_zero_star, tangential
from genlib.guidance._rescale import dynamic_threshold, rescale, static_threshold
from genlib.guidance._schedule import cosine_scale, interval, linear_scale

__all__ = [
    "adaptive_projected",
    "autoguidance",
    "cfg_zero_star",
    "classifier",
    "classifier_free",
    "compose",
    "cosine_scale",
    "dps",
    "dynamic_threshold",
    "interval",
    "linear_scale",
    "mmps",
    "pigdm",
    "rescale",
    "static_threshold",
    "tangential",
]
