"""Metrics on disk: one JSON object a line, and TensorBoard where it is wanted."""

import contextlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Metrics:
    """Write metrics to `metrics.jsonl` in a directory, from process 0 only.

    Each line is `{"step": ..., "time": seconds since 1970, NAME: number, ...}`; a
    number that is not finite is null. Lines reach the file as they are written, so a
    killed process loses none.

    Args:
      directory: made if it is missing.
      tensorboard: write the same numbers as TensorBoard events, into the same
        directory.

    Raises:
      ValueError: if `tensorboard` is asked for and tensorboardX is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     metrics = Metrics(folder)
    ...     metrics.write(1, {"loss": 0.5})
    ...     metrics.close()
    ...     (Path(folder) / "metrics.jsonl").read_text().split(",")[0]
    '{"step": 1'
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, tensorboard: bool = False
    ) -> None:
        if tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError(
                "tensorboard must be False, or tensorboardX installed: "
                "pip install tensorboardX"
            )
        self._path = Path(directory) / "metrics.jsonl"
        self._tensorboard = tensorboard
        self._events: Any = None
        self._first = 0
        self._active = jax.process_index() == 0
        if self._active:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, from where a run is about to go on.

        Unfinished lines of a killed process go too. Afterwards each step is in the file
        once.
        """
        self._first = step + 1
        if self._active and self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _is_before(line, self._first)]
            scratch = self._path.with_suffix(".tmp")
            scratch.write_text("".join(kept))
            scratch.replace(self._path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; `values` are numbers or scalar arrays.

        Raises:
          ValueError: if a value is not a scalar.
        """
        if not self._active:
            return
        numbers = {name: _number(name, value) for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **numbers}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            if self._events is None:
                tensorboard = importlib.import_module("tensorboardX")
                self._events = tensorboard.SummaryWriter(
                    str(self._path.parent), purge_step=self._first
                )
            for name, number in numbers.items():
                if number is not None:
                    self._events.add_scalar(name, number, step)

    def close(self) -> None:
        """Finish the TensorBoard file, if there is one."""
        if self._events is not None:
            self._events.close()
            self._events = None


def _number(name: str, value: Any) -> float | int | None:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be a scalar number; it is {value!r}")
    number = array.item()
    return number if math.isfinite(number) else None


def _is_before(line: str, step: int) -> bool:
    with contextlib.suppress(ValueError):
        return line.endswith("\n") and json.loads(line)["step"] < step
    return False
