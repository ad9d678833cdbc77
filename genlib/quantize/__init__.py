"""Bottlenecks of codes: vectors in, the nearest of a finite set out.

A bottleneck is a `Quantizer`, pure functions: `init(key, z) -> params`,
`quantize(params, z) -> Quantized` (codes, indices, losses, perplexity, statistics),
`lookup(params, indices) -> codes` and `update(params, statistics) -> params`. Codebooks
are numbered from 0; -1 stands for no code.

| contract                          | what it is                                     |
|-----------------------------------|------------------------------------------------|
| `Quantizer`, `Quantized`          | a bottleneck; what it makes of a batch         |
| `trainable(path)`                 | which of its parameters an optimizer may move  |
| `straight_through`, `rotate`      | estimators of the gradient                     |
| `vq`, `ema_vq`                    | the nearest code, trained or a moving average  |
| `nearest`                         | the index of the nearest code, and no more     |
| `kmeans`                          | where codes start                              |
| `Statistics`,                     | sums over a batch, the moving averages of      |
| `codebook_statistics`,            | them, the codebook these make, and codes that  |
| `init_ema`, `ema_update`,         | nothing chooses restarted: each on its own     |
| `ema_codebook`, `reset_dead`      |                                                |
| `histogram`, `perplexity`,        | how often each index occurs, how evenly, and   |
| `usage`                           | how many occur                                 |

| scalar and binary                 | no codebook, nothing to learn                  |
|-----------------------------------|------------------------------------------------|
| `fsq`, `residual_fsq`             | numbers rounded to a few levels; in stages     |
| `lookup_free`, `binary_spherical` | signs of numbers; of directions                |

| soft and composite                | made of others, or trained as a whole          |
|-----------------------------------|------------------------------------------------|
| `gumbel`                          | one of K, drawn by Gumbel-softmax              |
| `simvq`                           | a linear map of frozen random codes            |
| `grouped`                         | pieces of a vector, each with its code         |
| `residual`                        | stages, each of what the earlier ones left     |
| `projected`                       | codes of few dimensions                        |
"""

from genlib.quantize._binary import binary_spherical, lookup_free
from genlib.quantize._codebook import (
    Statistics,
    codebook_statistics,
    ema_codebook,
    ema_update,
    init_ema,
)
from genlib.quantize._estimators import rotate, straight_through
from genlib.quantize._fsq import fsq
from genlib.quantize._grouped import grouped
from genlib.quantize._gumbel import gumbel
from genlib.quantize._kmeans import kmeans
from genlib.quantize._nearest import nearest
from genlib.quantize._projected import projected
from genlib.quantize._quantizer import Quantized, Quantizer, trainable
from genlib.quantize._reset import reset_dead
from genlib.quantize._residual import residual
from genlib.quantize._residual_fsq import residual_fsq
from genlib.quantize._simvq import simvq
from genlib.quantize._usage import histogram, perplexity, usage
from genlib.quantize._vector import ema_vq, vq

__all__ = [
    "Quantized",
    "Quantizer",
    "Statistics",
    "binary_spherical",
    "codebook_statistics",
    "ema_codebook",
    "ema_update",
    "ema_vq",
    "fsq",
    "grouped",
    "gumbel",
    "histogram",
    "init_ema",
    "kmeans",
    "lookup_free",
    "nearest",
    "perplexity",
    "projected",
    "reset_dead",
    "residual",
    "residual_fsq",
    "rotate",
    "simvq",
    "straight_through",
    "trainable",
    "usage",
    "vq",
]
