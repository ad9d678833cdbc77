"""Reading checkpoints: the newest one that is whole, all of it or a part."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from genlib import tree
from genlib.train._leaves import WrongModelError, compare, describe, target

_Value = TypeVar("_Value")


def read_metadata(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `metadata` of the newest checkpoint, without a model.

    Raises:
      ValueError: if `directory` holds no checkpoint that can be read.

    >>> read_metadata("/nowhere")
    Traceback (most recent call last):
    ValueError: directory must hold a checkpoint; /nowhere holds none
    """
    with _reader(directory) as manager:
        meta, _ = newest(manager, lambda step: read_meta(manager, step))
    return meta["metadata"]


def restore_params(
    directory: str | os.PathLike[str], like: Any, *, ema: bool = True
) -> Any:
    """Restore only the parameters of the newest checkpoint, for sampling.

    Args:
      directory: of a `Checkpointer`.
      like: parameters of the same structure and shapes (arrays or
        `jax.ShapeDtypeStruct`s), on whose shardings the result is put. Floats come back
        in the dtype in which they were trained, float32.
      ema: the moving average (True) or the parameters of the last step (False).

    Raises:
      ValueError: if the checkpoint is one of another model, if it has no average, or if
        none can be read.

    >>> restore_params("/nowhere", {"w": jnp.ones(2)})
    Traceback (most recent call last):
    ValueError: directory must hold a checkpoint; /nowhere holds none
    """
    piece = "ema" if ema else "params"

    def read(step: int) -> Any:
        stored = read_meta(manager, step)["leaves"]
        stored = {k: v for k, v in stored.items() if k.partition("/")[0] == piece}
        if not stored:
            raise WrongModelError(
                f"ema must be False for {directory}/{step}: it holds no average"
            )
        names = iter(tree.named(like, piece))

        def wanted(leaf: Any) -> jax.ShapeDtypeStruct:
            leaf, name = target(leaf), next(names)
            if not tree.is_float(leaf) or name not in stored:
                return leaf
            dtype = jnp.dtype(stored[name].partition("[")[0])
            return leaf.update(dtype=dtype)

        pieces = {piece: jax.tree.map(wanted, like)}
        compare(stored, describe(pieces), f"{directory}/{step}")
        return read_arrays(manager, step, pieces)[piece]

    with _reader(directory) as manager:
        params, _ = newest(manager, read)
    return params


def newest(
    manager: ocp.CheckpointManager, read: Callable[[int], _Value]
) -> tuple[_Value, list[int]]:
    """Return `read(step)` of the newest step that can be read, and the steps before.

    Raises:
      ValueError: if no step can be read, or the newest is one of another model.
    """
    failures: dict[int, Exception] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            value = read(step)
        except WrongModelError:
            raise
        except Exception as error:  # damage shows as almost any exception
            failures[step] = error
            continue
        for bad, error in failures.items():
            warnings.warn(
                f"checkpoint {manager.directory}/{bad} cannot be read and step {step} "
                f"is used instead ({type(error).__name__}: {error})",
                stacklevel=3,
            )
        return value, list(failures)
    if not failures:
        raise ValueError(
            f"directory must hold a checkpoint; {manager.directory} holds none"
        )
    raise ValueError(
        f"directory must hold a checkpoint that can be read; in {manager.directory} "
        f"none of the steps {sorted(failures)} can"
    ) from next(iter(failures.values()))


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Read the JSON part of a checkpoint."""
    restore = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return manager.restore(step, args=restore)["meta"]


def read_arrays(
    manager: ocp.CheckpointManager, step: int, pieces: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the arrays of `pieces`, each a pytree of leaves to restore like."""
    wanted = {k: jax.tree.map(target, tree.named(v, k)) for k, v in pieces.items()}
    restore = {k: ocp.args.StandardRestore(v) for k, v in wanted.items() if v}
    found = manager.restore(step, args=ocp.args.Composite(**restore))
    return {
        piece: jax.tree.unflatten(
            jax.tree.structure(values), [found[piece][name] for name in wanted[piece]]
        )
        for piece, values in pieces.items()
    }


@contextlib.contextmanager
def _reader(directory: str | os.PathLike[str]) -> Iterator[ocp.CheckpointManager]:
    path = Path(directory).absolute()
    if not path.is_dir():
        raise ValueError(f"directory must hold a checkpoint; {path} holds none")
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(path, options=options) as manager:
        yield manager
