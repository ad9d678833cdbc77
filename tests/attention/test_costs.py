"""What attention costs, by formulas and by counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genlib import train
from genlib.attention import (
    attention,
    attention_flops,
    block_causal,
    block_sizes,
    causal,
    decode_intensity,
    dense,
    kv_cache_bytes,
    latent_cache_bytes,
    prefix,
    segments,
    visible,
    window,
)


def test_bytes_of_a_cached_token():
    assert kv_cache_bytes(128, 128) == 65_536
    assert kv_cache_bytes(8, 128) == 4_096
    assert kv_cache_bytes(1, 128) == 512
    assert latent_cache_bytes(512, 64) == 1_152
    assert kv_cache_bytes(4, 192, 128, layers=3, bits=8) == 3 * 4 * 320


def test_the_cache_of_deepseek_v2_is_93_percent_smaller():
    # Six bits and 60 layers, against 95 layers of eight heads in bfloat16.
    latent = latent_cache_bytes(512, 64, layers=60, bits=6)
    shared = kv_cache_bytes(8, 128, layers=95)
    assert 1 - latent / shared == 1 - (576 * 60 * 6) / (2 * 8 * 128 * 95 * 16)
    assert round(100 * (1 - latent / shared), 2) == 93.34


def test_flops_are_those_of_the_formula():
    q = jax.ShapeDtypeStruct((2, 7, 4, 8), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 10, 2, 8), jnp.float32)
    v = jax.ShapeDtypeStruct((2, 10, 2, 6), jnp.float32)
    run = lambda *x: attention(*x, impl="naive")
    grad = jax.grad(lambda *x: run(*x).sum(), (0, 1, 2))
    for fn, backward in ((run, False), (grad, True)):
        found = attention_flops(7, 10, 4, 8, 6, batch=2, backward=backward)
        assert found == train.flops(fn, q, k, v)


def test_flops_of_a_mask_are_those_of_the_pairs_seen():
    ids = np.repeat([[1, 2, 0], [1, 1, 2]], 100, axis=1)
    table = np.random.default_rng(0).random((1, 4, 300, 1)) < 0.5
    q, kv = jnp.arange(300), jnp.arange(300)
    for mask in (
        causal() & window(17),
        block_causal(70) | prefix(np.array([5, 9])),
        segments(ids) & causal(),
        dense(table),
    ):
        seen = np.asarray(visible(mask, q, kv))
        pairs = np.broadcast_to(seen, (2, 4, 300, 300)).sum()
        found = attention_flops(300, 300, 4, 8, 6, batch=2, mask=mask)
        assert found == 2 * pairs * 14
    assert attention_flops(2, 6, 1, 1, mask=causal()) == 4 * (5 + 6)


def test_flops_of_a_traced_mask_are_unknown():
    def count(size):
        return attention_flops(4, 4, 1, 1, mask=window(size))

    with pytest.raises(ValueError, match="mask must be known"):
        jax.jit(count)(2)


def test_intensity_of_decoding():
    assert decode_intensity(128, kv_cache_bytes(128, 128), 128) == 1
    assert decode_intensity(64, kv_cache_bytes(8, 128), 128) == 8
    found = decode_intensity(128, latent_cache_bytes(512, 64), 576, 512)
    assert found == 2 * 128 * (576 + 512) / 1152


def test_blocks_of_each_backend():
    assert block_sizes("cpu", 1, 4096) == (1, 256)
    assert block_sizes("gpu", 100, 300) == (100, 150)
    assert block_sizes("tpu", 128, 640) == (128, 128)
    assert block_sizes("tpu", 1024, 1152) == (512, 384)
    with pytest.raises(ValueError, match='backend must be "cpu", "gpu" or "tpu"'):
        block_sizes("rocm", 1, 1)
    with pytest.raises(ValueError, match="multiples of 128 on a TPU, got 100 and 128"):
        block_sizes("tpu", 100, 128)
