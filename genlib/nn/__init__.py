"""Flax NNX networks, and the two adapters that make any Flax network a pure function.

Networks of x and times are called as `module(x, t, labels=None, key=None)`: `x` is
batch-first, `t` is a scalar or `[B]`, and the result has the shape and dtype of `x` (a
UNet may change the number of channels). Encoders and decoders are called as
`module(x, key=None)`; keys are for dropout.

| name | what it is |
|---|---|
| `from_nnx`, `from_linen` | module -> (plain dict of parameters, pure `apply`) |
| `lazy` | making of a module -> (`init` from a key, pure `apply`) |
| `MLP` | residual MLP for points, vectors and small images |
| `UNet` | convolutional network with attention at chosen resolutions, NHWC |
| `DiT` | diffusion transformer with adaLN-zero, NHWC |
| `Transformer` | language model, encoder or decoder over tokens, with caches |
| `TransformerBlock` | one of its blocks: attention, cross-attention, MLP; adaLN-zero |
| `Attention` | self- and cross-attention with their projections |
| `FeedForward`, `SwiGLU` | MLP and gated MLP of a block |
| `ConvEncoder`, `ConvDecoder` | convolutional autoencoder of latent diffusion, NHWC |
| `PatchEncoder`, `PatchDecoder` | vision transformer to and from patches, NHWC |
| `PatchDiscriminator` | PatchGAN: a map of logits, NHWC |
| `LatentAttention` | multi-head latent attention: a small cache for many heads |
| `DeformableConv`, `DeformableAttention` | layers that learn where to look in images |
| `Conditioning` | time and optional class label -> one embedding, with its checks |
| `TimeEmbedding`, `LabelEmbedding` | its two parts |
| `timestep_embedding`, `position_embedding` | sinusoids of times and of 2-D positions |
| `vae`, `vqvae` | autoencoders of an encoder and a decoder: a `VAE`, a `VQVAE` |
| `vqgan` | one of these with a discriminator: a `VQGAN` |
| `AutoencoderLoss` | what they make of a batch in training |
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
| `ladder_vae`, `LadderVAE` | VAE with a hierarchy of latents, from coarse to fine |
| `LadderBlock` | one group of its latents: prior, posterior, projection |
| `code_prior`, `CodePrior` | prior over codes, autoregressive or masked |
| `CodeTransformer` | its network: indices -> logits |
| `code_log_prob` | log-probability of codes from their logits |
| `sample_codes`, `sample_masked_codes` | codes drawn in order, or by confidence |
"""

from genlib.nn._adapters import from_linen, from_nnx, lazy
from genlib.nn._attention import Attention
from genlib.nn._autoencoder_patch import PatchDecoder, PatchEncoder
from genlib.nn._autoencoder_terms import AutoencoderLoss
from genlib.nn._blocks import TransformerBlock
from genlib.nn._causal import (
    causal_transformer_conditioner,
    transformer_conditioner,
)
from genlib.nn._code_prior import CodePrior, code_prior
from genlib.nn._code_sampling import code_log_prob, sample_codes, sample_masked_codes
from genlib.nn._code_transformer import CodeTransformer
from genlib.nn._conditioner_masked import masked_conditioner
from genlib.nn._conditioners import (
    conditioner,
    conv_conditioner,
    mlp_conditioner,
    resnet_conditioner,
)
from genlib.nn._conditioning import Conditioning, LabelEmbedding, TimeEmbedding
from genlib.nn._decoder import ConvDecoder
from genlib.nn._deformable import DeformableAttention, DeformableConv
from genlib.nn._discriminator import PatchDiscriminator
from genlib.nn._dit import DiT
from genlib.nn._encoder import ConvEncoder
from genlib.nn._feedforward import FeedForward, SwiGLU
from genlib.nn._ffjord import ffjord, vector_field
from genlib.nn._flow_images import glow, multiscale_realnvp
from genlib.nn._flow_vectors import maf, neural_spline_flow, nice, realnvp
from genlib.nn._jet import jet
from genlib.nn._labels import check_labels, drop_labels
from genlib.nn._ladder import LadderVAE, ladder_vae
from genlib.nn._ladder_parts import LadderBlock
from genlib.nn._latent_attention import LatentAttention
from genlib.nn._lipschitz import lipschitz_conditioner, spectral_bound
from genlib.nn._mlp import MLP
from genlib.nn._patches import patchify, unpatchify
from genlib.nn._sinusoids import position_embedding, timestep_embedding
from genlib.nn._tarflow import tarflow
from genlib.nn._transformer import Transformer
from genlib.nn._unet import UNet
from genlib.nn._vae import VAE, vae
from genlib.nn._vqgan import VQGAN, vqgan
from genlib.nn._vqvae import VQVAE, vqvae

__all__ = [
    "MLP",
    "VAE",
    "VQGAN",
    "VQVAE",
    "Attention",
    "AutoencoderLoss",
    "CodePrior",
    "CodeTransformer",
    "Conditioning",
    "ConvDecoder",
    "ConvEncoder",
    "DeformableAttention",
    "DeformableConv",
    "DiT",
    "FeedForward",
    "LabelEmbedding",
    "LadderBlock",
    "LadderVAE",
    "LatentAttention",
    "PatchDecoder",
    "PatchDiscriminator",
    "PatchEncoder",
    "SwiGLU",
    "TimeEmbedding",
    "Transformer",
    "TransformerBlock",
    "UNet",
    "causal_transformer_conditioner",
    "check_labels",
    "code_log_prob",
    "code_prior",
    "conditioner",
    "conv_conditioner",
    "drop_labels",
    "ffjord",
    "from_linen",
    "from_nnx",
    "glow",
    "jet",
    "ladder_vae",
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
    "sample_codes",
    "sample_masked_codes",
    "spectral_bound",
    "tarflow",
    "timestep_embedding",
    "transformer_conditioner",
    "unpatchify",
    "vae",
    "vector_field",
    "vqgan",
    "vqvae",
]
