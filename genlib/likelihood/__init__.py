"""Log-likelihoods of models and of their decoders, in nats, and bits per dimension.

| function                                  | what it gives                            |
|-------------------------------------------|------------------------------------------|
| `log_prob(denoise, path, x)`              | log p(x) by the probability-flow ODE     |
| `probability_flow(denoise, path, x)`      | its x_T, log-determinant and steps, as a |
|                                           | `Flow`                                   |
| `exact_trace()`                           | the divergence by all basis vectors      |
| `hutchinson(key)`                         | its unbiased estimate by a random probe  |
| `Divergence`                              | the type of both                         |
| `importance_weighted(key, q, p, x)`       | log p(x) of a VAE, by importance samples |
| `dequantize(key, x)`                      | integer levels as continuous data        |
| `bits_per_dim(log_prob, shape)`           | nats per example as bits per dimension   |

| decoder                                   | log p(x) of its numbers, nats [B]        |
|-------------------------------------------|------------------------------------------|
| `gaussian(x, mean, log_std)`              | a normal variable for each number        |
| `bernoulli(x, logits)`                    | a bit for each logit                     |
| `discretized_logistic(x, mean, ...)`      | a level for each mean and log-scale      |
| `discretized_logistic_mixture(x, raw, K)` | K of these at each grey or colour pixel  |

`sample_discretized_logistic_mixture` draws images from the last, and
`mean_discretized_logistic_mixture` is its mean.
"""

from genlib.divergence import Divergence, exact_trace, hutchinson
from genlib.flows._dequantize import dequantize
from genlib.likelihood._bits import bits_per_dim
from genlib.likelihood._decoders import bernoulli, gaussian
from genlib.likelihood._flow import Flow, log_prob, probability_flow
from genlib.likelihood._importance import importance_weighted
from genlib.likelihood._logistic import (
    discretized_logistic,
    discretized_logistic_mixture,
    mean_discretized_logistic_mixture,
    sample_discretized_logistic_mixture,
)

__all__ = [
    "Divergence",
    "Flow",
    "bernoulli",
    "bits_per_dim",
    "dequantize",
    "discretized_logistic",
    "discretized_logistic_mixture",
    "exact_trace",
    "gaussian",
    "hutchinson",
    "importance_weighted",
    "log_prob",
    "mean_discretized_logistic_mixture",
    "probability_flow",
    "sample_discretized_logistic_mixture",
]
