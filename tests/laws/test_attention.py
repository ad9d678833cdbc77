"""What every mask, option and implementation of attention obeys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.attention import (
    MASKS,
    Inputs,
    N,
    S,
    T,
    inputs,
    oracle,
    positions,
    run,
    table,
)
from laws.registry import jit_once

from genlib import attention as attn
from genlib.attention._positions import blocks, pad, take

IMPLS = {"naive": {"impl": "naive"}, "tiled": {"impl": "tiled", "block": (16, 16)}}
OPTIONS = {
    "bias": {"bias": True},
    "sink": {"sink": True},
    "softcap": {"softcap": 1.5},
    "all": {"bias": True, "sink": True, "softcap": 2.0, "scale": 0.7},
}
RUNS = [(name, {}) for name in MASKS]
RUNS += [(name, kw) for name in ("none", "dense", "causal") for kw in OPTIONS.values()]


def compare(got, want, tolerance):
    for name, one, other in zip(("out", "lse"), got[:2], want[:2], strict=True):
        np.testing.assert_allclose(one, other, tolerance, tolerance, err_msg=name)
    assert got[2].keys() == want[2].keys()
    for name, other in want[2].items():
        one, scale = got[2][name], max(1.0, np.abs(other).max())
        np.testing.assert_allclose(one, other, 0, tolerance * scale, err_msg=name)


def cast(x, dtype):
    return Inputs(*(jnp.asarray(leaf, dtype) for leaf in x))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("name", "options"), RUNS, ids=["-".join([n, *kw]) for n, kw in RUNS]
)
def test_equals_its_formula_with_its_gradients(name, options, impl):
    mask = MASKS[name]()
    program = jit_once(lambda x: run(x, mask, **options, **IMPLS[impl]))
    x, seen = inputs(), table(mask)
    got = program(cast(x, jnp.float32))
    compare(got, oracle(x, seen, **options), 3e-6)
    empty = ~np.moveaxis(seen.any(-1), 1, 2)
    assert (np.asarray(got[0])[empty] == 0).all()
    assert (np.asarray(got[2]["q"])[empty] == 0).all()
    _garbage_stays_where_it_is(program, x, seen, got)


def _garbage_stays_where_it_is(program, x, seen, clean):
    """Put NaN into a key, an infinity into a value, and NaN into a query."""
    key, value, query = 5, 27, 2
    sees = seen[..., [key, value]].any(-1)
    blind = ~seen.any(-1)
    sees[:, :, query] |= ~blind[:, :, query]
    sees = np.moveaxis(sees, 1, 2)
    d_out = np.where(sees[..., None], 0, x.d_out)
    quiet = x._replace(d_out=d_out, d_lse=np.where(sees, 0, x.d_lse))
    spoilt = quiet._replace(q=x.q.copy(), k=x.k.copy(), v=x.v.copy())
    spoilt.k[:, key], spoilt.v[:, value, :, 0] = np.nan, np.inf
    spoilt.q[:, query, :, 1] = np.nan
    out, lse, gradients = program(cast(spoilt, jnp.float32))
    assert np.isnan(np.asarray(out)[sees]).all() or (seen.all() and sees.all())
    np.testing.assert_array_equal(out[~sees], clean[0][~sees])
    np.testing.assert_array_equal(lse[~sees], clean[1][~sees])
    if seen.all():
        return
    want = program(cast(quiet, jnp.float32))[2]
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, want[name], 1e-5, 1e-6, err_msg=name)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["causal-segments", "dense"])
def test_is_float64_end_to_end(x64, name, impl):
    mask, options = MASKS[name](), OPTIONS["all"]
    x = inputs()
    got = jit_once(lambda x: run(x, mask, **options, **IMPLS[impl]))(x)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float64)}
    compare(got, oracle(x, table(mask), **options), 1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("impl", IMPLS)
def test_narrow_inputs_are_summed_in_float32(impl, dtype):
    mask = MASKS["causal-window"]()
    x = cast(inputs(), dtype)
    got = jit_once(lambda x: run(x, mask, sink=True, **IMPLS[impl]))(x)
    assert (got[0].dtype, got[1].dtype) == (dtype, jnp.float32)
    assert {leaf.dtype for leaf in got[2].values()} == {np.dtype(dtype)}
    want = oracle(x, table(mask), sink=True)
    compare(got, want, 2e-2 if dtype == jnp.bfloat16 else 3e-3)
    # The log-sum-exp is not rounded to the dtype of the inputs.
    np.testing.assert_allclose(got[1], want[1], 1e-5, 1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_vmapped_and_alone(impl):
    call = partial(attn.attention, mask=attn.causal(), **IMPLS[impl])

    @jit_once
    def program(q, k, v):
        rows = jax.vmap(lambda *row: call(*(leaf[None] for leaf in row))[0])
        return call(q, k, v), rows(q, k, v), call(q[:1, -3:], k[:1], v[:1])

    x = cast(inputs(), jnp.float32)
    whole, rows, alone = program(x.q, x.k, x.v)
    np.testing.assert_allclose(rows, whole, 1e-6, 1e-6)
    np.testing.assert_allclose(alone, whole[:1, -3:], 1e-6, 1e-6)


def _bounds(mask, q, kv, sizes):
    sides = (q[None], sizes[0], True), (kv[None], sizes[1], False)
    q, kv = (blocks(side, size, queries=first) for side, size, first in sides)
    return mask.bounds(q, kv), (q.lo.shape[0], kv.lo.shape[1])


@pytest.mark.parametrize("sizes", [(1, 1), (4, 8), (16, 16), (7, 64)])
@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
def test_bounds_hold_in_every_block(name, sizes):
    bounds, shape = _bounds(MASKS[name](), *positions(), sizes)
    assert all(isinstance(x, np.ndarray) for x in bounds)
    some, every = (np.broadcast_to(x, shape) for x in bounds)
    seen, blocked = table(MASKS[name]()), np.zeros((*shape, 2), bool)
    for i, j in np.ndindex(shape):
        rows, columns = (
            slice(n * at, n * (at + 1)) for at, n in zip((i, j), sizes, strict=True)
        )
        block = seen[:, :, rows, columns]
        blocked[i, j] = block.any(), block.all()
    assert (some >= blocked[..., 0]).all()
    assert (every <= blocked[..., 1]).all()
    if name in ("causal", "window", "prefix", "block-causal", "dense", "dense-blocks"):
        np.testing.assert_array_equal(some, blocked[..., 0])
        np.testing.assert_array_equal(every, blocked[..., 1])


def test_bounds_are_the_same_while_traced():
    masks = {name: MASKS[name]() for name in MASKS if name != "none"}

    def find(masks, *sides):
        return {name: _bounds(mask, *sides, (7, 8))[0] for name, mask in masks.items()}

    traced = jit_once(find)(masks, *positions())
    for name, known in find(masks, *positions()).items():
        for one, other in zip(traced[name], known, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
def test_a_block_is_a_block_of_the_whole(name):
    mask, (q, kv) = MASKS[name](), positions()
    part = take(pad(mask, (8, 8)), 21, 37, (5, 6))
    seen = attn.visible(part, np.append(q, q[:8])[21:26], np.append(kv, kv[:8])[37:43])
    seen = np.broadcast_to(seen, (*seen.shape[:2], 5, 6))
    want = table(mask)[: len(seen), :: 1 if seen.shape[1] == N else N // 2]
    want = want[:, : seen.shape[1], 21:, 37:]
    np.testing.assert_array_equal(seen[:, :, : T - 21, : S - 37], want)


@given(
    st.lists(st.integers(-5, 30), min_size=1, max_size=12),
    st.lists(st.integers(-5, 30), min_size=1, max_size=12),
    st.integers(1, 9),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_bounds_hold_for_any_positions(q, kv, setting, sizes):
    masks = [
        attn.causal(),
        attn.window(setting),
        attn.prefix(setting),
        attn.block_causal(setting),
    ]
    masks += [masks[0] & ~masks[1], ~masks[2] | masks[3], ~(masks[1] & masks[3])]
    q, kv = np.array(q), np.array(kv)
    for mask in masks:
        bounds, shape = _bounds(mask, q, kv, sizes)
        some, every = (np.broadcast_to(x, shape) for x in bounds)
        seen = np.asarray(mask(q[None, None, :, None], kv[None, None, None, :]))[0, 0]
        for i, j in np.ndindex(shape):
            rows, columns = (
                slice(n * a, n * a + n) for a, n in zip((i, j), sizes, strict=True)
            )
            block = seen[rows, columns]
            assert some[i, j] or not block.any()
            assert block.all() or not every[i, j]
