"""Whatever happens to a file of a checkpoint, no wrong number comes back."""

import gc
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genlib import train
from tests.train.toy import assert_identical

# Of the reads that orbax gives up when another one fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected():
    """Let them be heard of here, and in no later test."""
    yield
    gc.collect()


def values(step):
    """Leaves of several kinds, with other bits for every step."""
    return {
        "w": jnp.full((3, 8), step, jnp.float32),
        "b": jnp.full(5, step, jnp.bfloat16),
        "key": jax.random.key(step),
        "n": jnp.int32(step),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory with the checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    with train.Checkpointer(folder, best="loss") as checkpointer:
        for step in (2, 4):
            checkpointer.save(step, values(step), metrics={"loss": step})
    return folder


def damages(content, rng):
    """Yield what may become of a file: None if it is gone."""
    yield "gone", None
    yield "emptied", b""
    yield "cut", content[: len(content) // 2]
    for _ in range(2):
        flipped = bytearray(content)
        place, bit = rng.integers(len(content)), rng.integers(8)
        flipped[place] ^= 1 << bit
        yield f"bit {bit} of byte {place} flipped", bytes(flipped)


def restored(folder, how):
    """Restore as a new run does, or, for most kinds of damage, without a manager."""
    if how != "emptied":
        return train.restore(folder, values(0))
    with train.Checkpointer(folder, best="loss") as checkpointer:
        assert checkpointer.latest == 4
        state = checkpointer.restore(values(0)).state
        step = checkpointer.latest
    assert step == int(state["n"])
    if step == 2:
        (folder / "4.unreadable").rename(folder / "4")
    return state


def test_every_file_damaged_in_every_way(run):
    """The newest checkpoint is used bit for bit, or the one before, with a warning."""
    rng, outcomes = np.random.default_rng(0), {}
    files = [x for x in (run / "4").rglob("*") if x.is_file()]
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        for how, damaged in damages(content, rng):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                state = restored(run, how)
            step = int(state["n"])
            assert_identical(state, values(step))
            passed = [
                str(x.message) for x in caught if "/4 cannot be" in str(x.message)
            ]
            assert len(passed) == (step == 2), (file, how)
            outcomes[str(file.relative_to(run / "4")), how] = step
            file.write_bytes(content)
    # What the numbers hang on was missed in each of the ways.
    needed = ("meta/metadata", "state/d/", "state/manifest.ocdbt")
    seen = [step for (name, _), step in outcomes.items() if name.startswith(needed)]
    assert len(seen) == 15
    assert set(seen) == {2}
    assert_identical(train.restore(run, values(0)), values(4))


MISSING = {"meta": "meta/metadata", "state": "state", "state/d": "state/"}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named(run, tmp_path, name):
    shutil.copytree(run / "4", tmp_path / "4")
    shutil.rmtree(tmp_path / "4" / name)
    for path, opening in {
        tmp_path / "4": f"checkpoint {tmp_path}/4 cannot be read",
        tmp_path: "none of the steps [4] can",
    }.items():
        with pytest.raises(ValueError, match="checkpoint") as error:
            train.restore(path, values(0))
        assert opening in str(error.value)
        assert str(Path("4") / MISSING[name]) in str(error.value)


def test_a_leaf_with_other_bits_is_named(run, tmp_path):
    """Even where the files are sound: a checksum is of what came out of them."""
    path = tmp_path / "4"
    shutil.copytree(run / "4", path)
    shutil.rmtree(path / "state")
    other = {**values(4), "b": values(4)["b"].at[2].set(4.03125)}
    train.save(tmp_path / "other", other)
    shutil.copytree(tmp_path / "other" / "state", path / "state")
    with pytest.raises(ValueError, match="b does not hold the bits that were saved"):
        train.restore(path, values(0))
