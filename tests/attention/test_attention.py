"""The door of attention: what it refuses, and which code it chooses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import train
from genlib.attention import (
    _attention,
    _fused,
    _splash,
    attention,
    causal,
    padding,
    predicate,
    prefix,
    segments,
    visible,
    window,
)

Q = jnp.zeros((2, 4, 4, 8))
K = jnp.zeros((2, 6, 2, 8))
V = jnp.zeros((2, 6, 2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(q=Q[0]), "q must be floating .batch, length, heads, features"),
        (dict(k=K.astype(jnp.bfloat16)), "q, k and v must have one dtype"),
        (dict(v=V[:, :5]), "k and v must be .B, S, K, features."),
        (dict(k=K[..., :5]), "q and k must have equal features, got 8 and 5"),
        (dict(q=Q[:, :, :3]), "the heads of q must be a multiple"),
        (dict(sink=jnp.zeros(2)), "sink must be one logit for each of 4 heads"),
        (dict(scale=jnp.ones(4)), "scale must be a scalar"),
        (dict(softcap=0.0), "softcap must be positive"),
        (dict(softcap=np.inf), "softcap must be positive and finite, got inf"),
        (dict(q_positions=jnp.arange(4)), "give both q_positions and kv_positions"),
        (
            dict(q_positions=jnp.arange(3), kv_positions=jnp.arange(6)),
            "q_positions must be integers",
        ),
        (
            dict(q_positions=np.arange(4) + 2**32, kv_positions=np.arange(6)),
            "q_positions must be of 32 bits",
        ),
        (dict(mask=lambda q, k: k <= q), "make one by `predicate`"),
        (
            dict(mask=predicate(lambda q, k: (q - k) % 2)),
            "must return bools, got int32",
        ),
        (dict(mask=prefix(jnp.ones(3, int))), r"broadcast to \[2, 4, 4, 6\]"),
        (dict(mask=np.ones((3, 1, 1, 1), bool)), r"broadcast to \[2, 4, 4, 6\]"),
        (dict(bias=jnp.ones((3, 1, 1, 1))), r"broadcast to \[2, 4, 4, 6\]"),
        (dict(mask=np.ones(6, bool)), r"bool \[B, heads, T, S\].*`padding\(valid\)`"),
        (dict(mask=np.ones((2, 6), bool)), "a dense mask must be bool"),
        (dict(mask=np.ones((1, 3, 4, 6), bool)), "mask must have 1, 2 or 4 heads"),
        (dict(mask=np.ones((3, 1, 4, 6), bool)), "mask must have the batch 2 or 1"),
        (dict(mask=np.ones((1, 1, 4, 5), bool)), "mask must fit 6 rows of k"),
        (dict(mask=padding(np.ones((2, 5), bool))), "mask must fit 6 rows of k"),
        (dict(bias=jnp.zeros((4, 6))), "bias must be floating .B, heads, T, S."),
        (dict(impl="flash"), "impl must be one of"),
        (dict(block=(2, 2)), 'block is for impl="tiled"'),
        (dict(block=(2, 2), impl="naive"), 'block is for impl="tiled"'),
        (dict(block=(0, 2), impl="tiled"), "block must be two positive integers"),
        (dict(block=4, impl="tiled"), "block must be two positive integers"),
        (dict(impl="fused"), 'impl="fused" cannot compute this: it needs an NVIDIA'),
        (dict(impl="splash"), 'impl="splash" cannot compute this: lengths must be'),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    arguments = dict(q=Q, k=K, v=V) | changes
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


def test_a_size_is_one_number():
    for size in (0, jnp.ones(2, int)):
        with pytest.raises(ValueError, match="size must be a number of at least 1"):
            window(size)


def test_a_predicate_need_not_look_at_positions():
    assert visible(predicate(lambda q, k: True), np.arange(2), np.arange(3)).all()


def test_positions_of_few_bits_do_not_wrap():
    few = np.arange(4, dtype=np.uint8)
    table = visible(window(2), few, few)[0, 0]
    np.testing.assert_array_equal(table, abs(few[:, None] - few[None] * 1.0) < 2)


def test_masks_of_four_shapes_are_accepted():
    # Keys [1, 1, 1, S] and [B, 1, 1, S], queries [B, 1, T, S], key heads [1, K, T, S].
    v = np.arange(V.size, dtype=np.float32).reshape(V.shape)
    masks = []
    for shape in ((1, 1, 1, 6), (2, 1, 1, 6), (2, 1, 4, 6), (1, 2, 4, 6)):
        masks.append(np.zeros(shape, bool))
        masks[-1][..., 1] = True
    run = lambda v: [attention(Q, K, v, mask=mask, impl="naive") for mask in masks]
    for out in jit_once(run)(v):
        np.testing.assert_allclose(out, np.repeat(v[:, [1] * 4], 2, 2), rtol=1e-6)


class Here:
    def __init__(self, platform, **attributes):
        self.platform = platform
        self.__dict__ |= attributes


@pytest.fixture
def choose(monkeypatch):
    """Return what `auto` takes on a device of the given kind."""

    def choice(platform, dtype, lengths, *, return_lse=False, width=64, **options):
        device = Here(platform, compute_capability="9.0")
        monkeypatch.setattr(_fused, "device", lambda: device)
        taken = []
        for name in ("naive", "tiled"):
            monkeypatch.setattr(
                _attention, name, lambda call, n=name, **_: taken.append(n) or (0, 0)
            )
        for module, name in ((_fused, "fused"), (_splash, "splash")):
            monkeypatch.setattr(
                module, name, lambda call, n=name, **_: taken.append(n) or (0, 0)
            )
        q, k = (jnp.zeros((1, length, 2, width), dtype) for length in lengths)
        attention(q, k, k, return_lse=return_lse, **options)
        return taken[0]

    return choice


def test_auto_takes_a_library_where_it_computes_this_call(choose):
    half, long, short = jnp.bfloat16, (1024, 1024), (512, 512)
    assert choose("cpu", half, long, mask=causal()) == "tiled"
    assert choose("cpu", half, short) == "naive"
    assert choose("cpu", half, (1, 4096)) == "naive"  # decoding
    assert choose("gpu", half, long, mask=causal()) == "fused"
    assert choose("gpu", jnp.float32, long, mask=causal()) == "tiled"
    assert choose("gpu", half, long, return_lse=True) == "tiled"
    assert choose("gpu", half, long, softcap=5.0) == "tiled"
    assert choose("gpu", half, short, sink=jnp.zeros(2)) == "naive"
    assert choose("tpu", jnp.float32, long, softcap=5.0) == "splash"
    assert choose("tpu", half, long, mask=segments(jnp.ones((1, 1024), int)))
    assert choose("tpu", half, (1000, 1024)) == "tiled"
    assert choose("tpu", half, long, mask=prefix(jnp.array([1]))) == "splash"


def test_old_and_other_gpus_have_no_fused_attention(monkeypatch):
    for capability in ("7.5", "gfx942", None):
        device = Here(
            "gpu", **({"compute_capability": capability} if capability else {})
        )
        monkeypatch.setattr(_fused, "device", lambda device=device: device)
        assert not _fused._capable()
    device = Here("gpu", compute_capability="10.0")
    monkeypatch.setattr(_fused, "device", lambda: device)
    assert _fused._capable()


def test_the_device_is_the_default_one():
    second = jax.devices()[1]
    with jax.default_device(second):
        assert _fused.device() == second
    assert _fused.device() == jax.devices()[0]


def test_auto_can_be_counted():
    q = jax.ShapeDtypeStruct((1, 1024, 2, 16), jnp.float32)
    count = train.flops(lambda q: attention(q, q, q), q)
    assert count == 4 * 2 * 1024 * 1024 * 16


@pytest.mark.parametrize(("batch", "length", "keys"), [(1, 0, 3), (1, 3, 0), (0, 2, 3)])
def test_nothing_to_look_at_or_to_look(batch, length, keys):
    q, k = jnp.ones((batch, length, 2, 4)), jnp.ones((batch, keys, 1, 4))
    mask = causal() & padding(np.ones((batch, keys), bool))
    for impl in ("naive", "tiled"):
        out, lse = attention(q, k, k, mask=mask, impl=impl, return_lse=True)
        assert out.shape == q.shape
        assert not out.any()
        assert (lse == -jnp.inf).all()
