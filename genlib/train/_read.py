"""Reading checkpoints: the newest one that is whole, all of it or a part."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from genlib import tree
from genlib.train._ema import Snapshot
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
        `jax.ShapeDtypeStruct`s), on whose shardings the result is put; a tuple of them
        for a run with several averages. Floats come back in the dtype in which they
        were trained, float32.
      ema: the moving average (True) or the parameters of the last step (False).

    Raises:
      ValueError: if the checkpoint is one of another model, if it has no average, or if
        none can be read.

    >>> restore_params("/nowhere", {"w": jnp.ones(2)})
    Traceback (most recent call last):
    ValueError: directory must hold a checkpoint; /nowhere holds none
    """
    piece = "ema" if ema else "params"
    with _reader(directory) as manager:
        params, _ = newest(
            manager, lambda step: _read_piece(manager, step, piece, like)
        )
    return params


def read_snapshots(
    directory: str | os.PathLike[str], like: Any, stds: float | Sequence[float]
) -> list[Snapshot]:
    """Read the averages of every checkpoint, for `posthoc_ema`.

    A checkpoint that cannot be read is passed over with a warning.

    Args:
      directory: of a `Checkpointer`, usually with `keep=None`.
      like: as for `restore_params`.
      stds: the relative widths of the averages of the run, in the order in which
        `init` and `make_step` got their `power_ema`; one number if there is one average
        and no tuple.

    Returns:
      Snapshots in NumPy arrays, on the host.

    Raises:
      ValueError: if a checkpoint is one of another model or of other averages, or none
        can be read.

    >>> read_snapshots("/nowhere", {"w": jnp.ones(2)}, (0.05, 0.1))
    Traceback (most recent call last):
    ValueError: directory must hold a checkpoint; /nowhere holds none
    """
    widths = tuple(stds) if isinstance(stds, Sequence) else (stds,)
    several = (like,) * len(widths) if isinstance(stds, Sequence) else like
    snapshots = []
    with _reader(directory) as manager:
        for step in sorted(manager.all_steps()):
            try:
                found = _read_piece(manager, step, "ema", several)
            except WrongModelError:
                raise
            except Exception as error:  # damage shows as almost any exception
                warnings.warn(
                    f"checkpoint {manager.directory}/{step} cannot be read "
                    f"({type(error).__name__}: {error})",
                    stacklevel=2,
                )
                continue
            averages = jax.device_get(found if isinstance(stds, Sequence) else (found,))
            pairs = zip(widths, averages, strict=True)
            snapshots += [Snapshot(step, std, average) for std, average in pairs]
    if not snapshots:
        raise ValueError(
            f"directory must hold a checkpoint that can be read; {directory} holds none"
        )
    return snapshots


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


def _read_piece(
    manager: ocp.CheckpointManager, step: int, piece: str, like: Any
) -> Any:
    """Return the parameters or the average of a step, in the dtypes it was saved in."""
    where = f"{manager.directory}/{step}"
    stored = read_meta(manager, step)["leaves"]
    stored = {k: v for k, v in stored.items() if k.partition("/")[0] == piece}
    if not stored:
        raise WrongModelError(f"ema must be False for {where}: it holds no average")
    names = iter(tree.named(like, piece))

    def wanted(leaf: Any) -> jax.ShapeDtypeStruct:
        leaf, name = target(leaf), next(names)
        if not tree.is_float(leaf) or name not in stored:
            return leaf
        dtype = jnp.dtype(stored[name].partition("[")[0])
        return leaf.update(dtype=dtype)

    pieces = {piece: jax.tree.map(wanted, like)}
    compare(stored, describe(pieces), where)
    return read_arrays(manager, step, pieces)[piece]


@contextlib.contextmanager
def _reader(directory: str | os.PathLike[str]) -> Iterator[ocp.CheckpointManager]:
    path = Path(directory).absolute()
    if not path.is_dir():
        raise ValueError(f"directory must hold a checkpoint; {path} holds none")
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(path, options=options) as manager:
        yield manager
