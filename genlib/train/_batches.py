"""An iterator of batches by number, made ahead by threads, with an exact position."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Batches:
    """Batches in order, made ahead by threads; `pipeline` and `eval_batches` make one.

    Args:
      batch: a function of the number of a batch, from 0, that threads may call.
      count: the number of batches.
      stream: JSON: what the batches depend on, so that a state of others is refused.
      threads: batches that are made at once; 0 makes them when they are asked for.
      prefetch: batches that may wait.

    Raises:
      ValueError: if `threads` is negative or `prefetch` not positive.
      ImportError: without Grain.

    >>> batches = Batches(lambda number: number**2, 4, {}, threads=2, prefetch=2)
    >>> list(batches), batches.get_state()
    ([0, 1, 4, 9], {'next_batch': 4, 'stream': {}})
    """

    def __init__(
        self,
        batch: Callable[[int], Any],
        count: int,
        stream: Mapping[str, Any],
        threads: int,
        prefetch: int,
    ) -> None:
        if threads < 0 or prefetch < 1:
            raise ValueError(
                "threads must be at least 0 and prefetch at least 1; they are "
                f"{threads} and {prefetch}"
            )
        try:
            import grain
        except ImportError as error:
            raise ImportError(
                "pipelines need grain: pip install genlib[data], or give fit a "
                "function of the step"
            ) from error
        # Threads: the worker processes of Grain read absl's flags, which a notebook
        # never parsed, and would copy the source.
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=prefetch if threads else 0
        )

        def start(first: int) -> Iterator[Any]:
            numbers = grain.MapDataset.range(first, count)
            return iter(numbers.map(batch).to_iter_dataset(options))

        self._start, self._count, self._stream = start, count, dict(stream)
        self._next, self._iterator = 0, None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Any:
        if self._next == self._count:
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._start(self._next)
        try:
            batch = next(self._iterator)
        except StopIteration as error:
            self._iterator = None
            raise RuntimeError("a source or transform raised StopIteration") from error
        except BaseException:
            self._iterator = None  # it is past the batch that was not delivered
            raise
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return, as JSON, how many batches were drawn, and of which stream."""
        return {"next_batch": self._next, "stream": dict(self._stream)}

    def set_state(self, state: Any, /) -> None:
        """Go to where `get_state` was called, here or in a run of other processes.

        Raises:
          ValueError: if the state is not of this stream.
        """
        if not isinstance(state, Mapping) or state.keys() != self.get_state().keys():
            raise ValueError(f"state must be one of a pipeline; it is {state!r}")
        if state["stream"] != self._stream:
            raise ValueError(
                f"state must be of this stream, {self._stream}; it is of "
                f"{state['stream']}"
            )
        first = state["next_batch"]
        if not isinstance(first, int) or not 0 <= first <= self._count:
            raise ValueError(
                f"state must have a next_batch in [0, {self._count}]; it is {first!r}"
            )
        self._next, self._iterator = first, None
