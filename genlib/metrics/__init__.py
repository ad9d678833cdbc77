"""Distances between samples, and the exact Gaussian mixture.

| function                        | what it gives                                     |
|---------------------------------|---------------------------------------------------|
| `frechet_distance(x, y)`        | squared distance of Gaussian fits to features     |
| `sliced_wasserstein(key, x, y)` | Wasserstein distance over random directions       |
| `GaussianMixture(weights, ...)` | density, score and denoiser in closed form at any |
|                                 | (alpha, sigma): the oracle for samplers           |
"""

from genlib.metrics._distances import frechet_distance, sliced_wasserstein
from genlib.metrics._mixture import GaussianMixture

__all__ = ["GaussianMixture", "frechet_distance", "sliced_wasserstein"]
