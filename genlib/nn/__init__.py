"""Flax NNX networks, and the two adapters that make any Flax network a pure function.

Every network is called as `module(x, t, labels=None, key=None)`: `x` is batch-first,
`t` is a scalar or `[B]`, and the result has the shape and dtype of `x` (a UNet may
change the number of channels).

| name | what it is |
|---|---|
| `from_nnx`, `from_linen` | module -> (plain dict of parameters, pure `apply`) |
| `lazy` | making of a module -> (`init` from a key, pure `apply`) |
| `MLP` | residual MLP for points, vectors and small images |
| `UNet` | convolutional network with attention at chosen resolutions, NHWC |
| `DiT` | diffusion transformer with adaLN-zero, NHWC |
| `Conditioning` | time and optional class label -> one embedding, with its checks |
| `TimeEmbedding`, `LabelEmbedding` | its two parts |
| `timestep_embedding`, `position_embedding` | sinusoids of times and of 2-D positions |
| `patchify`, `unpatchify` | images to and from sequences of patches |
| `drop_labels`, `check_labels` | labels for classifier-free guidance |
| `conditioner` | making of a module -> a `flows.Conditioner` |
| `mlp_conditioner`, `resnet_conditioner`, `conv_conditioner` | some of them |
| `masked_conditioner` | MADE, for `flows.autoregressive` |
| `nice`, `realnvp`, `maf`, `neural_spline_flow` | flows of vectors |
| `multiscale_realnvp`, `glow` | flows of images |
| `causal_transformer_conditioner` | cached transformer, for `flows.causal` |
| `transformer_conditioner` | vision transformer, for couplings of tokens |
| `tarflow`, `jet` | flows of images with these: autoregressive, couplings |
| `lipschitz_conditioner` | network of Lipschitz constant 1, for `flows.residual` |
| `spectral_bound` | what its layers are divided by |
| `vector_field` | making of a module -> a field for `flows.continuous` |
| `ffjord` | the continuous flow of an MLP |
"""

from genlib.nn._adapters import from_linen, from_nnx, lazy
from genlib.nn._causal import (
    causal_transformer_conditioner,
    transformer_conditioner,
)
from genlib.nn._conditioner_masked import masked_conditioner
from genlib.nn._conditioners import (
    conditioner,
    conv_conditioner,
    mlp_conditioner,
    resnet_conditioner,
)
from genlib.nn._conditioning import Conditioning, LabelEmbedding, TimeEmbedding
from genlib.nn._dit import DiT
from genlib.nn._ffjord import ffjord, vector_field
from genlib.nn._flow_images import glow, multiscale_realnvp
from genlib.nn._flow_vectors import maf, neural_spline_flow, nice, realnvp
from genlib.nn._jet import jet
from genlib.nn._labels import check_labels, drop_labels
from genlib.nn._lipschitz import lipschitz_conditioner, spectral_bound
from genlib.nn._mlp import MLP
from genlib.nn._patches import patchify, unpatchify
from genlib.nn._sinusoids import position_embedding, timestep_embedding
from genlib.nn._tarflow import tarflow
from genlib.nn._unet import UNet

__all__ = [
    "MLP",
    "Conditioning",
    "DiT",
    "LabelEmbedding",
    "TimeEmbedding",
    "UNet",
    "causal_transformer_conditioner",
    "check_labels",
    "conditioner",
    "conv_conditioner",
    "drop_labels",
    "ffjord",
    "from_linen",
    "from_nnx",
    "glow",
    "jet",
    "lazy",
    "lipschitz_conditioner",
    "maf",
    "masked_conditioner",
    "mlp_conditioner",
    "multiscale_realnvp",
    "neural_spline_flow",
    "nice",
    "patchify",
    "position_embedding",
    "realnvp",
    "resnet_conditioner",
    "spectral_bound",
    "tarflow",
    "timestep_embedding",
    "transformer_conditioner",
    "unpatchify",
    "vector_field",
]
