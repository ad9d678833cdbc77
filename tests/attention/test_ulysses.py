"""Heads for positions: all of a sequence, some heads on each device, as on one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from laws.registry import jit_once

from genlib.attention import (
    alibi,
    attention,
    causal,
    dense,
    prefix,
    segments,
    ulysses_attention,
)

CUT = PartitionSpec(None, "heads")
WHOLE = PartitionSpec()
ROWS = PartitionSpec(None, None, "heads")
COUNT, LENGTH = 4, 12


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:COUNT]), ("heads",))


def inputs(heads: int, groups: int) -> list[Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (heads, 4), (groups, 4), (groups, 3)
    return [
        jax.random.normal(key, (2, LENGTH, *size))
        for key, size in zip(keys, sizes, strict=True)
    ]


@pytest.mark.parametrize("groups", [2, 8])
def test_ulysses_equals_full(groups: int) -> None:
    """More key heads than devices, or fewer, and tables and functions of heads."""
    heads, rng = 8, np.random.default_rng(0)
    q, k, v = inputs(heads, groups)
    ids = np.array([[1] * 5 + [2] * 7, [1] * 10 + [0] * 2])
    table = rng.random((2, groups, LENGTH, LENGTH)) < 0.8
    columns = rng.random((1, groups, 1, LENGTH)) < 0.8

    def call(method: Any, floats: Any, ids: Any, table: Any, columns: Any) -> Any:
        q, k, v, bias, sink = floats
        mask = causal() & segments(ids) & prefix(jnp.int32(11))
        mask &= dense(table) | ~dense(columns)
        sides = {}
        if groups == 2:
            sides = dict.fromkeys(("q_positions", "kv_positions"), ids)
        options = {"mask": mask, "bias": bias, "sink": sink, "return_lse": True}
        return method(q, k, v, **options, **sides)

    def gradients(function: Any) -> Any:
        def loss(floats: Any, *rest: Any) -> Any:
            found = function(floats, *rest)
            return sum(jnp.sin(x).sum() for x in found), found

        return jit_once(jax.grad(loss, has_aux=True))(
            [q, k, v, alibi(heads), jnp.linspace(-1.0, 1.0, heads)],
            ids,
            table,
            columns,
        )

    local = functools.partial(ulysses_attention, axis_name="heads", impl="naive")
    cut = jax.shard_map(
        functools.partial(call, local),
        mesh=mesh(),
        in_specs=([CUT] * 3 + [WHOLE] * 2, CUT, ROWS, WHOLE),
        out_specs=(CUT, CUT),
    )
    whole = functools.partial(call, functools.partial(attention, impl="naive"))
    found, expected = gradients(cut), gradients(whole)
    for result, like in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(result, like, rtol=0, atol=1e-6)
    for result, like in zip(
        *map(jax.tree.leaves, (found[0], expected[0])), strict=True
    ):
        np.testing.assert_allclose(result, like, rtol=0, atol=3e-6)


def test_errors() -> None:
    """Heads that devices cannot share are refused, and tables without all columns."""

    def run(heads: int, groups: int, **options: Any) -> Any:
        local = functools.partial(ulysses_attention, axis_name="heads", **options)
        cut = jax.shard_map(local, mesh=mesh(), in_specs=(CUT,) * 3, out_specs=CUT)
        return jax.eval_shape(cut, *inputs(heads, groups))

    with pytest.raises(
        ValueError, match="the 6 heads of q must be a multiple of the 4"
    ):
        run(6, 2)
    with pytest.raises(ValueError, match="and the 6 of k a multiple or a divisor"):
        run(12, 6)
    with pytest.raises(ValueError, match="mask must hold the 12 keys of all devices"):
        run(4, 4, mask=np.ones((1, 1, 3, 3), bool))
    with pytest.raises(ValueError, match="softcap must be positive"):
        run(4, 4, softcap=-1.0)
