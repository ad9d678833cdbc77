"""One checkpoint without a manager: all of it, a part, elsewhere, in other dtypes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genlib import train
from genlib.train._checksum import checksums
from tests.train import toy
from tests.train.toy import assert_identical

TX = optax.adam(1e-2)


def start(seed=0, tx=TX, params=None, **settings):
    return train.init(jax.random.key(seed), params or toy.params(), tx, **settings)


def cast(values, dtype):
    narrow = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(narrow, values)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state that is nowhere 0 where another has numbers, and where it was saved."""
    state = jax.tree.map(lambda x: x, start())
    ema = jax.tree.map(lambda x: 2 * x, state.ema)
    state = state._replace(ema=ema, step=jnp.int32(7))
    path = tmp_path_factory.mktemp("saved") / "one"
    train.save(path, state, metadata={"lr": 1})
    return path, state


def test_any_tree_of_arrays(tmp_path):
    values = {
        "key": jax.random.split(jax.random.key(3), 2),
        "list": [jnp.arange(3, dtype=jnp.int8), None, {"x": jnp.array([True, False])}],
        "half": jnp.array([1.5, -0.0, jnp.inf], jnp.bfloat16),
        "tiny": jnp.array([1e-45, -1e-45, jnp.nan], jnp.float32),
        "nothing": jnp.zeros((0, 2)),
        "complex": jnp.array(1 + 2j),
        "numpy": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    train.save(tmp_path / "x", values)
    assert {x.name for x in tmp_path.iterdir()} == {"x"}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values)
    assert_identical(
        train.restore(tmp_path / "x", like), jax.tree.map(jnp.asarray, values)
    )


def test_it_is_one_step_of_a_checkpointer(saved, tmp_path):
    path, state = saved
    with train.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(3, start(1))
        checkpointer.save(7, state)
    like = start(2)
    assert_identical(train.restore(tmp_path / "run" / "7", like), state)
    assert_identical(train.restore(tmp_path / "run", like), state)
    path.rename(tmp_path / "run" / "9")
    try:
        with train.Checkpointer(tmp_path / "run") as checkpointer:
            restored = checkpointer.restore(like)
    finally:
        (tmp_path / "run" / "9").rename(path)
    assert restored.step == 9
    assert restored.metadata == {"lr": 1}
    assert_identical(restored.state, state)


def test_eight_ways_to_two_by_four_to_one_device(saved, tmp_path):
    """Every bit, and the checksums, whatever the mesh."""
    devices, (path, state) = jax.devices("cpu"), saved
    rules = [("out", PartitionSpec("fsdp", "tensor")), ("", PartitionSpec())]
    wide = train.make_mesh(1, fsdp=8, devices=devices)
    square = train.make_mesh(1, fsdp=2, tensor=2, devices=devices[:4])
    for index, mesh in enumerate((wide, square)):
        shardings = train.state_shardings(start(), mesh, rules)
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding
            ),
            start(),
            shardings,
        )
        split = train.restore(path, like)
        toy.assert_placed(split, shardings)
        assert not split.params["out"].is_fully_replicated
        assert_identical(split, state)
        path = tmp_path / str(index)
        train.save(path, split)
    assert_identical(train.restore(path, start(1)), state)
    sums = [
        json.loads((x / "meta" / "metadata").read_text())["checksums"]
        for x in (saved[0], tmp_path / "0", tmp_path / "1")
    ]
    assert sums[0] == sums[1] == sums[2]


def test_another_dtype_only_if_asked(saved, tmp_path):
    path, state = saved
    narrow = cast(state, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"params/dense/b is float32\[1,8\] in the ch"):
        train.restore(path, narrow)
    assert_identical(train.restore(path, narrow, cast=True), narrow)
    train.save(tmp_path / "narrow", narrow)
    wide = train.restore(tmp_path / "narrow", state, cast=True)
    assert_identical(wide, cast(narrow, jnp.float32))
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, narrow)
        assert_identical(checkpointer.restore(state, cast=True).state, wide)


def test_casting_is_for_floats_only(saved):
    path, state = saved
    other = state._replace(step=jnp.float32(0))
    with pytest.raises(ValueError, match=r": step is int32\[\] in .* float32\[\] here"):
        train.restore(path, other, cast=True)


