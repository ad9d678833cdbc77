"""What a run says of itself, without ever waiting for the step just dispatched."""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

# Steps that may wait in the device's queue: enough to keep it busy, few enough that
# their batches do not pile up in memory.
_AHEAD = 4


class Profile(NamedTuple):
    """Which steps to trace with `jax.profiler`, and where to.

    Attributes:
      directory: TensorBoard and xprof read it.
      first: number of the first step traced; the first step of a run is 1.
      last: number of the last step traced.

    >>> Profile("runs/mine/profile", first=10, last=12).last
    12
    """

    directory: str
    first: int
    last: int


class Pace:
    """The device's queue of steps, kept short, and how fast they leave it."""

    def __init__(self) -> None:
        self._queue: collections.deque[tuple[Any, int]] = collections.deque()
        # Of the steps from `_since` on, the last was seen to end at `_until`.
        self._since: float | None = None
        self._until, self._steps, self._rows = 0.0, 0, 0

    def wait(self) -> None:
        """Wait until another step may be dispatched."""
        if len(self._queue) == _AHEAD:
            self._finish()

    def add(self, metrics: Any, batch: Any) -> None:
        """Remember a step that was dispatched."""
        leaves = jax.tree.leaves(batch)
        rows = leaves[0].shape[0] if leaves and leaves[0].ndim else 0
        self._queue.append((metrics, rows))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Wait for all steps, and stop the clock inside the block."""
        while self._queue:
            self._finish()
        before = time.perf_counter()
        yield
        pause = time.perf_counter() - before
        if self._since is not None:
            self._since, self._until = self._since + pause, self._until + pause

    def metrics(self) -> dict[str, float]:
        """Return the pace of the steps that ended since the last call, if any did."""
        if self._since is None or not self._steps:
            return {}
        seconds, steps, rows = self._until - self._since, self._steps, self._rows
        self._since, self._steps, self._rows = self._until, 0, 0
        values = {"step_time": seconds / steps}
        return values | ({"examples_per_second": rows / seconds} if rows else {})

    def _finish(self) -> None:
        metrics, rows = self._queue.popleft()
        jax.block_until_ready(metrics)
        self._until = time.perf_counter()
        if self._since is None:  # the first step was compiled before it ran
            self._since = self._until
        else:
            self._steps, self._rows = self._steps + 1, self._rows + rows


class Tracer:
    """A profile of some steps, taken while they run."""

    def __init__(self, profile: Profile | None) -> None:
        self._profile, self._running = profile, False

    def before(self, step: int) -> None:
        """Start the trace if step number `step` belongs to it."""
        profile = self._profile
        if profile and not self._running and profile.first <= step <= profile.last:
            jax.profiler.start_trace(profile.directory)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """End the trace with step number `step` if it is the last one of it."""
        if self._running and self._profile and step == self._profile.last:
            jax.block_until_ready(metrics)
            self.stop()

    def stop(self) -> None:
        """Write what has been traced, if a trace is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class LateLog:
    """Metrics that are read when the next ones are added, or when they must be."""

    def __init__(self, writer: Any, bar: tqdm, max_skipped: int | None) -> None:
        self._writer, self._bar, self._max_skipped = writer, bar, max_skipped
        self._flags: list[Any] = []
        self._pending: tuple[int, dict[str, Any], list[Any]] | None = None
        self._streak = 0

    def count(self, metrics: Mapping[str, Any]) -> None:
        """Remember, on the device, whether a step was skipped."""
        if "skipped" in metrics:
            self._flags.append(metrics["skipped"])

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Take the line of a step, unless it is empty, and write the one before."""
        if not values:
            return
        self.flush()
        flags = []
        if "skipped" in values:
            flags, self._flags = self._flags, []
        self._pending = (step, values, flags)
        for leaf in jax.tree.leaves(self._pending):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()

    def flush(self) -> None:
        """Write the line that was taken last."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        step, values, flags = jax.device_get(pending)
        if "skipped" in values:
            values["skipped"] = sum(map(int, flags))
        if "loss" in values:
            self._bar.set_postfix(loss=f"{float(values['loss']):.4g}", refresh=False)
        if self._writer is not None:
            self._writer.write(step, values)
        for skipped in flags:
            self._streak = self._streak + 1 if skipped else 0
            if self._max_skipped is not None and self._streak >= self._max_skipped:
                raise FloatingPointError(
                    f"the loss or the gradient was not finite in {self._streak} steps "
                    f"in a row, the last by step {step}"
                )
