import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genlib import train
from tests.train.toy import assert_identical

safetensors = pytest.importorskip("safetensors")

PARAMS = {
    "blocks": {"mlp": {"kernel": np.arange(24, dtype=np.float32).reshape(8, 3).T}},
    "half": np.array([1.5, -0.0, np.inf], jnp.bfloat16),
    "layers": [np.int32(3), np.ones((0, 2), np.float16), np.array([True, False])],
}


@pytest.fixture
def params():
    return jax.tree.map(jnp.asarray, PARAMS)


@pytest.fixture
def file(params, tmp_path):
    path = tmp_path / "params.safetensors"
    train.export_safetensors(path, params, metadata={"step": "7"})
    return path


def test_round_trip_is_exact(params, file):
    assert_identical(train.import_safetensors(file, params), params)
    shapes = jax.eval_shape(lambda: params)
    assert_identical(train.import_safetensors(file, shapes), params)
    assert {x.name for x in file.parent.iterdir()} == {"params.safetensors"}


def test_others_find_the_names_the_bits_and_the_metadata(file):
    with safetensors.safe_open(file, "numpy") as found:
        assert found.metadata() == {"step": "7"}
        kernel = found.get_tensor("blocks.mlp.kernel")
        names = set(found.keys())
    np.testing.assert_array_equal(kernel, PARAMS["blocks"]["mlp"]["kernel"])
    assert names == {"blocks.mlp.kernel", "half", "layers.0", "layers.1", "layers.2"}


def test_sharded_in_and_out(params, file, tmp_path):
    mesh = train.make_mesh(8, devices=jax.devices("cpu"))
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    put = lambda x: jax.device_put(x, split) if x.shape == (3, 8) else x
    like = jax.tree.map(put, params)
    found = train.import_safetensors(file, jax.tree.map(jnp.zeros_like, like))
    assert_identical(found, params)
    assert found["blocks"]["mlp"]["kernel"].sharding == split
    train.export_safetensors(tmp_path / "again", found, metadata={"step": "7"})
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_another_dtype_only_if_asked(params, file):
    like = {**params, "half": jnp.zeros(3, jnp.float32)}
    with pytest.raises(
        ValueError, match=r"half is bfloat16\[3\], in like float32\[3\]"
    ):
        train.import_safetensors(file, like)
    found = train.import_safetensors(file, like, cast=True)
    np.testing.assert_array_equal(found["half"], PARAMS["half"].astype(np.float32))
    like = {**params, "layers": [jnp.float32(3), *params["layers"][1:]]}
    with pytest.raises(ValueError, match=r"layers\.0 is int32\[\], in like float32"):
        train.import_safetensors(file, like, cast=True)


OTHERS = {
    "; new is in like, not in the file": {"new": jnp.ones(2)},
    "; half is in the file, not in like": {"half": None},
    "there half is bfloat16[3], in like bfloat16[4]": {
        "half": jnp.ones(4, jnp.bfloat16)
    },
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_leaves_are_named(params, file, message):
    with pytest.raises(ValueError, match="like must") as error:
        train.import_safetensors(file, {**params, **OTHERS[message]})
    assert message in str(error.value)


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_files_that_are_none(params, tmp_path, damage):
    path = tmp_path / "x"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"path must be a safetensors file; .*/x is"):
        train.import_safetensors(path, params)


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "x"
    refused = {
        "params must hold numbers; key is key<fry>": {"key": jax.random.key(0)},
        "params must hold numbers; w is <class 'float'>": {"w": 1.0},
        "params must have one leaf of each name; 'a.b'": {"a": {"b": 1}, "a.b": 2},
        "params must have one leaf of each name; ''": jnp.ones(2),
    }
    for message, params in refused.items():
        with pytest.raises(ValueError, match="params must") as error:
            train.export_safetensors(path, params)
        assert message in str(error.value)
    with pytest.raises(ValueError, match="metadata must hold strings only; it holds 7"):
        train.export_safetensors(path, {"w": jnp.ones(2)}, metadata={"step": 7})
    assert not list(tmp_path.iterdir())


def test_without_the_library(params, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    message = r"pip install genlib\[safetensors\]"
    with pytest.raises(ImportError, match=message):
        train.import_safetensors(file, params)
    with pytest.raises(ImportError, match=message):
        train.export_safetensors(file, params)
