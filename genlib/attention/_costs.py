"""What attention costs: operations, bytes kept for each token, and block sizes."""

import math

import jax
import numpy as np

from genlib.attention._mask import Mask
from genlib.attention._positions import take
from genlib.attention._schedule import ROWS, block_size
from genlib.types import is_concrete

_AT_ONCE = 256  # rows of a mask that are evaluated together


def attention_flops(
    q_len: int,
    kv_len: int,
    heads: int,
    head_features: int,
    value_features: int | None = None,
    *,
    batch: int = 1,
    mask: Mask | None = None,
    backward: bool = False,
) -> int:
    """Return the floating-point operations of attention's matrix products.

        2 B N (H + V) T S;    with a mask, of T S the pairs of which one sees the other

    Exactly what `train.flops` counts for `impl="naive"` without a mask. What a backward
    pass computes again is not counted: it is the work that has to be done, for model
    FLOPs utilisation.

    Args:
      q_len: T, queries, the last of the positions.
      kv_len: S, keys.
      heads: N, of queries.
      head_features: H, of queries and keys.
      value_features: V, those of values; by default H.
      batch: B, examples.
      mask: what is seen, known (not traced).
      backward: count the derivatives in q, k and v too, which are twice as much.

    Raises:
      ValueError: if `mask` is traced.

    >>> from genlib.attention import causal
    >>> attention_flops(4, 4, heads=1, head_features=8, mask=causal())
    320
    """
    pairs = batch * heads * q_len * kv_len
    if mask is not None:
        pairs = _pairs(mask, q_len, kv_len, heads, batch)
    value_features = head_features if value_features is None else value_features
    return (3 if backward else 1) * 2 * pairs * (head_features + value_features)


def _pairs(mask: Mask, q_len: int, kv_len: int, heads: int, batch: int) -> int:
    if not is_concrete(mask):
        raise ValueError("mask must be known, got a traced one")
    q, kv = np.arange(kv_len - q_len, kv_len), np.arange(kv_len)[None, None, None]
    count = 0
    if not kv_len:
        return count
    with jax.ensure_compile_time_eval():
        for start in range(0, q_len, _AT_ONCE):
            rows = q[None, None, start : start + _AT_ONCE, None]
            part = take(mask, start, 0, (rows.shape[2], kv_len))
            seen = np.asarray(part(rows, kv))
            repeats = math.prod(
                whole // seen.shape[axis]
                for axis, whole in enumerate((batch, heads, rows.shape[2], kv_len))
            )
            count += int(seen.sum()) * repeats
    return count


def kv_cache_bytes(
    num_kv_heads: int,
    head_features: int,
    value_features: int | None = None,
    *,
    layers: int = 1,
    bits: float = 16,
) -> float:
    """Return the bytes that a cache of keys and values takes for each token.

        layers K (H + V) bits / 8

    With K = N that is multi-head attention, with K = 1 multi-query attention.

    Args:
      num_kv_heads: K.
      head_features: H, of a key.
      value_features: V; by default H.
      layers: of the network.
      bits: of a number; 16 for bfloat16.

    >>> [kv_cache_bytes(heads, 128) for heads in (128, 8, 1)]
    [65536.0, 4096.0, 512.0]
    """
    value_features = head_features if value_features is None else value_features
    return layers * num_kv_heads * (head_features + value_features) * bits / 8


def latent_cache_bytes(
    latent_features: int, rotary_features: int, *, layers: int = 1, bits: float = 16
) -> float:
    """Return the bytes that a cache of latents (MLA) takes for each token.

        layers (d_c + d_r) bits / 8

    Args:
      latent_features: d_c, of which keys and values of all heads are made.
      rotary_features: d_r, the rotated part of a key, one for all heads.
      layers: of the network.
      bits: of a number; 16 for bfloat16.

    Source: arXiv:2405.04434.

    >>> latent_cache_bytes(512, 64)
    1152.0
    """
    return kv_cache_bytes(1, latent_features, rotary_features, layers=layers, bits=bits)


def decode_intensity(
    heads: int,
    cache_bytes: float,
    head_features: int,
    value_features: int | None = None,
) -> float:
    """Return the operations for each byte that decoding reads of its cache.

        2 N (H + V) / bytes of a cached token

    A machine that can do more operations than that while it reads a byte waits for its
    memory.

    Args:
      heads: N, of queries.
      cache_bytes: of a token in one layer, `kv_cache_bytes` or `latent_cache_bytes`.
      head_features: H of what a query is compared with: d_c + d_r in absorbed MLA.
      value_features: V of what is averaged, by default H: d_c in absorbed MLA.

    Source: arXiv:1911.02150 (memory bandwidth in decoding).

    >>> decode_intensity(32, kv_cache_bytes(32, 128), 128)
    1.0
    >>> round(decode_intensity(128, latent_cache_bytes(512, 64), 576, 512), 1)
    241.8
    """
    return attention_flops(1, 1, heads, head_features, value_features) / cache_bytes


def block_sizes(backend: str, q_len: int, kv_len: int) -> tuple[int, int]:
    """Return the rows of queries and of keys in a block that suit a backend.

    On TPUs the largest multiples of 128 up to 512 that divide the lengths, which is
    what splash needs. Elsewhere up to 256, measured on CPUs, that cover the lengths
    evenly.

    Args:
      backend: "cpu", "gpu" or "tpu".
      q_len: T.
      kv_len: S.

    Raises:
      ValueError: if `backend` is none of these, or a length is no multiple of 128 on a
        TPU.

    >>> block_sizes("cpu", 300, 1024), block_sizes("tpu", 384, 1024)
    ((150, 256), (384, 512))
    """
    lengths = q_len, kv_len
    if backend not in ("cpu", "gpu", "tpu"):
        raise ValueError(f'backend must be "cpu", "gpu" or "tpu", got {backend!r}')
    if backend != "tpu":
        rows, columns = (block_size(length, ROWS) for length in lengths)
        return rows, columns
    if any(length % 128 or not length for length in lengths):
        raise ValueError(
            "q_len and kv_len must be multiples of 128 on a TPU, got "
            f"{q_len} and {kv_len}"
        )
    rows, columns = (
        max(size for size in range(128, 513, 128) if length % size == 0)
        for length in lengths
    )
    return rows, columns
