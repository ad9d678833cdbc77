"""Splash attention, interpreted and lowered where there is no TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as library
from laws.registry import jit_once

from genlib.attention import (
    _splash,
    attention,
    block_causal,
    causal,
    dense,
    prefix,
    segments,
    window,
)


def inputs(lengths=(128, 256), features=(16, 8), dtype=jnp.float32, batch=1):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [
        (batch, lengths[0], 2, features[0]),
        (batch, lengths[1], 1, features[0]),
        (batch, lengths[1], 1, features[1]),
    ]
    return [jax.random.normal(*x, dtype) for x in zip(keys, shapes, strict=True)]


def test_interpreted_equals_naive(monkeypatch):
    # Two documents and padding, of which the queries are the second half, cut short
    # so that some see nothing at all; a key that is seen by the last ones is NaN.
    real = library.make_splash_mha
    interpreted = functools.partial(real, interpret=True)
    monkeypatch.setattr(library, "make_splash_mha", interpreted)
    ids = np.repeat([[1, 2, 2, 0]], 64, axis=1)
    mask = segments(ids[:, 128:], ids) & causal() & prefix(np.int32(190))
    q, k, v = inputs()
    k = k.at[0, 180, 0, 3].set(jnp.nan).at[0, 200].set(jnp.inf)

    def loss(q, k, v, impl):
        out = attention(q, k, v, mask=mask, softcap=5.0, impl=impl)
        return (jnp.where(jnp.isnan(out), 0.0, out) ** 2).sum(), out

    grad = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, expected), gradients = jit_once(grad, static_argnums=3)(q, k, v, "naive")
    (_, out), found = jit_once(grad, static_argnums=3)(q, k, v, "splash")
    assert np.isnan(expected[0, 52:64]).all()
    assert (expected[0, 64:] == 0).all()
    np.testing.assert_allclose(out, expected, atol=1e-6)
    for ours, theirs in zip(gradients, found, strict=True):
        assert np.abs(ours).max() > 0.1
        np.testing.assert_allclose(theirs, ours, atol=3e-6)


@pytest.mark.parametrize(
    ("mask", "dtype", "lengths", "features"),
    [
        (None, jnp.bfloat16, (128, 128), (64, 64)),
        (causal() & window(100), jnp.float32, (256, 512), (80, 96)),
    ],
)
def test_lowers_for_tpus(mask, dtype, lengths, features):
    ids = np.ones((1, lengths[1]), int)
    packed = segments(ids[:, : lengths[0]], ids)
    q, k, v = (jax.eval_shape(lambda x=x: x) for x in inputs(lengths, features, dtype))

    def loss(q, k, v):
        everything = packed if mask is None else mask
        return attention(q, k, v, mask=everything, impl="splash").sum()

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    program = jax.export.export(run, platforms=["tpu"])(q, k, v).mlir_module()
    for part in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{part}" in program


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(dtype=jnp.float16), "it computes in bfloat16 and float32"),
        (dict(lengths=(100, 128)), "multiples of 128"),
        (dict(return_lse=True), "log-sum-exp"),
        (dict(bias=jnp.zeros((1, 1, 1, 1))), "no bias"),
        (dict(sink=jnp.zeros(2)), "its sink"),
        (dict(batch=2, mask=prefix(np.array([3, 4]))), "one for all examples"),
        (dict(mask=prefix(np.int32(0)) & causal()), "nothing is seen"),
    ],
)
def test_what_it_would_not_do_exactly_is_refused(options, reason):
    own = ("dtype", "lengths", "batch")
    q, k, v = inputs(**{name: options.pop(name) for name in own if name in options})
    with pytest.raises(ValueError, match=f"splash.*cannot compute this: .*{reason}"):
        attention(q, k, v, impl="splash", **options)


def test_traced_settings_are_refused():
    q, k, v = inputs()
    for options in (
        lambda x: dict(softcap=x),
        lambda x: dict(mask=causal() & window(x)),
    ):
        run = jax.jit(lambda x, o=options: attention(q, k, v, impl="splash", **o(x)))
        with pytest.raises(ValueError, match="must be known before tracing"):
            run(3)


def test_blocks_must_divide_the_lengths():
    q, k, v = inputs()
    for block in ((128, 192), (64, 128), (256, 128)):
        with pytest.raises(ValueError, match="block must be multiples of 128"):
            attention(q, k, v, impl="splash", block=block)


def test_masks_of_the_library_are_ours():
    # The pattern that the kernel is built of, for a mask of each head among others.
    table = np.arange(2)[None, :, None, None] <= np.arange(256)[None, None, None] % 3
    for mask in (causal() & window(70), block_causal(50), dense(table) & causal()):
        call = _splash_call(mask)
        pattern = _splash._pattern([mask], call, library)
        found = [head[slice(0, 128), slice(0, 256)] for head in pattern.masks]
        q, kv = np.arange(128, 256)[:, None], np.arange(256)[None]
        seen = np.asarray(mask(q[None, None], kv[None, None]))
        assert (np.stack(found) == seen[0]).all()
        part = pattern.masks[1][slice(64, 128), slice(100, 200)]
        assert (part == found[1][64:128, 100:200]).all()


def _splash_call(mask):
    from genlib.attention._call import make_call

    return make_call(*inputs(), mask, None, None, None, None, None, None)
