"""The training loop: it keeps the device busy, and survives being killed."""

import collections
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from genlib.train._checkpoint import Checkpointer
from genlib.train._sharding import shard_batch
from genlib.train._state import State
from genlib.train._step import Step

# Steps that may wait in the device's queue: enough to keep it busy, few enough that
# their batches do not pile up in memory.
_AHEAD = 4


class BatchIterator(Protocol):
    """Batches in order, from where `set_state` put them (a Grain iterator is one).

    The position counts the batches drawn so far.
    """

    def __next__(self) -> Any: ...

    def get_state(self) -> Any:
        """Return the position, as JSON."""

    def set_state(self, state: Any, /) -> Any:
        """Go to a position that `get_state` returned."""


class Writer(Protocol):
    """Where metrics go; `Metrics` is one, and three lines make one of any service."""

    def write(self, step: int, values: Mapping[str, Any], /) -> None:
        """Take the scalars of one step."""

    def rewind(self, step: int, /) -> None:
        """Forget what came after `step`, from where a run is about to go on."""


def fit(
    step: Step,
    state: State,
    batches: Callable[[int], Any] | BatchIterator,
    *,
    steps: int,
    mesh: Mesh | None = None,
    writer: Writer | None = None,
    log_every: int = 50,
    checkpointer: Checkpointer | None = None,
    save_every: int | None = None,
    eval_fn: Callable[[State], Mapping[str, Any]] | None = None,
    eval_every: int | None = None,
    max_skipped: int | None = 100,
    progress: bool = True,
) -> State:
    """Train until `steps` steps are done, from the last checkpoint if there is one.

    The host never waits for the step that it has just dispatched: metrics are copied in
    the background and read one log interval later. A run that is killed and started
    again ends with the same bits as one that was not. Ctrl-C saves before it stops (in
    one process; with several, the last regular checkpoint stands).

    Args:
      step: `(state, batch) -> (state, metrics)`, jitted: `jax.jit(make_step(...))` or
        `jit_step(make_step(...), mesh)`. It may donate the state.
      state: from `init` (and `replicate` on a mesh): where a new run starts.
      batches: a function of the step, 0 to steps - 1, that returns a batch on the host
        (then resuming needs nothing else), or an iterator with `get_state` and
        `set_state`.
      steps: the number of steps after which the run is complete.
      mesh: split each batch over this mesh with `shard_batch`.
      writer: gets `write(step, values)` with the metrics of every `log_every`-th step
        (`skipped` is the count since the last line) and what `eval_fn` returns.
      log_every: steps between two lines.
      checkpointer: where to save state and data position, and to resume from.
      save_every: steps between two checkpoints; the last step is always saved.
      eval_fn: `state -> {name: scalar}`; it must not donate the state.
      eval_every: steps between two evaluations; the last step is always evaluated.
      max_skipped: stop after so many skipped steps in a row; None for never.
      progress: show a progress bar (process 0 only).

    Returns:
      The state after `steps` steps.

    Raises:
      ValueError: if a setting is out of range, if `batches` is neither of the two or
        ends too early, or if the checkpoint is one of another model.
      FloatingPointError: after `max_skipped` skipped steps in a row (seen when their
        metrics are read, so up to two log intervals late).

    >>> import jax.numpy as jnp, numpy as np, optax
    >>> from genlib.train import init, make_step
    >>> tx = optax.sgd(0.5)
    >>> loss_fn = lambda params, x, key: (jnp.sum((params - x) ** 2), x.size, {})
    >>> state = init(jax.random.key(0), jnp.zeros(()), tx)
    >>> step, batches = jax.jit(make_step(loss_fn, tx)), lambda index: np.full(4, 3.0)
    >>> float(fit(step, state, batches, steps=2, progress=False).params)
    3.0
    """
    every = {"log_every": log_every, "save_every": save_every, "eval_every": eval_every}
    for name, value in {"steps": steps, "max_skipped": max_skipped, **every}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; it is {value}")
    source = _Source(batches)
    if checkpointer is not None and checkpointer.latest is not None:
        restored = checkpointer.restore(state)
        state = restored.state
        source.seek(restored.position)
    done = int(jax.device_get(state.step))
    position = source.position(done)
    if writer is not None:
        writer.rewind(done)

    def due(every: int | None) -> bool:
        return done == steps or (every is not None and done % every == 0)

    def save() -> None:
        if checkpointer is not None and done != checkpointer.latest:
            log.flush()  # a run that resumes here does not write these lines again
            checkpointer.save(done, state, position)

    hidden = not progress or jax.process_index() != 0
    bar = tqdm(total=steps, initial=done, unit="step", disable=hidden)
    log = _LateLog(writer, bar, max_skipped)
    queue: collections.deque[Any] = collections.deque(maxlen=_AHEAD)
    try:
        while done < steps:
            batch = source.draw(done, steps)
            batch = jax.device_put(batch) if mesh is None else shard_batch(batch, mesh)
            if len(queue) == _AHEAD:
                jax.block_until_ready(queue[0])
            with _uninterrupted():
                state, metrics = step(state, batch)
                done += 1
                position = source.position(done)
            queue.append(metrics)
            bar.update()
            values = dict(metrics) if due(log_every) else {}
            log.count(metrics)
            if eval_fn is not None and due(eval_every):
                values |= eval_fn(state)
            if values:
                log.add(done, values)
            if due(save_every):
                save()
        log.flush()
    except KeyboardInterrupt:
        if jax.process_count() == 1:
            save()
        raise
    finally:
        bar.close()
        if checkpointer is not None:
            checkpointer.wait()
    return state


class _Source:
    """Batches by their index or from an iterator, behind one set of names."""

    def __init__(self, batches: Any) -> None:
        self._stateful = hasattr(batches, "get_state") and hasattr(batches, "set_state")
        if not self._stateful and not callable(batches):
            raise ValueError(
                "batches must be a function of the step, or an iterator with get_state "
                f"and set_state; it is {type(batches)}"
            )
        self._batches: Any = batches

    def draw(self, index: int, steps: int) -> Any:
        if not self._stateful:
            return self._batches(index)
        try:
            return next(self._batches)
        except StopIteration:
            raise ValueError(
                f"batches must last for {steps} steps; they ended after {index}"
            ) from None

    def position(self, index: int) -> Any:
        return self._batches.get_state() if self._stateful else index

    def seek(self, position: Any) -> None:
        if self._stateful:
            self._batches.set_state(position)


class _LateLog:
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
        self.flush()
        flags = []
        if "skipped" in values:
            flags, self._flags = self._flags, []
        self._pending = (step, values, flags)
        for leaf in jax.tree.leaves(self._pending):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()

    def flush(self) -> None:
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


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while a donated state changes hands; a second acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = False

    def hold(*_: Any) -> None:
        nonlocal held
        if held:
            raise KeyboardInterrupt
        held = True

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)
