"""Saving whole runs in the background, and restoring them exactly."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from genlib import tree
from genlib.train._leaves import compare, describe, parts
from genlib.train._read import newest, read_arrays, read_meta
from genlib.train._state import State


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      step: the number of steps done.
      state: the `State`, on the shardings of the state it was restored like.
      position: what `save` was given: where the data stream stood.
      metadata: what the `Checkpointer` was given: the run's configuration.
    """

    step: int
    state: State
    position: Any
    metadata: dict[str, Any]


class Checkpointer:
    """Keep the last checkpoints of a run in a directory.

    A checkpoint appears under its step only when it is complete, so that a killed run
    leaves at worst a temporary directory. Saving copies the state to the host and
    writes in the background: the state may be donated at once. Every leaf is stored
    under its path, typed keys included, and comes back bit for bit.

    Args:
      directory: made if it is missing.
      keep: number of checkpoints to keep; older ones are removed after each save. None
        keeps all of them (`read_snapshots` reads the averages of all).
      metadata: JSON dict stored with each checkpoint (the configuration of the run).

    Raises:
      ValueError: if `keep` is not positive or `metadata` is not JSON.

    >>> import tempfile, optax
    >>> from genlib.train import init
    >>> state = init(jax.random.key(0), {"w": jax.numpy.ones(2)}, optax.sgd(0.1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Checkpointer(folder, metadata={"lr": 0.1}) as checkpointer:
    ...         checkpointer.save(5, state, position=7)
    ...         restored = checkpointer.restore(state)
    >>> restored.step, restored.position, restored.metadata
    (5, 7, {'lr': 0.1})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1; it is {keep}")
        self._metadata = _json("metadata", dict(metadata or {}))
        self._directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    @property
    def latest(self) -> int | None:
        """The newest step that is saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, position: Any = None) -> None:
        """Save `state` as `step`; `position` is JSON and says where the data stands.

        Raises:
          ValueError: if `step` is not after the newest checkpoint (nothing that is
            saved is overwritten), or if `position` is not JSON.
        """
        if self.latest is not None and step <= self.latest:
            raise ValueError(
                f"step must be after the newest checkpoint of {self._directory}, "
                f"{self.latest}; it is {step}"
            )
        pieces = parts(state)
        arrays = {piece: tree.named(values, piece) for piece, values in pieces.items()}
        meta = {
            "metadata": self._metadata,
            "position": _json("position", position),
            "leaves": describe(pieces),
        }
        save = {k: ocp.args.StandardSave(v) for k, v in arrays.items() if v}
        save = ocp.args.Composite(**save, meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=save, force=True)

    def restore(self, like: State) -> Restored:
        """Restore the newest checkpoint that can be read.

        A checkpoint that is damaged is passed over with a warning, and set aside under
        the name STEP.unreadable once an older one has been read; nothing is deleted.

        Args:
          like: a state of the same structure, whose shardings the result has.

        Raises:
          ValueError: if the checkpoint is one of another model (the message names the
            first leaves that differ), or if none can be read.
        """
        self.wait()
        pieces = parts(like)

        def read(step: int) -> Restored:
            meta = read_meta(self._manager, step)
            compare(meta["leaves"], describe(pieces), f"{self._directory}/{step}")
            found = read_arrays(self._manager, step, pieces)
            state = State(params=found["params"], ema=found["ema"], **found["training"])
            return Restored(step, state, meta["position"], meta["metadata"])

        restored, unreadable = newest(self._manager, read)
        for step in unreadable:
            self._set_aside(step)
        return restored

    def wait(self) -> None:
        """Wait until everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and let go of the directory."""
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _set_aside(self, step: int) -> None:
        # Left in place it would stay the newest step and push good ones out.
        if jax.process_index() == 0:
            name, count = f"{step}.unreadable", 1
            while (self._directory / name).exists():
                name, count = f"{step}.unreadable.{count}", count + 1
            (self._directory / str(step)).rename(self._directory / name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("genlib: checkpoint set aside")
        self._manager.reload()


def _json(name: str, value: Any) -> Any:
    """Return `value` as JSON gives it back."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"{name} must be JSON: {error}") from error
