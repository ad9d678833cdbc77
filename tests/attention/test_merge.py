"""Attention over parts of the keys, put together; softmax in one pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import attention, causal, merge, online_softmax, prefix


def inputs(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, 5, 4, 8), (2, 9, 2, 8), (2, 9, 2, 3)]
    return [jax.random.normal(*x, dtype) for x in zip(keys, shapes, strict=True)]


def test_parts_are_the_whole(x64):
    arguments = inputs(jnp.float64)
    weights = jax.random.normal(jax.random.key(1), (2, 5, 4, 3))
    sink = jnp.linspace(-1.0, 1.0, 4)
    positions = np.arange(4, 9)

    def part(q, k, v, start, stop, sink=None):
        return attention(
            *(q, k[:, start:stop], v[:, start:stop]),
            mask=causal(),
            sink=sink,
            q_positions=positions,
            kv_positions=np.arange(start, stop),
            impl="naive",
            return_lse=True,
        )

    def whole(q, k, v):
        return part(q, k, v, 0, 9, sink)

    def merged(q, k, v):  # the first queries see nothing of the last part
        parts = [(0, 2, sink), (2, 7), (7, 9)]
        return merge(*(part(q, k, v, *where) for where in parts))

    def empty(q, k, v):
        found = whole(q, k, v)
        nothing = jnp.zeros_like(found[0]), jnp.full_like(found[1], -jnp.inf)
        return merge(nothing, found, nothing)

    def loss(*arguments, f):
        out, lse = f(*arguments)
        return (weights * out).sum() + jnp.sin(lse).sum(), (out, lse)

    def run(*arguments):
        every = (whole, merged, empty)
        grads = [jax.grad(functools.partial(loss, f=f), (0, 1, 2), True) for f in every]
        return [grad(*arguments) for grad in grads]

    expected, *others = map(jax.tree.leaves, jit_once(run)(*arguments))
    for found in others:
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_nothing_and_nothing_is_nothing():
    nothing = jnp.zeros((1, 2, 1, 3)), jnp.full((1, 2, 1), -jnp.inf)

    def run(outs, lses):
        out, lse = merge(*zip(outs, lses, strict=True))
        return (out**2 + out).sum() + jnp.where(jnp.isinf(lse), 0.0, lse).sum(), lse

    outs, lses = zip(nothing, nothing, strict=True)
    grad = jax.value_and_grad(run, (0, 1), has_aux=True)
    (total, lse), gradients = jit_once(grad)(outs, lses)
    assert total == 0
    assert jnp.isneginf(lse).all()
    assert all((x == 0).all() for x in jax.tree.leaves(gradients))


def test_dtypes_are_kept_and_sums_are_wide():
    out = jnp.full((1, 1, 1, 2), 1.0, jnp.bfloat16)
    merged, lse = merge((out, jnp.zeros((1, 1, 1))), (2 * out, jnp.zeros((1, 1, 1))))
    assert merged.dtype == jnp.bfloat16
    assert lse.dtype == jnp.float32
    assert merged.ravel().tolist() == [1.5, 1.5]
    np.testing.assert_allclose(lse, np.log(2), rtol=1e-6)


def test_what_does_not_fit_is_refused():
    out, lse = jnp.zeros((1, 2, 1, 3)), jnp.zeros((1, 2, 1))
    with pytest.raises(ValueError, match="parts must be at least one"):
        merge()
    for wrong in ((out[:, :1], lse[:, :1]), (out, lse[..., None]), (out[..., :2], lse)):
        with pytest.raises(ValueError, match="parts must have outs of one shape"):
            merge((out, lse), wrong)


def test_online_softmax_is_attention_to_the_keys_so_far(x64):
    q, k, v = (x[0, :, 0] for x in inputs(jnp.float64))

    def run(q, k, v):
        lift = lambda x: x[None, :, None]
        states = list(online_softmax(10 * q, k, v, block=4))
        expected = [
            attention(
                *map(lift, (10 * q, k, v)),
                mask=prefix(np.int32(stop)),
                impl="naive",
                return_lse=True,
            )
            for stop in (4, 8, 9)
        ]
        return [(s.out, s.lse) for s in states], expected

    found, expected = jit_once(run)(q, k, v)
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0][0, :, 0], rtol=1e-12)
        np.testing.assert_allclose(ours[1], theirs[1][0, :, 0], rtol=1e-12)


def test_online_softmax_needs_a_block():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        online_softmax(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)), 0)
