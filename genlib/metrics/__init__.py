"""Distances between samples, straightness of flows, and the exact Gaussian mixture.

| function                          | what it gives                                   |
|-----------------------------------|-------------------------------------------------|
| `frechet_distance(x, y)`          | squared distance of Gaussian fits to features   |
| `sliced_wasserstein(key, x, y)`   | Wasserstein distance over random directions     |
| `wasserstein(x, y)`               | the exact one, by assignment on the host        |
| `mmd(x, y, bandwidth)`            | squared maximum mean discrepancy, unbiased      |
| `straightness(trajectory, times)` | distance of trajectories from straight lines    |
| `path_energy(trajectory, times)`  | their kinetic energy                            |
| `normalised_path_energy(e, w2)`   | its excess over optimal transport               |
| `GaussianMixture(weights, ...)`   | density, score and denoiser in closed form at   |
|                                   | any (alpha, sigma): the oracle for samplers     |
| `TwoMoons(sigma)`                 | samples of known density: the oracle for flows  |
"""

from genlib.metrics._distances import frechet_distance, sliced_wasserstein
from genlib.metrics._mixture import GaussianMixture
from genlib.metrics._transport import (
    mmd,
    normalised_path_energy,
    path_energy,
    straightness,
    wasserstein,
)
from genlib.metrics._two_moons import TwoMoons

__all__ = [
    "GaussianMixture",
    "TwoMoons",
    "frechet_distance",
    "mmd",
    "normalised_path_energy",
    "path_energy",
    "sliced_wasserstein",
    "straightness",
    "wasserstein",
]
