"""Reading checkpoints: the newest one that is whole, all of it or a part."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from genlib import tree
from genlib.train._ema import Snapshot
from genlib.train._format import location, newest, read_arrays, read_meta, together
from genlib.train._leaves import WrongModelError, chosen, compare, describe, target
from genlib.train._ranking import rank, read_score


def read_metadata(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `metadata` of the newest checkpoint, without a model.

    Raises:
      ValueError: if `directory` holds no checkpoint that can be read.

    >>> read_metadata("/nowhere")
    Traceback (most recent call last):
    ValueError: directory must hold a checkpoint; /nowhere holds none
    """
    path = location(directory)
    read = lambda path: together(lambda: read_meta(path))
    return newest(path, steps_of(path)[::-1], read)[0]["metadata"]


def restore(
    path: str | os.PathLike[str],
    like: Any,
    *,
    only: str | Sequence[str] | None = None,
    cast: bool = False,
) -> Any:
    """Restore a state, or a part of one, from a checkpoint.

    Every array comes back with the bits that were saved, on the sharding of its leaf in
    `like`: another mesh, number of devices or of processes than those it was saved
    from. With several processes all of them must call it.

    Args:
      path: of a checkpoint (`save`, or one step of a `Checkpointer`), or the directory
        of a `Checkpointer`, of which the newest checkpoint that can be read is used.
      like: pytree of arrays or `jax.ShapeDtypeStruct`s with the same paths and shapes.
      only: regular expressions (`re.search`) of the paths to restore; other leaves are
        those of `like`, not copied. The checkpoint may then hold anything else: another
        optimizer, more layers. To fine-tune, `only="^(params|ema)/"`.
      cast: convert floats from the dtype in which they were saved to that of `like`,
        after their bits were verified. Without it other dtypes are refused.

    Returns:
      A pytree like `like`.

    Raises:
      ValueError: if `path` holds no checkpoint or none that can be read, if its leaves
        are not those of `like` (the message names the first that differ), or if a
        pattern of `only` is found in no path.

    >>> import tempfile, jax.numpy as jnp
    >>> from genlib.train import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/best", {"w": jnp.ones(2), "b": jnp.ones(2)})
    ...     restore(f"{folder}/best", {"w": jnp.zeros(2), "new": 0}, only="^w")
    {'new': 0, 'w': Array([1., 1.], dtype=float32)}
    """
    where, leaves = location(path), tree.named(like)
    names = chosen(leaves, only)
    for name, leaf in leaves.items():
        if name not in names and isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"like must hold arrays where nothing is restored; {name} is {leaf}"
            )
    read = lambda path: read_like(path, like, names, cast=cast)[1]
    if steps := steps_of(where):
        return newest(where, steps[::-1], read)[0]
    if not where.exists():
        raise ValueError(f"path must hold a checkpoint; {where} does not exist")
    try:
        return read(where)
    except WrongModelError:
        raise
    except Exception as error:  # damage shows as almost any exception
        raise ValueError(
            f"checkpoint {where} cannot be read ({type(error).__name__}: {error})"
        ) from error


