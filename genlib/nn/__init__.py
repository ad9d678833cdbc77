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
"""

from genlib.nn._adapters import from_linen, from_nnx, lazy
from genlib.nn._conditioning import Conditioning, LabelEmbedding, TimeEmbedding
from genlib.nn._dit import DiT
from genlib.nn._labels import check_labels, drop_labels
from genlib.nn._mlp import MLP
from genlib.nn._patches import patchify, unpatchify
from genlib.nn._sinusoids import position_embedding, timestep_embedding
from genlib.nn._unet import UNet

__all__ = [
    "MLP",
    "Conditioning",
    "DiT",
    "LabelEmbedding",
    "TimeEmbedding",
    "UNet",
    "check_labels",
    "drop_labels",
    "from_linen",
    "from_nnx",
    "lazy",
    "patchify",
    "position_embedding",
    "timestep_embedding",
    "unpatchify",
]
