"""Composable generative-model primitives for JAX, as pure functions over pytrees.

| room         | what is there                                                        |
|--------------|----------------------------------------------------------------------|
| `noise`      | forward processes: paths (alpha, sigma), perturb, posterior, prior   |
| `flows`      | normalizing flows: bijectors, chains of them, densities              |
| `quantize`   | VQ bottlenecks: codebooks, residual, finite scalar, lookup-free      |
| `attention`  | attention, masks, positions, caches, over devices                    |
| `prediction` | what a network's output means: x_0, eps, v, score, velocity, EDM     |
| `losses`     | per-example objectives, loss weights, time sampling                  |
| `guidance`   | denoiser -> denoiser                                                 |
| `samplers`   | solvers, time grids, the one sampling loop                           |
| `likelihood` | log p(x) by the probability flow, bits per dimension                 |
| `metrics`    | distances of samples, straightness, the exact Gaussian mixture       |
| `nn`         | Flax NNX networks: MLP, UNet, DiT, embeddings (imports Flax)         |
| `train`      | train state and step, sharding, checkpoints, the loop (imports Orbax)|

`import genlib` loads the light rooms; `from genlib import nn, train` loads the others.
It also adds a flag to XLA_FLAGS for the releases of jaxlib whose sums on CPUs are wrong
(`genlib/_xla.py`).
"""

from genlib import (
    attention,
    flows,
    guidance,
    likelihood,
    losses,
    metrics,
    noise,
    prediction,
    quantize,
    samplers,
)
from genlib._xla import keep_sums_right

__version__ = "0.1.0"
__all__ = [
    "attention",
    "flows",
    "guidance",
    "likelihood",
    "losses",
    "metrics",
    "noise",
    "prediction",
    "quantize",
    "samplers",
]

keep_sums_right()