def restore_params(
    directory: str | os.PathLike[str],
    like: Any,
    *,
    ema: bool = True,
    step: int | str | None = None,
) -> Any:
    """Restore only the parameters of a checkpoint, for sampling.

    Args:
      directory: of a `Checkpointer`.
      like: parameters of the same structure and shapes (arrays or
        `jax.ShapeDtypeStruct`s), on whose shardings the result is put; a tuple of them
        for a run with several averages. Floats come back in the dtype in which they
        were trained, float32.
      ema: the moving average (True) or the parameters of the last step (False). Frozen
        parameters, which have no average, come from the parameters.
      step: of the checkpoint; "best" for the best one of a `Checkpointer(best=...)`,
        None for the newest. A damaged one is passed over with a warning, unless it was
        asked for by its number.

    Raises:
      ValueError: if the checkpoint is one of another model, if it has no average, if
        none can be read, or if there is no such step.

    >>> restore_params("/nowhere", {"w": jax.numpy.ones(2)})
    Traceback (most recent call last):
    ValueError: directory must hold a checkpoint; /nowhere holds none
    """
    path, piece = location(directory), "ema" if ema else "params"
    steps = steps_of(path)[::-1]
    if step == "best" and steps:
        steps = rank({step: read_score(path / str(step)) for step in steps})
        if not steps:
            raise ValueError(
                f"step must be a number or None for {path}: no checkpoint there has "
                "the metric of a Checkpointer(best=...)"
            )
    elif step is not None and steps:
        if step not in steps:
            raise ValueError(
                f'step must be "best" or one of {steps[::-1]}; it is {step}'
            )
        steps = [step]
    return newest(path, steps, lambda path: _read_piece(path, piece, like))[0]


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

    >>> read_snapshots("/nowhere", {"w": jax.numpy.ones(2)}, (0.05, 0.1))
    Traceback (most recent call last):
    ValueError: directory must hold a checkpoint; /nowhere holds none
    """
    path, several = location(directory), isinstance(stds, Sequence)
    widths = tuple(stds) if isinstance(stds, Sequence) else (stds,)
    snapshots, steps = [], steps_of(path)
    for step in steps:
        try:
            wanted = (like,) * len(widths) if several else like
            found = _read_piece(path / str(step), "ema", wanted)
        except WrongModelError:
            raise
        except Exception as error:  # damage shows as almost any exception
            warnings.warn(
                f"checkpoint {path}/{step} cannot be read "
                f"({type(error).__name__}: {error})",
                stacklevel=2,
            )
            continue
        averages = jax.device_get(found if several else (found,))
        pairs = zip(widths, averages, strict=True)
        snapshots += [Snapshot(step, std, average) for std, average in pairs]
    if not snapshots:
        which = " that can be read" if steps else ""
        raise ValueError(f"directory must hold a checkpoint{which}; {path} holds none")
    return snapshots


def read_like(
    path: epath.Path, like: Any, names: set[str], *, cast: bool
) -> tuple[dict[str, Any], Any]:
    """Return the JSON part of a checkpoint and `like` with its leaves `names` restored.

    Raises:
      WrongModelError: if the leaves of the checkpoint are not those of `like`.
      Exception: of almost any type, if it is damaged.
    """
    leaves = tree.named(like)

    def plan() -> tuple[dict[str, Any], dict[str, jax.ShapeDtypeStruct]]:
        meta = read_meta(path)
        stored = meta["leaves"]
        wanted = {
            name: target(leaf, name, stored, cast=cast)
            for name, leaf in leaves.items()
            if name in names
        }
        if len(names) < len(leaves):
            stored = {name: stored[name] for name in wanted if name in stored}
        compare(stored, describe(wanted), path)
        return meta, wanted

    meta, wanted = together(plan)
    found = read_arrays(path, meta, wanted)
    for name, leaf in found.items():
        if leaf.dtype != leaves[name].dtype:
            found[name] = leaf.astype(leaves[name].dtype)
    restored = [found.get(name, leaf) for name, leaf in leaves.items()]
    return meta, jax.tree.unflatten(jax.tree.structure(like), restored)


def steps_of(directory: epath.Path) -> list[int]:
    """Return the steps of the complete checkpoints in a directory, in order."""
    paths = directory.iterdir() if directory.is_dir() else []
    complete = ocp.path.step.is_path_finalized
    return sorted(int(x.name) for x in paths if x.name.isdigit() and complete(x))


def _read_piece(path: epath.Path, piece: str, like: Any) -> Any:
    """Return the parameters or the average of a step, in the dtypes it was saved in."""
    leaves = tree.named(like, piece)

    def plan() -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
        meta = read_meta(path)
        held = {k: v for k, v in meta["leaves"].items() if k.split("/")[0] == piece}
        if not held:
            raise WrongModelError(f"ema must be False for {path}: it holds no average")
        several = isinstance(like, tuple)
        source = {name: _source(name, meta["leaves"], several) for name in leaves}
        wanted = {
            source[name]: target(leaf, source[name], meta["leaves"], cast=True)
            for name, leaf in leaves.items()
        }
        held |= {k: v for k, v in meta["leaves"].items() if k in wanted}
        compare(held, describe(wanted), path)
        return meta, source, wanted

    meta, source, wanted = together(plan)
    found = read_arrays(path, meta, wanted)
    return jax.tree.unflatten(
        jax.tree.structure(like), [found[source[name]] for name in leaves]
    )


def _source(name: str, stored: Sequence[str], several: bool) -> str:
    """Return where a leaf lies: frozen parameters have no average."""
    piece, _, rest = name.partition("/")
    if name not in stored and piece == "ema":
        for path in [rest, rest.partition("/")[2]] if several else [rest]:
            if f"params/{path}" in stored:
                return f"params/{path}"
    return name