def test_float64_comes_back_as_such_or_not_at_all(tmp_path):
    with jax.enable_x64(True):
        values = {"w": jnp.linspace(0.0, 1.0, 3), "n": jnp.arange(2)}
        train.save(tmp_path / "x", values)
        assert_identical(train.restore(tmp_path / "x", values), values)
    like = {"w": jnp.zeros(3), "n": jnp.arange(2)}
    for name in (None, "w"):
        with pytest.raises(ValueError, match=f"{name or 'n'} was stored as .*64: set"):
            train.restore(tmp_path / "x", like, only=name, cast=True)
    message = "w is float64 without jax_enable_x64"
    with pytest.raises(ValueError, match=message):
        train.save(tmp_path / "y", {"w": np.zeros(3)})


def test_a_part_for_fine_tuning(saved):
    """Another optimizer, a head more, a head less: what is asked for is all."""
    path, state = saved
    params = {**toy.params(), "head": jnp.full(2, 5.0)}
    del params["out"]
    like = start(4, optax.sgd(0.1, momentum=0.9), params)
    tuned = train.restore(path, like, only="^(params|ema)/dense/")
    expected = like._replace(
        params={**params, "dense": state.params["dense"]},
        ema={**params, "dense": state.ema["dense"]},
    )
    assert_identical(tuned, expected)
    several = train.restore(path, like, only=["^params/dense/w$", "^step$"])
    assert_identical(several.params["dense"]["b"], like.params["dense"]["b"])
    assert_identical(several.params["dense"]["w"], state.params["dense"]["w"])
    assert int(several.step) == 7


BAD_PARTS = {
    "params/head is absent in the checkpoint and float32[2] here": "head",
    "'nothing' is in none of": ["params", "nothing"],
    "params/out is float32[8,2] in the checkpoint and float32[8,3] here": "params/out",
}


@pytest.mark.parametrize("message", BAD_PARTS)
def test_what_cannot_be_taken_is_named(saved, message):
    params = {**toy.params(), "head": jnp.zeros(2), "out": jnp.zeros((8, 3))}
    with pytest.raises(ValueError, match="must be") as error:
        train.restore(saved[0], start(0, params=params), only=BAD_PARTS[message])
    assert message in str(error.value)


def test_the_rest_must_be_there(saved):
    like = jax.eval_shape(start)
    with pytest.raises(ValueError, match=r"like must hold arrays .*; step is Shape"):
        train.restore(saved[0], like, only="params")


def test_nothing_is_overwritten_and_nothing_is_made_up(saved, tmp_path):
    with pytest.raises(ValueError, match=r"path must not exist: .*/one does"):
        train.save(*saved)
    with pytest.raises(
        ValueError, match=r"path must hold a checkpoint; /no/where does"
    ):
        train.restore("/no/where", saved[1])
    for bad in ({"w": 1.0}, {"w": "text"}, {}, jnp.ones(3)):
        with pytest.raises(ValueError, match="state must hold"):
            train.save(tmp_path / "x", bad)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_save_leaves_is_in_nobodys_way(saved, tmp_path):
    (tmp_path / "x.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    train.save(tmp_path / "x", saved[1])
    assert_identical(train.restore(tmp_path / "x", saved[1]), saved[1])


def test_checksums_are_those_of_the_definition():
    """sum of word_i (2 i + 1) mod 2^32, on any sharding; every flipped bit shows."""
    rng = np.random.default_rng(0)
    mesh = train.make_mesh(8, devices=jax.devices("cpu"))
    arrays = {
        "f32": rng.normal(size=(8, 3, 5)).astype(np.float32),
        "i8": rng.integers(-128, 128, (16, 2)).astype(np.int8),
        "bf16": rng.normal(size=(24,)).astype(jnp.bfloat16),
    }
    words = {
        "f32": arrays["f32"].view(np.uint32),
        "i8": arrays["i8"].astype(np.int64) % 2**32,
        "bf16": arrays["bf16"].view(np.uint16),
    }
    split = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))
    expected = {}
    for name, x in words.items():
        terms = x.astype(object).ravel() * (2 * np.arange(x.size, dtype=object) + 1)
        expected[name] = int(terms.sum() % 2**32)
    assert checksums(arrays) == checksums(split) == expected
    bits = arrays["f32"].view(np.uint32)
    flipped = {}
    for bit in range(32):
        other = bits.copy()
        other[7, 1, 2] ^= np.uint32(1) << np.uint32(bit)
        flipped[str(bit)] = other.view(np.float32)
    assert expected["f32"] not in (sums := checksums(flipped)).values()
    assert len(set(sums.values())) == 32
