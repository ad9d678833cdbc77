"""Saving whole runs in the background, and restoring them exactly."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from genlib import tree
from genlib.train._format import as_json, location, newest, to_save
from genlib.train._ranking import rank, read_score, score
from genlib.train._read import read_like
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


def save(
    path: str | os.PathLike[str],
    state: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save a state, or any pytree of arrays, as one checkpoint.

    It appears at `path` only when it is complete, in the format of one step of a
    `Checkpointer`; `restore` reads both. With several processes all must call it.

    Args:
      path: of a directory that does not exist yet; `gs://BUCKET/...` also.
      state: pytree of arrays, typed keys included.
      metadata: JSON dict stored with them.

    Raises:
      ValueError: if `path` exists, `metadata` is not JSON, or a leaf is no array.

    >>> import tempfile
    >>> from genlib.train import restore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/one", {"key": jax.random.key(3)})
    ...     restored = restore(f"{folder}/one", {"key": jax.random.key(0)})
    >>> jax.random.key_data(restored["key"]).tolist()
    [0, 3]
    """
    where = location(path)
    if where.exists():
        raise ValueError(f"path must not exist: nothing is overwritten; {where} does")
    details = {"metadata": as_json("metadata", dict(metadata or {})), "position": None}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(where, args=to_save(state, **details))


class Checkpointer:
    """Keep the last checkpoints of a run in a directory, and the best.

    A checkpoint appears under its step only when it is complete, so that a killed run
    leaves at worst a temporary directory. Saving copies the state to the host and
    writes in the background: the state may be donated at once. Every leaf is stored
    under its path, typed keys included, and comes back bit for bit; what a disk or a
    copy has changed is found by checksums. With several processes, which must see the
    same directory, all of them make and use one.

    Args:
      directory: made if it is missing; `gs://BUCKET/...` also.
      keep: number of newest checkpoints to keep; older ones are removed after each
        save. None keeps all of them (`read_snapshots` reads the averages of all).
      keep_every: keep those whose step divides by this, too.
      best: name of a metric: keep the best checkpoints, too.
      best_mode: "min" or "max": whether less or more of it is better.
      keep_best: number of best checkpoints to keep.
      metadata: JSON dict stored with each checkpoint (the configuration of the run).

    Raises:
      ValueError: if a number is not positive, `best_mode` is neither of the two or
        `metadata` is not JSON.

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
        keep_every: int | None = None,
        best: str | None = None,
        best_mode: str = "min",
        keep_best: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        counts = {"keep": keep, "keep_every": keep_every, "keep_best": keep_best}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; it is {value}")
        if best_mode not in ("min", "max"):
            raise ValueError(f'best_mode must be "min" or "max"; it is {best_mode!r}')
        self.best_metric = best
        self._best = best, best_mode
        self._metadata = as_json("metadata", dict(metadata or {}))
        self._keep = keep, keep_every, keep_best
        self._scores: dict[int, float] = {}
        self._directory = location(directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Policy(self._kept), cleanup_tmp_directories=True
        )
        self._manager = _Manager(self._directory, options=options)

    @property
    def latest(self) -> int | None:
        """The newest step that is saved, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The saved step with the best metric (the newest of equals), or None."""
        return next(iter(self._ranked(self._manager.all_steps())), None)

    def save(
        self,
        step: int,
        state: State,
        position: Any = None,
        *,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Save `state` as `step`; `position` is JSON and says where the data stands.

        It waits for `state` to be computed and copied, and for the save before to be on
        disk. `metrics` are scalars; without them, or with a NaN, a checkpoint is never
        the best.

        Raises:
          ValueError: if `step` is not after the newest checkpoint (nothing that is
            saved is overwritten), if `position` is not JSON, or if `metrics` are given
            and the best one is not among them.
        """
        if self.latest is not None and step <= self.latest:
            raise ValueError(
                f"step must be after the newest checkpoint of {self._directory}, "
                f"{self.latest}; it is {step}"
            )
        values = jax.device_get(dict(metrics or {}))
        values = {name: float(np.asarray(value)) for name, value in values.items()}
        if values and self.best_metric is not None and self.best_metric not in values:
            raise ValueError(
                f"metrics must hold {self.best_metric!r}, by which the best checkpoint "
                f"is chosen; they are {sorted(values)}"
            )
        details = {
            "metadata": self._metadata,
            "position": as_json("position", position),
            "metrics": values,
            "best": self._best,
        }
        self._scores[step] = score(details, self._best)
        self._manager.save(step, args=to_save(state, **details), force=True)

    def restore(self, like: State, *, cast: bool = False) -> Restored:
        """Restore the newest checkpoint that can be read.

        A checkpoint that is damaged is passed over with a warning, and set aside under
        the name STEP.unreadable once an older one has been read; nothing is deleted.

        Args:
          like: a state of the same structure, whose shardings the result has.
          cast: convert floats to the dtypes of `like`; see `restore`.

        Raises:
          ValueError: if the checkpoint is one of another model (the message names the
            first leaves that differ), or if none can be read.
        """
        self.wait()
        names = set(tree.named(like))
        steps = sorted(self._manager.all_steps(), reverse=True)
        read = lambda path: (path, *read_like(path, like, names, cast=cast))
        (path, meta, state), unreadable = newest(self._directory, steps, read)
        for step in unreadable:
            self._set_aside(step)
        return Restored(int(path.name), state, meta["position"], meta["metadata"])

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

    def _kept(self, steps: Sequence[int]) -> set[int]:
        keep, every, best = self._keep
        kept = set(steps if keep is None else steps[-keep:])
        kept |= {step for step in steps if every is not None and step % every == 0}
        return kept | set(self._ranked(steps)[:best])

    def _ranked(self, steps: Sequence[int]) -> list[int]:
        """Return the steps that have the metric, the best first."""
        if self.best_metric is None:
            return []
        for step in steps:
            if step not in self._scores:
                self._scores[step] = read_score(self._directory / str(step), self._best)
        return rank({step: self._scores[step] for step in steps})

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


class _Policy:
    """Which checkpoints stay, as orbax asks it."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        kept = self._kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves preemption to `fit`."""

    def reached_preemption(self, step: int) -> bool:
        # Asked in the background about the step being written, the service would take
        # it for the step at which this process stands, and choose a step that has
        # passed for all to stop at.
        return False
