"""Log-likelihoods of diffusion and flow models, in nats, and bits per dimension.

| function                                  | what it gives                            |
|-------------------------------------------|------------------------------------------|
| `log_prob(denoise, path, x)`              | log p(x) by the probability-flow ODE     |
| `probability_flow(denoise, path, x)`      | its x_T, log-determinant and steps, as a |
|                                           | `Flow`                                   |
| `exact_trace()`                           | the divergence by all basis vectors      |
| `hutchinson(key)`                         | its unbiased estimate by a random probe  |
| `Divergence`                              | the type of both                         |
| `dequantize(key, x)`                      | integer levels as continuous data        |
| `bits_per_dim(log_prob, shape)`           | nats per example as bits per dimension   |
"""

from genlib.divergence import Divergence, exact_trace, hutchinson
from genlib.flows._dequantize import dequantize
from genlib.likelihood._bits import bits_per_dim
from genlib.likelihood._flow import Flow, log_prob, probability_flow

__all__ = [
    "Divergence",
    "Flow",
    "bits_per_dim",
    "dequantize",
    "exact_trace",
    "hutchinson",
    "log_prob",
    "probability_flow",
]
