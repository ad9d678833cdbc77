"""SIGTERM and Ctrl-C: stopping between steps, all processes at the same one."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """Training was stopped by SIGTERM, and `fit` has saved before it raised this.

    Not caught, it ends the process with the exit code 143 = 128 + SIGTERM, which
    schedulers take for what it is: a job to start again.

    >>> Preempted().code
    143
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interrupts:
    """SIGTERM and Ctrl-C as exceptions that are raised where nothing is in flight.

    In one process they are raised at once, but after a `held()` block; a second Ctrl-C
    inside one is raised at once, too. With several processes the preemption service of
    `jax.distributed` hears SIGTERM in any of them and `check` raises in all of them
    after the same step; Ctrl-C is passed on to it, and a second one raised at once.

    Args:
      step: the steps done, equal on all processes.
      sigterm: whether to take SIGTERM (in one process).
    """

    def __init__(self, step: int, *, sigterm: bool) -> None:
        self._several = jax.process_count() > 1
        self._service = self._several and _service_runs(step)
        self._numbers = [signal.SIGINT] if self._service or not self._several else []
        if sigterm and not self._several:
            self._numbers.append(signal.SIGTERM)
        self._before: dict[int, Any] = {}
        self._holding = False
        self._pending: int | None = None
        # Whether no state is lost in a step and all processes stop after the same one,
        # so that they can save it.
        self.orderly = not self._several

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                before = signal.getsignal(number)
                # What is ignored (SIGINT in the background of a shell) stays so; what
                # was not set from Python cannot be put back.
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals back until the end of the block."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending is not None and not self._several:
            number, self._pending = self._pending, None
            self._act(number)

    def check(self, step: int) -> None:
        """Raise on all processes if one was told to stop and this is the step to do it.

        Call it after each step.
        """
        if self._service and multihost_utils.reached_preemption_sync_point(step):
            self.orderly = True
            raise Preempted if self._pending is None else KeyboardInterrupt

    def _handle(self, number: int, _: Any) -> None:
        if self._several:
            if self._pending is not None:
                raise KeyboardInterrupt
            self._pending = number
            signal.raise_signal(signal.SIGTERM)  # heard by the preemption service
        elif not self._holding:
            self._act(number)
        elif number == self._pending == signal.SIGINT:
            self.orderly = False
            raise KeyboardInterrupt
        elif self._pending is None:
            self._pending = number

    def _act(self, number: int) -> None:
        if number == signal.SIGTERM:
            raise Preempted
        before = self._before[number]
        if not callable(before):
            raise KeyboardInterrupt
        before(number, None)


def _service_runs(step: int) -> bool:
    if not jax.distributed.is_initialized():
        return False
    try:
        multihost_utils.reached_preemption_sync_point(step)
    except RuntimeError:  # jax_enable_preemption_service is off
        return False
    return True
