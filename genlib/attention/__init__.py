"""Attention: queries that look at keys, and where they may look.

`attention(q, k, v, mask=causal() & window(512))` on arrays `[batch, length, heads,
features]` is all there is; everything else says what is seen, where things are, and
what is kept from call to call. A query that sees nothing gets exactly 0, what is masked
may be NaN, and queries are by default the last of the positions.

| the function                          |                                            |
|---------------------------------------|--------------------------------------------|
| `attention`                           | softmax(scale q k + bias) v                |
| `merge`                               | results of disjoint keys into one          |
| `online_softmax`, `OnlineSoftmax`     | softmax in one pass, step by step          |
| `block_sizes`                         | rows in a block, on each backend           |

| masks                                 | combine by `&`, `\\|` and `~`               |
|---------------------------------------|--------------------------------------------|
| `causal`, `window`, `prefix`,         | functions of positions                     |
| `block_causal`, `predicate`           |                                            |
| `segments`, `padding`, `dense`        | of data for every query or key             |
| `Mask`, `visible`                     | what they are; a mask as a table           |
| `Bias`                                | what is added to scores                    |

| positions                             | an `Encoding` turns keys, then attends     |
|---------------------------------------|--------------------------------------------|
| `rotary`, `rerope`, `biased`,         | encodings                                  |
| `no_positions`                        |                                            |
| `log_n`, `log_n_factor`               | sharper where there is more to see         |
| `hwfa`                                | encodings and masks of a stack of layers   |
| `rotate`, `rotate_axial`,             | the turning itself, of a line and of grids |
| `grid_positions`                      |                                            |
| `rope_frequencies`,                   | `Frequencies`, as in training and          |
| `linear_frequencies`,                 | stretched to longer sequences              |
| `ntk_frequencies`,                    |                                            |
| `dynamic_ntk_frequencies`,            |                                            |
| `yarn_frequencies`,                   |                                            |
| `llama3_frequencies`                  |                                            |
| `alibi`, `relative_bias`              | biases of distances                        |
| `sinusoidal_positions`                | what is added to embeddings                |

| caches                                | `append`, `read`, `extend`, `release`      |
|---------------------------------------|--------------------------------------------|
| `cached_attention`                    | append tokens and attend to all so far     |
| `kv_cache`, `rolling_cache`,          | all tokens; the last ones; eight bits;     |
| `quantized_cache`, `latent_cache`,    | latents of all heads; in pages             |
| `paged_cache`                         |                                            |
| `Cache`, `CacheView`, `LatentView`    | what they are; what is in them             |

| other attention                       |                                            |
|---------------------------------------|--------------------------------------------|
| `latent_attention`                    | keys and values of all heads from a latent |
| `deformable_attention`,               | sums of pixels at learned places           |
| `deformable_convolution`              |                                            |
| `bilinear_sample`                     | images between their pixels                |
| `linear_attention`,                   | baselines of linear cost, not softmax      |
| `efficient_attention`                 |                                            |

| costs                                 |                                            |
|---------------------------------------|--------------------------------------------|
| `attention_flops`                     | of the pairs that are seen                 |
| `kv_cache_bytes`,                     | for each token                             |
| `latent_cache_bytes`                  |                                            |
| `decode_intensity`                    | operations for each byte that is read      |

| many devices                          | each with a part of the sequence           |
|---------------------------------------|--------------------------------------------|
| `sequence_attention`                  | under `jit`, on the mesh around it         |
| `ring_attention`, `ulysses_attention` | inside `shard_map`: keys travel, or heads  |
| `zigzag`, `unzigzag`,                 | an order of equal work under causal masks  |
| `zigzag_positions`                    |                                            |
"""

from genlib.attention._alibi import alibi
from genlib.attention._angles import sinusoidal_positions
from genlib.attention._attention import attention
from genlib.attention._bias import Bias
from genlib.attention._cache import Cache, CacheView, cached_attention
from genlib.attention._cache_contiguous import kv_cache
from genlib.attention._cache_latent import LatentView, latent_cache
from genlib.attention._cache_paged import paged_cache
from genlib.attention._cache_quantized import quantized_cache
from genlib.attention._cache_rolling import rolling_cache
from genlib.attention._costs import (
    attention_flops,
    block_sizes,
    decode_intensity,
    kv_cache_bytes,
    latent_cache_bytes,
)
from genlib.attention._deformable import (
    bilinear_sample,
    deformable_attention,
    deformable_convolution,
)
from genlib.attention._encoding import Encoding
from genlib.attention._encodings import (
    biased,
    hwfa,
    log_n,
    log_n_factor,
    no_positions,
    rotary,
)
from genlib.attention._frequencies import (
    Frequencies,
    dynamic_ntk_frequencies,
    linear_frequencies,
    ntk_frequencies,
    rope_frequencies,
)
from genlib.attention._latent import latent_attention
from genlib.attention._linear import efficient_attention, linear_attention
from genlib.attention._mask import Mask, visible
from genlib.attention._mask_tables import dense, padding, segments
from genlib.attention._masks import block_causal, causal, predicate, prefix, window
from genlib.attention._merge import merge
from genlib.attention._online import OnlineSoftmax, online_softmax
from genlib.attention._relative import relative_bias
from genlib.attention._rerope import rerope
from genlib.attention._ring import ring_attention
from genlib.attention._rope import grid_positions, rotate, rotate_axial
from genlib.attention._sequence import sequence_attention
from genlib.attention._ulysses import ulysses_attention
from genlib.attention._yarn import llama3_frequencies, yarn_frequencies
from genlib.attention._zigzag import unzigzag, zigzag, zigzag_positions

__all__ = [
    "Bias",
    "Cache",
    "CacheView",
    "Encoding",
    "Frequencies",
    "LatentView",
    "Mask",
    "OnlineSoftmax",
    "alibi",
    "attention",
    "attention_flops",
    "biased",
    "bilinear_sample",
    "block_causal",
    "block_sizes",
    "cached_attention",
    "causal",
    "decode_intensity",
    "deformable_attention",
    "deformable_convolution",
    "dense",
    "dynamic_ntk_frequencies",
    "efficient_attention",
    "grid_positions",
    "hwfa",
    "kv_cache",
    "kv_cache_bytes",
    "latent_attention",
    "latent_cache",
    "latent_cache_bytes",
    "linear_attention",
    "linear_frequencies",
    "llama3_frequencies",
    "log_n",
    "log_n_factor",
    "merge",
    "no_positions",
    "ntk_frequencies",
    "online_softmax",
    "padding",
    "paged_cache",
    "predicate",
    "prefix",
    "quantized_cache",
    "relative_bias",
    "rerope",
    "ring_attention",
    "rolling_cache",
    "rope_frequencies",
    "rotary",
    "rotate",
    "rotate_axial",
    "segments",
    "sequence_attention",
    "sinusoidal_positions",
    "ulysses_attention",
    "unzigzag",
    "visible",
    "window",
    "yarn_frequencies",
    "zigzag",
    "zigzag_positions",
]
