"""Attention on a mesh, under `jit`, equals attention on one device."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from laws.registry import jit_once

from genlib import train
from genlib.attention import (
    alibi,
    attention,
    causal,
    dense,
    padding,
    predicate,
    prefix,
    segments,
    sequence_attention,
    window,
)
from genlib.attention._shards import by_example

BATCH, LENGTH, HEADS, GROUPS, FEATURES = 4, 8, 4, 2, 4
IDS = np.array([[1, 1, 1, 2, 2, 2, 2, 0]] * BATCH)
ROWS = PartitionSpec(("data", "fsdp"), "sequence", "tensor")
HEADS_ONLY = PartitionSpec(("data", "fsdp"), None, "tensor")


@functools.cache
def inputs() -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    counts = HEADS, GROUPS, GROUPS
    return [
        jax.random.normal(key, (BATCH, LENGTH, count, FEATURES))
        for key, count in zip(keys, counts, strict=True)
    ]


def gradients(attend: Any, **options: Any) -> Any:
    """Return a program for out, lse, and the gradients of a sum of both."""

    def loss(floats: Any, lengths: Any) -> Any:
        q, k, v, bias, sink = floats
        mask = causal() & window(5) & segments(IDS) & prefix(lengths)
        settings = {"mask": mask, "bias": bias, "sink": sink, "softcap": 3.0}
        found = attend(q, k, v, **settings, return_lse=True, **options)
        return sum(jnp.sin(x).sum() for x in found), found

    return jit_once(jax.grad(loss, has_aux=True))


@functools.cache
def expected() -> Any:
    return gradients(attention, impl="naive")(*arguments())


def arguments(mesh: Any = None, spec: Any = None) -> Any:
    place = lambda x: (
        x if mesh is None else jax.device_put(x, NamedSharding(mesh, spec))
    )
    rest = [alibi(HEADS), jnp.linspace(-1.0, 1.0, HEADS)]
    return [*map(place, inputs()), *rest], jnp.array([8, 6, 8, 3])


def check(program: Any, mesh: Any, spec: PartitionSpec) -> str:
    """Compare with one device, and return the compiled program as text."""
    with jax.set_mesh(mesh):
        compiled = program.lower(*arguments(mesh, spec)).compile()
        found = compiled(*arguments(mesh, spec))
    pairs = zip(*map(jax.tree.leaves, (found, expected())), strict=True)
    for result, like in pairs:
        np.testing.assert_allclose(result, like, rtol=0, atol=2e-6)
    return compiled.as_text()


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_sequence_on_a_mesh(method: str) -> None:
    """Examples, positions and heads are cut at once; rings gather nothing."""
    text = check(
        gradients(sequence_attention, method=method),
        train.make_mesh(tensor=2, sequence=2),
        ROWS,
    )
    assert ("all-gather" in text) == (method == "ulysses")
    # What Ulysses gathers are the ids of segments, in integers.
    gathered = re.findall(r"= (\w+)\[[^=]*all-gather\(", text)
    assert set(gathered) <= {"s32"}
    moved = "collective-permute" if method == "ring" else "all-to-all"
    assert moved in text


def test_heads_on_a_mesh() -> None:
    """The compiler splits tiles by heads and examples without gathering any."""
    text = check(
        gradients(attention, impl="tiled"),
        train.make_mesh(tensor=2, fsdp=2),
        HEADS_ONLY,
    )
    assert "all-gather" not in text


def test_without_a_mesh() -> None:
    """Where nothing is cut it is `attention`."""
    plain = jax.make_jaxpr(functools.partial(attention, mask=causal()))
    cut = jax.make_jaxpr(functools.partial(sequence_attention, mask=causal()))
    assert str(cut(*inputs())) == str(plain(*inputs()))
    with jax.set_mesh(train.make_mesh()):
        assert str(cut(*inputs())) == str(plain(*inputs()))


def test_inside_shard_map() -> None:
    """Inside `shard_map` the arrays are those of a device, and keys travel."""
    mesh = train.make_mesh(data=4, sequence=2)
    part = PartitionSpec(None, "sequence")
    program = jax.shard_map(
        sequence_attention, mesh=mesh, in_specs=(part,) * 3, out_specs=part
    )
    text = str(jax.make_jaxpr(program)(*inputs()))
    assert text.count("shard_map[") == 1
    assert "ppermute" in text


def test_which_leaves_belong_to_examples() -> None:
    """One learns it from shapes, also where heads are as many as examples."""
    lengths = LENGTH, LENGTH
    rows = lambda tree: by_example(tree, lengths, BATCH, 2)
    counts = jnp.full(BATCH, 3)
    assert rows(None) == []
    assert rows(causal() & window(3)) == [False]
    assert rows(prefix(counts) | segments(IDS)) == [True] * 3
    assert rows(segments(IDS[:1]) & window(3)) == [False] * 3
    assert rows(alibi(BATCH)) == [False]
    assert rows(dense(np.ones((1, BATCH, LENGTH, LENGTH), bool))) == [False]
    assert rows(padding(IDS > 0)) == [True]
    # A closure cannot be cut: the compiler is left to split the batch.
    hidden = predicate(lambda q, k: k < counts[:, None, None, None])
    assert rows(hidden) is None


def test_errors() -> None:
    q, k, v = inputs()
    with pytest.raises(ValueError, match=r"method must be one of .*, got 'star'"):
        sequence_attention(q, k, v, method="star")  # pyright: ignore
    with jax.set_mesh(train.make_mesh(sequence=4)):
        with pytest.raises(ValueError, match=r"axis must be one of .*, got 'ring'"):
            sequence_attention(q, k, v, axis="ring")
        with pytest.raises(ValueError, match="length of q must be a multiple of the 4"):
            sequence_attention(q[:, :6], k, v)
        with pytest.raises(ValueError, match=r"length of k must be .*, got 6"):
            sequence_attention(q, k[:, :6], v[:, :6])
