"""One checkpoint on disk: a directory of arrays under their paths, and what they are.

`state` holds the arrays, as orbax writes them; `meta/metadata` is JSON: the type and
the checksum of each array, and what else was saved. It carries its own hash.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from genlib.train._checksum import checksums, digest
from genlib.train._leaves import WrongModelError, describe, on_device

_Value = TypeVar("_Value")


def location(path: str | os.PathLike[str]) -> epath.Path:
    """Return a path on disk as an absolute one, or one in a bucket as it is."""
    text = os.fspath(path)
    return epath.Path(text if "://" in text else Path(text).absolute())


def as_json(name: str, value: Any) -> Any:
    """Return `value` as JSON gives it back."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"{name} must be JSON: {error}") from error


def to_save(state: Any, **details: Any) -> ocp.args.Composite:
    """Return what orbax shall write: the arrays of `state`, and JSON `details`."""
    arrays = on_device(state)
    meta = {**details, "leaves": describe(arrays), "checksums": checksums(arrays)}
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave({k: x for k, x in arrays.items() if x.size}),
        meta=ocp.args.JsonSave({**meta, "hash": digest(meta)}),
    )


def read_meta(path: epath.Path) -> dict[str, Any]:
    """Read the JSON part of a checkpoint.

    Raises:
      Exception: of almost any type, if it is damaged.
    """
    meta = json.loads((path / "meta" / "metadata").read_text())
    if meta.pop("hash") != digest(meta):
        raise ValueError("meta/metadata does not hold what was saved")
    return meta


def read_arrays(
    path: epath.Path, meta: Mapping[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Read some arrays of a checkpoint, on their shardings, and verify their bits.

    Raises:
      Exception: of almost any type, if they are damaged.
    """
    # Orbax refuses arrays of size 0, so they are not on disk.
    sized = {name: leaf for name, leaf in wanted.items() if leaf.size}
    restore = ocp.args.PyTreeRestore(
        sized,
        restore_args=ocp.checkpoint_utils.construct_restore_args(sized),
        partial_restore=True,
    )
    # The handler itself: a Checkpointer waits for all processes after it has read, for
    # ever if one of them could not.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        found = together(lambda: handler.restore(path / "state", args=restore))
    for name, value in checksums(found).items():
        if value != meta["checksums"][name]:
            raise ValueError(f"{name} does not hold the bits that were saved")
    empty = {name: leaf for name, leaf in wanted.items() if not leaf.size}
    return found | {name: _empty(leaf) for name, leaf in empty.items()}


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)


def together(read: Callable[[], _Value]) -> _Value:
    """Run `read` on every process, and raise on all of them if it fails on one.

    Otherwise one process would use a checkpoint that another has found damaged.
    """
    if jax.process_count() == 1:
        return read()
    error, value = None, None
    try:
        value = read()
    except Exception as caught:
        error = caught
    wrong = isinstance(error, WrongModelError)
    verdicts = multihost_utils.process_allgather(np.array([error is not None, wrong]))
    if error is None and verdicts.any():
        kind = WrongModelError if verdicts[:, 1].any() else ValueError
        failed = np.flatnonzero(verdicts[:, 0]).tolist()
        error = kind(f"the processes {failed} cannot read it and say why")
    if error is not None:
        raise error
    return value  # pyright: ignore[reportReturnType]


def newest(
    directory: epath.Path, steps: Sequence[int], read: Callable[[epath.Path], _Value]
) -> tuple[_Value, list[int]]:
    """Return `read(directory / step)` of the first of `steps` that can be read.

    The second result are the steps before it, which cannot; a warning names them.

    Raises:
      ValueError: if no step can be read, or the first is one of another model.
    """
    failures: dict[int, Exception] = {}
    for step in _agreed(steps):
        try:
            value = read(directory / str(step))
        except WrongModelError:
            raise
        except Exception as error:  # damage shows as almost any exception
            failures[step] = error
            continue
        for bad, error in failures.items():
            warnings.warn(
                f"checkpoint {directory}/{bad} cannot be read and step {step} is used "
                f"instead ({type(error).__name__}: {error})",
                stacklevel=3,
            )
        return value, list(failures)
    if not failures:
        raise ValueError(f"directory must hold a checkpoint; {directory} holds none")
    error = next(iter(failures.values()))
    raise ValueError(
        f"directory must hold a checkpoint that can be read; in {directory} none of "
        f"the steps {sorted(failures)} can ({type(error).__name__}: {error})"
    ) from error


def _agreed(steps: Sequence[int]) -> Iterator[int]:
    """Yield the steps that process 0 sees: others may be shown another list."""
    if jax.process_count() == 1:
        yield from steps
        return
    for step in [*steps, -1] if jax.process_index() == 0 else iter(int, 1):
        agreed = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if agreed < 0:
            return
        yield agreed
