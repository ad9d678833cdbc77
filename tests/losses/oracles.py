"""Gaussian data, whose probability flow is known in closed form on every path."""

import dataclasses

import jax.numpy as jnp

from genlib import noise
from genlib.types import expand_like


@dataclasses.dataclass(frozen=True)
class GaussianFlow:
    """The flow of N(mean, std^2 I) on a path.

    x_t is N(alpha mean, w_t^2 I) with w^2 = alpha^2 std^2 + sigma^2, and its flow keeps
    (x_t - alpha mean) / w_t.
    """

    path: noise.Path
    mean: float = 0.7
    std: float = 0.6

    def sample(self, eps):
        return self.mean + self.std * eps

    def denoise(self, x, t):
        alpha, sigma = (expand_like(c, x) for c in self.path(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def velocity(self, x, t):
        marginal, rate = noise.marginal_and_rate(self.path, t)
        alpha, sigma = (expand_like(c, x) for c in marginal)
        alpha_rate, sigma_rate = (expand_like(c, x) for c in rate)
        variance = alpha**2 * self.std**2 + sigma**2
        growth = (alpha * alpha_rate * self.std**2 + sigma * sigma_rate) / variance
        return alpha_rate * self.mean + growth * (x - alpha * self.mean)

    def flow(self, x, s, t):
        """Return x_s from x_t."""
        start, end = self.path(t), self.path(s)
        width = lambda m: jnp.sqrt(m.alpha**2 * self.std**2 + m.sigma**2)
        ratio = expand_like(width(end) / width(start), x)
        offset = x - expand_like(start.alpha, x) * self.mean
        return expand_like(end.alpha, x) * self.mean + ratio * offset

    def mean_velocity(self, x, s, t):
        same = s == t
        length = expand_like(jnp.where(same, 1.0, t - s), x)
        mean = (x - self.flow(x, s, t)) / length
        return jnp.where(expand_like(same, x), self.velocity(x, t), mean)


def fixed(*times):
    """Return a time or step sampler that always gives these times."""

    def sample(key, path, n, dtype=jnp.float32):
        values = [jnp.asarray(time, dtype) for time in times]
        return values[0] if len(values) == 1 else tuple(values)

    return sample
