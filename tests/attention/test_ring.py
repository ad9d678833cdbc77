"""A sequence on several devices gives what it gives on one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from laws.registry import jit_once

from genlib.attention import (
    attention,
    causal,
    padding,
    ring_attention,
    segments,
    unzigzag,
    window,
    zigzag,
    zigzag_positions,
)

BATCH, LENGTH, HEADS, GROUPS, FEATURES, VALUES = 2, 24, 4, 2, 8, 6
CUT = PartitionSpec(None, "ring")
ROWS = PartitionSpec(None, None, "ring")
WHOLE = PartitionSpec()


def ring(count: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:count]), ("ring",))


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        "q": normal(BATCH, LENGTH, HEADS, FEATURES),
        "k": normal(BATCH, LENGTH, GROUPS, FEATURES),
        "v": normal(BATCH, LENGTH, GROUPS, VALUES),
    }


def gradients(function: Any) -> Any:
    """Return out and lse, and the gradients of a sum of both that weighs all."""

    def loss(arrays: Any, *rest: Any) -> Any:
        out, lse = function(arrays, *rest)
        weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
        finite = jnp.where(jnp.isfinite(lse), lse, 0.0)
        whole = jnp.where(jnp.isfinite(out), out, 0.0)
        return (whole * weights).sum() + (finite * weights[..., 0]).sum(), (out, lse)

    return jax.grad(loss, has_aux=True)


def check(found: Any, expected: Any, atol: float) -> None:
    """Outputs agree to `atol`, gradients to twice as much."""
    for result, like in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(result, like, rtol=0, atol=atol)
    for name, like in expected[0].items():
        np.testing.assert_allclose(
            found[0][name], like, rtol=0, atol=2 * atol, err_msg=name
        )


@pytest.mark.usefixtures("x64")
def test_ring_equals_full() -> None:
    """Packed, causal, grouped, biased, capped and sunk: in 4 parts as in one."""
    ids = np.repeat([[1, 1, 2, 0], [1, 2, 2, 3]], 6, axis=1)
    table = np.cos(np.arange(HEADS * LENGTH**2)).reshape(1, HEADS, LENGTH, LENGTH)
    arrays = {name: x.astype(float) for name, x in inputs().items()}
    arrays |= {"bias": table, "sink": np.linspace(-1, 1, HEADS)}
    arrays |= {"scale": np.array(0.3), "softcap": np.array(3.0)}

    def call(method: Any, arrays: Any, ids: Any) -> Any:
        mask = causal() & segments(ids)
        return method(**arrays, mask=mask, return_lse=True)

    specs = dict.fromkeys("qkv", CUT) | {"bias": ROWS}
    specs |= dict.fromkeys(("sink", "scale", "softcap"), WHOLE)
    method = functools.partial(ring_attention, axis_name="ring", block=(4, 4))
    cut = jax.shard_map(
        functools.partial(call, method),
        mesh=ring(4),
        in_specs=(specs, CUT),
        out_specs=(CUT, CUT),
    )
    program = jit_once(gradients(cut)).lower(arrays, ids).compile()
    text = str(program.as_text())
    assert "collective-permute" in text
    assert "all-gather" not in text
    method = functools.partial(attention, impl="naive")
    full = jit_once(gradients(functools.partial(call, method)))
    found = program(arrays, ids)
    check(found, full(arrays, ids), 1e-12)
    padded = np.asarray(found[1][0])[ids == 0]
    assert padded.shape == (6, HEADS, VALUES)
    assert (padded == 0).all()


def test_zigzag_ring_of_three() -> None:
    """Any order of positions, any number of devices, and NaN where nobody looks."""
    arrays = dict(inputs())
    valid = np.ones((BATCH, LENGTH), bool)
    valid[1, 10:16] = False
    for name in "kv":
        arrays[name] = np.where(valid[..., None, None], arrays[name], np.nan)
        arrays[name][0, -1] = np.inf  # only the last query sees it

    def call(method: Any, arrays: Any, positions: Any, valid: Any) -> Any:
        mask = causal() & window(9) & padding(valid)
        sides = {"q_positions": positions, "kv_positions": positions}
        return method(**arrays, **sides, mask=mask, return_lse=True)

    def spread(arrays: Any) -> Any:
        order = functools.partial(zigzag, shards=3)
        cut = jax.shard_map(
            functools.partial(
                call, functools.partial(ring_attention, axis_name="ring")
            ),
            mesh=ring(3),
            in_specs=(CUT, PartitionSpec("ring"), CUT),
            out_specs=(CUT, CUT),
            check_vma=False,
        )
        positions = zigzag_positions(LENGTH, 3)
        found = cut(jax.tree.map(order, arrays), positions, order(valid))
        return jax.tree.map(functools.partial(unzigzag, shards=3), found)

    def full(arrays: Any) -> Any:
        method = functools.partial(attention, impl="naive")
        return call(method, arrays, np.arange(LENGTH), valid)

    found = jit_once(gradients(spread))(arrays)
    check(found, jit_once(gradients(full))(arrays), 1e-6)
    assert np.isnan(found[1][0]).all((2, 3)).sum() == 1
    assert jax.tree.all(jax.tree.map(lambda x: jnp.isfinite(x).all(), found[0]))


def test_last_queries_under_pmap() -> None:
    """A few queries over many keys, in bfloat16, each on all devices of `pmap`."""
    q, k, v = (jnp.asarray(inputs()[name], jnp.bfloat16) for name in "qkv")
    q = q[:, -4:]
    split = lambda x: jnp.moveaxis(x.reshape(BATCH, 2, -1, *x.shape[2:]), 1, 0)
    options = {"mask": causal(), "sink": jnp.zeros(HEADS)}
    local = functools.partial(ring_attention, axis_name="ring", **options)
    local = jax.pmap(local, axis_name="ring", devices=jax.devices()[:2])
    found = jnp.moveaxis(local(*map(split, (q, k, v))), 0, 1).reshape(*q.shape[:3], -1)
    assert found.dtype == jnp.bfloat16
    expected = jit_once(functools.partial(attention, impl="naive", **options))(q, k, v)
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=8e-3
    )


def test_memory_is_that_of_a_part() -> None:
    """Twice the length on twice the devices takes no more memory on each of them."""

    def temporary(count: int) -> int:
        local = functools.partial(ring_attention, axis_name="ring", block=(64, 64))
        cut = jax.shard_map(
            local, mesh=ring(count), in_specs=(CUT, CUT, CUT), out_specs=CUT
        )
        shape = jax.ShapeDtypeStruct((1, 256 * count, 1, 32), jnp.float32)
        loss = lambda *arrays: (cut(*arrays) ** 2).sum()
        program = jit_once(jax.grad(loss, (0, 1, 2))).lower(*[shape] * 3).compile()
        memory: Any = program.memory_analysis()
        return memory.temp_size_in_bytes

    assert temporary(8) <= temporary(4)


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_zigzag_is_a_permutation(shards: int) -> None:
    length = 4 * shards
    order = zigzag_positions(length, shards).reshape(shards, 2, 2)
    for r, (early, late) in enumerate(order):
        assert early.tolist() == [2 * r, 2 * r + 1]
        assert late.tolist() == [length - 2 * r - 2, length - 2 * r - 1]
    # The pairs that a causal mask leaves are equally many for all devices.
    seen = (order + 1).reshape(shards, -1).sum(1)
    assert (seen == seen[0]).all()
    x = jnp.arange(3 * length).reshape(3, length)
    np.testing.assert_array_equal(unzigzag(zigzag(x, shards), shards), x)
    np.testing.assert_array_equal(zigzag(x.T, shards, 0), zigzag(x, shards).T)


def test_zigzag_errors() -> None:
    with pytest.raises(ValueError, match="multiple of 2 shards, got 6 and 2 shards"):
        zigzag(jnp.zeros((1, 6)), 2)
    with pytest.raises(ValueError, match="multiple of 2 shards, got 4 and 0 shards"):
        zigzag_positions(4, 0)


def test_errors() -> None:
    """What fits neither the keys of a device nor those of all is refused."""
    q, k, v = (jnp.asarray(inputs()[name]) for name in "qkv")

    def run(**options: Any) -> Any:
        local = functools.partial(ring_attention, axis_name="ring", **options)
        cut = jax.shard_map(local, mesh=ring(2), in_specs=(CUT,) * 3, out_specs=CUT)
        return jax.eval_shape(cut, q, k, v)

    half = LENGTH // 2
    table = np.ones((1, 1, half, half), bool)
    with pytest.raises(ValueError, match="mask must hold the 24 keys of all devices, "):
        run(mask=table)
    ids = np.ones((1, 7), int)
    with pytest.raises(ValueError, match="24 keys of all devices, or the 12 of this"):
        run(mask=segments(np.ones((1, half), int), ids))
    with pytest.raises(ValueError, match="mask must fit 12 rows of q"):
        run(mask=np.ones((1, 1, LENGTH, LENGTH), bool))
    with pytest.raises(ValueError, match="bias must be an array"):
        run(bias=lambda q, k: q - k)
    with pytest.raises(ValueError, match="make one by `predicate`"):
        run(mask=lambda q, k: q > k)
    with pytest.raises(ValueError, match="both q_positions and kv_positions"):
        run(q_positions=np.arange(half))
    q, k, v = q[:, :2], k[:, :2], v[:, :2]
    with pytest.raises(ValueError, match="at least 2 queries and 2 keys, got 1 and 1"):
        run(bias=jnp.zeros((1, 1, 1, 2)))
