"""The training loop: it keeps the device busy, and survives being killed."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from genlib.train._checkpoint import Checkpointer
from genlib.train._log import LateLog, Pace, Profile, Tracer
from genlib.train._mesh import shard_batch
from genlib.train._preemption import Interrupts, Preempted
from genlib.train._state import State
from genlib.train._step import Step


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
    profile: Profile | None = None,
    progress: bool = True,
) -> State:
    """Train until `steps` steps are done, from the last checkpoint if there is one.

    The host never waits for the step that it has just dispatched, but to evaluate and
    to save: metrics are copied in the background and read one log interval later. A run
    that is killed and started again ends with the same bits as one that was not.

    SIGTERM, which schedulers send before they take a machine away, and Ctrl-C finish
    the step in flight, save it and raise `Preempted` (exit code 143) or
    KeyboardInterrupt; the handlers of the caller are back afterwards. A second
    Ctrl-C stops at once and saves nothing. With several processes SIGTERM or Ctrl-C in
    one of them stops all after the same step, if they were connected by
    `jax.distributed` with its preemption service, which is the default. Without a
    `checkpointer` SIGTERM in one process has its usual effect.

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
        and what `eval_fn` returns. `skipped` is the count since the last line;
        `step_time` (seconds) and `examples_per_second` (rows of the first array of the
        batch, over all devices) are means over the steps that ended since then, from
        the second one of the process on, without the time of evaluating and saving.
      log_every: steps between two lines.
      checkpointer: where to save state and data position, and to resume from. Its
        `best` metric is looked for in the line of the step that is saved: let
        `save_every` be a multiple of `eval_every`, or of `log_every`.
      save_every: steps between two checkpoints; the last step is always saved.
      eval_fn: `state -> {name: scalar}`; it must not donate the state.
      eval_every: steps between two evaluations; the last step is always evaluated.
      max_skipped: stop after so many skipped steps in a row; None for never.
      profile: steps to trace; the host waits for the last of them.
      progress: show a progress bar (process 0 only).

    Returns:
      The state after `steps` steps.

    Raises:
      ValueError: if a setting is out of range, if `batches` is neither of the two or
        ends too early, if the checkpoint is one of another model, or if neither the
        step nor `eval_fn` has the metric that `checkpointer` is to choose by.
      Preempted: after SIGTERM, with everything saved.
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
    _check_counts({"steps": steps, "max_skipped": max_skipped, **every}, profile)
    source = _Source(batches)
    state = _resume(checkpointer, state, source)
    done = int(jax.device_get(state.step))
    position, values = source.position(done), {}
    if writer is not None:
        writer.rewind(done)

    def due(every: int | None) -> bool:
        return done == steps or (every is not None and done % every == 0)

    def save(metrics: Mapping[str, Any]) -> None:
        if checkpointer is not None and done != checkpointer.latest:
            log.flush()  # a run that resumes here does not write these lines again
            given = metrics if checkpointer.best_metric in metrics else None
            with pace.pause():
                checkpointer.save(done, state, position, metrics=given)

    hidden = not progress or jax.process_index() != 0
    bar = tqdm(total=steps, initial=done, unit="step", disable=hidden)
    log, pace, tracer = LateLog(writer, bar, max_skipped), Pace(), Tracer(profile)
    interrupts = Interrupts(done, sigterm=checkpointer is not None)
    with interrupts, _ended(interrupts, bar, tracer, checkpointer):
        try:
            while done < steps:
                batch = source.draw(done, steps)
                batch = (
                    jax.device_put(batch) if mesh is None else shard_batch(batch, mesh)
                )
                pace.wait()
                tracer.before(done + 1)
                with interrupts.held():
                    state, metrics = step(state, batch)
                    done += 1
                    position = source.position(done)
                    pace.add(metrics, batch)
                    log.count(metrics)
                    values = {**metrics, **pace.metrics()} if due(log_every) else {}
                bar.update()
                tracer.after(done, metrics)
                interrupts.check(done)
                if eval_fn is not None and due(eval_every):
                    with pace.pause():
                        values |= jax.block_until_ready(dict(eval_fn(state)))
                if due(log_every) and (eval_fn is None or due(eval_every)):
                    _check_best(checkpointer, values)
                with interrupts.held():
                    log.add(done, values)
                    line, values = values, {}
                    if due(save_every):
                        save(line)
            log.flush()
        except (KeyboardInterrupt, Preempted):
            if interrupts.orderly:
                with interrupts.held():
                    log.add(done, values)
                    save(values)
            raise
    return state


def _resume(
    checkpointer: Checkpointer | None, state: State, source: "_Source"
) -> State:
    """Return where a run stands, and put its data there."""
    if checkpointer is None or checkpointer.latest is None:
        return state
    restored = checkpointer.restore(state)
    source.seek(restored.position)
    return restored.state


@contextlib.contextmanager
def _ended(
    interrupts: Interrupts, bar: tqdm, tracer: Tracer, checkpointer: Checkpointer | None
) -> Iterator[None]:
    """End what a run has begun, however it stops."""
    try:
        yield
    finally:
        bar.close()
        tracer.stop()
        if checkpointer is not None:
            with interrupts.held():
                checkpointer.wait()


def _check_counts(counts: Mapping[str, int | None], profile: Profile | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; it is {value}")
    if profile is not None and not 1 <= profile.first <= profile.last:
        raise ValueError(f"profile must have 1 <= first <= last; it is {profile}")


def _check_best(checkpointer: Checkpointer | None, line: Mapping[str, Any]) -> None:
    """Refuse a metric that is not in a line with everything in it."""
    name = None if checkpointer is None else checkpointer.best_metric
    if name is not None and name not in line:
        raise ValueError(
            "checkpointer must choose the best by a metric of the step or of eval_fn, "
            f"{sorted(line)}; it is {name!r}"
        )


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
