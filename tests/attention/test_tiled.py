"""Attention in blocks is attention, and so is its own derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import Bias, attention, causal, padding, segments, window
from genlib.attention._call import make_call
from genlib.attention._mask import pytree
from genlib.attention._tiled import forward
from genlib.attention._tiled_backward import backward

HEADS, GROUPS, FEATURES = 4, 2, 16


@functools.cache
def inputs(queries=100, keys=100, values=16):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return (
        normal(1, queries, HEADS, FEATURES),
        normal(1, keys, GROUPS, FEATURES),
        normal(1, keys, GROUPS, values),
    )


def results(args, extra=None, **options):
    """Return the output, its log-sum-exp, and gradients of something of both."""

    def loss(args, extra):
        out, lse = attention(*args, **extra, **options, return_lse=True)
        seen = jnp.where(jnp.isneginf(lse), 0.0, lse)
        weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return (out * weight).sum() + jnp.sin(seen).sum(), (out, seen)

    run = jax.grad(loss, argnums=(0, 1), has_aux=True)
    gradients, values = jit_once(run)(args, extra or {})
    return values, gradients


def check(args, extra=None, block=(32, 32), **options):
    want = results(args, extra, impl="naive", **options)
    got = results(args, extra, impl="tiled", block=block, **options)
    for one, other in zip(*map(jax.tree.leaves, (got[0], want[0])), strict=True):
        np.testing.assert_allclose(one, other, 0, 1e-6)
    for one, other in zip(*map(jax.tree.leaves, (got[1], want[1])), strict=True):
        np.testing.assert_allclose(one, other, 3e-6, 3e-6)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((100, 100), {"mask": causal()}),
        ((100, 100), {"mask": causal() & window(17)}),
        ((100, 100), {"softcap": 5.0}),
        ((7, 100), {"mask": causal()}),
        ((100, 60), {"mask": causal()}),
        ((100, 100, 24), {"mask": causal()}),
    ],
    ids=["causal", "window", "softcap", "few", "many", "values"],
)
def test_equals_all_scores_at_once(shape, options):
    check(inputs(*shape), **options)


def test_the_result_does_not_depend_on_blocks():
    blocks = (16, 16), (32, 32), (128, 128), (32, 128), (7, 100)
    run = lambda block: attention(
        *inputs(), mask=causal(), impl="tiled", block=block, return_lse=True
    )
    first, *others = jit_once(lambda: [run(block) for block in blocks])()
    for other in others:
        for one, two in zip(first, other, strict=True):
            np.testing.assert_allclose(one, two, 0, 1e-6)


def test_the_order_of_keys_does_not_matter():
    q, k, v = inputs()
    order = np.random.default_rng(1).permutation(100)
    run = lambda k, v: attention(q, k, v, impl="tiled", block=(32, 32))
    one, other = jit_once(lambda: (run(k, v), run(k[:, order], v[:, order])))()
    np.testing.assert_allclose(one, other, 0, 1e-6)


def test_bfloat16_is_summed_in_float32():
    rng = np.random.default_rng(0)
    x = [jnp.asarray(rng.standard_normal((1, 2048, 1, 64)), "bfloat16") for _ in "qkv"]
    wide = [leaf.astype(jnp.float32) for leaf in x]
    run = lambda x: attention(*x, impl="tiled")
    got, want = jit_once(lambda: (run(x), run(wide)))()
    assert got.dtype == jnp.bfloat16
    error = np.sqrt(np.mean((np.asarray(got, np.float32) - want) ** 2))
    assert error <= 2.4e-3 * np.sqrt(np.mean(np.square(want)))


def test_values_and_second_derivatives_in_float64(x64):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 4, n, 3))) for n in (2, 1, 1))
    bias, sink = rng.standard_normal((1, 2, 4, 4)), rng.standard_normal(2)
    given = (q, k, v, jnp.asarray(bias), jnp.asarray(sink), 0.6, 2.0)
    wave = lambda x: jnp.cos(jnp.arange(x.size, dtype=float)).reshape(x.shape)

    def loss(given, impl):
        q, k, v, *rest = given
        names = ("bias", "sink", "scale", "softcap")
        options = dict(zip(names, rest, strict=True), mask=causal(), return_lse=True)
        block = (2, 4) if impl == "tiled" else None
        out, lse = attention(q, k, v, impl=impl, block=block, **options)
        return jnp.sin(out).sum() + jnp.cos(lse).sum()

    def slope(given, impl):
        value, gradients = jax.value_and_grad(loss)(given, impl)
        return sum(jnp.vdot(wave(x), x) for x in jax.tree.leaves(gradients)) + value

    both = lambda x: [jax.value_and_grad(slope)(x, i) for i in ("naive", "tiled")]
    for one, other in zip(*map(jax.tree.leaves, jit_once(both)(given)), strict=True):
        np.testing.assert_allclose(one, other, 1e-12, 1e-12)


def test_softcap_bounds_scores_and_its_gradient_is_that_of_tanh():
    q, k, v = (
        jnp.full((1, 1, 1, 1), 3.0),
        jnp.ones((1, 1, 1, 1)),
        jnp.ones((1, 1, 1, 1)),
    )
    lse = lambda q, c: attention(
        q, k, v, softcap=c, scale=1.0, impl="tiled", return_lse=True
    )[1].sum()
    run = jit_once(lambda q: (*jax.value_and_grad(lse)(q, 2.0), lse(q, 1e6)))
    value, slope, plain = run(q)
    np.testing.assert_allclose(value, 2 * np.tanh(1.5), 1e-6)
    np.testing.assert_allclose(slope, [[[[1 - np.tanh(1.5) ** 2]]]], 1e-6)
    np.testing.assert_allclose(plain, 3.0, 1e-5)


@pytree
class Slopes(Bias):
    slopes: jax.Array
    name: np.ndarray  # of integers, which has no gradient

    def __call__(self, q, kv):
        return -self.slopes[None, :, None, None] * jnp.abs(q - kv)


def test_gradients_of_biases():
    args = inputs(40, 50)
    rng = np.random.default_rng(2)
    table = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    extra = {"bias": table(1, HEADS, 40, 50), "scale": jnp.float32(0.2)}
    check(args, extra, (16, 32), mask=causal())
    slopes = Slopes(jnp.linspace(0.1, 0.4, HEADS), np.arange(3))

    def loss(slopes, impl):
        bias = Slopes(slopes, np.arange(3))
        return attention(*args, bias=bias, mask=causal(), impl=impl)[..., 0].sum()

    run = jit_once(lambda x: [jax.grad(loss)(x, impl) for impl in ("naive", "tiled")])
    np.testing.assert_allclose(*run(slopes.slopes), 1e-4, 1e-5)


def test_lengths_of_nothing():
    def run(q, k):
        found = lambda *x: attention(*x, mask=causal(), impl="tiled", return_lse=True)
        (out, lse), pull = jax.vjp(found, q, k, k)
        return out, lse, pull((out, jnp.zeros_like(lse)))

    for lengths in ((0, 5), (5, 0)):
        q, k = (jnp.ones((2, n, 2, 4)) for n in lengths)
        out, lse, slopes = jit_once(run)(q, k)
        assert out.shape == q.shape
        np.testing.assert_array_equal(out, 0)
        np.testing.assert_array_equal(lse, -np.inf)
        for leaf, like in zip(slopes, (q, k, k), strict=True):
            np.testing.assert_array_equal(leaf, np.zeros(like.shape))


def test_masks_known_only_at_run_time():
    q, k, v = inputs(96, 96)
    documents = jnp.asarray(np.repeat([[1, 1, 2, 2, 3, 0]], 16, 1))

    def run(ids, valid, impl):
        mask = causal() & segments(ids) & padding(valid)
        loss = lambda *x: jnp.sin(attention(*x, mask=mask, impl=impl, **block)).sum()
        block = {"block": (16, 16)} if impl == "tiled" else {}
        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    valid = jnp.arange(96)[None] != 40
    once = jit_once(lambda *x: [run(*x, impl) for impl in ("naive", "tiled")])
    for one, other in zip(*once(documents, valid), strict=True):
        np.testing.assert_allclose(one, other, 0, 3e-6)


def test_two_halves_of_the_keys_share_one_softmax():
    q, k, v = inputs(32, 64)

    def call(part):
        options = (None, None, 3.0, None)
        sides = jnp.arange(32, 64), jnp.arange(64)[part]
        return make_call(q, k[:, part], v[:, part], causal(), *options, *sides)

    @jit_once
    def run():
        loss = lambda q, k, v: attention(q, k, v, mask=causal(), softcap=3.0)
        out, pull = jax.vjp(loss, q, k, v)
        whole = forward(call(slice(None)))
        given = *whole[:2], jnp.cos(out), jnp.zeros_like(whole[1])
        halves = [backward(call(p), (16, 16), *given) for p in HALVES]
        return pull(jnp.cos(out)), halves

    want, (first, second) = run()
    np.testing.assert_allclose(first.q + second.q, want[0], 0, 3e-6)
    np.testing.assert_allclose(
        jnp.concatenate([first.k, second.k], 1), want[1], 0, 3e-6
    )
    np.testing.assert_allclose(
        jnp.concatenate([first.v, second.v], 1), want[2], 0, 3e-6
    )


HALVES = slice(0, 32), slice(32, None)


def test_memory_is_linear_in_length():
    """Of programs as the compiler of the suite makes them, which are never run."""

    def megabytes(length):
        x = jax.ShapeDtypeStruct((1, length, 8, 64), jnp.float32)
        run = lambda q, k, v: attention(q, k, v, mask=causal(), impl="tiled")
        both = lambda q, k, v, d: jax.vjp(run, q, k, v)[1](d)
        analysis = jax.jit(both).lower(x, x, x, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes / 1e6

    long = megabytes(8192)
    assert long <= 2.2 * megabytes(4096)
    assert long <= 6176 / 20


def test_forward_mode_is_refused_clearly():
    q, k, v = inputs(8, 8)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: attention(q, k, v, impl="tiled"), (q,), (q,))


def test_devices_that_share_heads_or_rows():
    mesh = jax.make_mesh((2, 2), ("data", "heads"), axis_types=(AUTO, AUTO))
    sharding = jax.NamedSharding(mesh, jax.P("data", None, "heads"))
    x = [np.concatenate([leaf, 2 * leaf]) for leaf in inputs(64, 64)]
    loss = lambda *x: jnp.sin(
        attention(*x, mask=causal(), impl="tiled", block=(16, 16))
    ).sum()
    run = jit_once(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    placed = jax.device_put(x, sharding)
    assert "all-gather" not in run.lower(*placed).compile().as_text()
    for one, other in zip(*map(jax.tree.leaves, (run(*placed), run(*x))), strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 3e-6)


AUTO = jax.sharding.AxisType.Auto
