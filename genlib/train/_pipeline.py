"""Input pipelines: the same global batches, in the same order, for any host count."""

import functools
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from genlib import tree
from genlib.train._batches import Batches

Transform = Callable[[Any, np.random.Generator], Any]


class Source(Protocol):
    """Examples by number, pytrees of equal structure and shapes.

    A list, an `array_source`, a Grain data source or a PyTorch map-style data set.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def array_source(arrays: Any) -> Source:
    """Read arrays as examples: example i is the pytree of their rows i.

    The rows are read-only views: a transform cannot change the data set.

    Args:
      arrays: pytree of arrays [N, ...] of one N; memory-mapped ones stay on disk.

    Raises:
      ValueError: if there are no arrays, one is a scalar, or their lengths differ.

    >>> source = array_source({"x": np.eye(3), "label": np.arange(5, 8)})
    >>> len(source), source[1]["x"].tolist(), int(source[1]["label"])
    (3, [0.0, 1.0, 0.0], 6)
    """
    arrays = jax.tree.map(_read_only, arrays)
    lengths = {
        name: len(x) if x.ndim else None
        for name, x in tree.named(arrays, "arrays").items()
    }
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(
            f"arrays must be arrays of one length; their lengths are {lengths}"
        )
    return _ArraySource(arrays, next(iter(lengths.values())) or 0)


def pipeline(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    transforms: Sequence[Transform] = (),
    epochs: int | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    threads: int = 8,
    prefetch: int = 8,
) -> Batches:
    """Give shuffled, transformed batches, made in threads ahead of their use.

    Batch k of all processes together holds positions k B ... (k + 1) B - 1 of one
    stream of epochs, each a permutation drawn from (seed, epoch). A process makes its
    own rows of it, and `shard_batch` puts them together. A transform draws from (seed,
    epoch, example). So every batch is full, and is the same whatever the number of
    processes and threads, before and after a restart.

    Args:
      source: examples by number. Their leaves are stacked.
      batch_size: rows of the global batch, B. It may exceed the number of examples: a
        batch then spans epochs.
      seed: of the order and the transforms.
      shuffle: False for the order of the source in every epoch.
      transforms: `(example, rng) -> example`, applied in order; threads call them.
      epochs: passes over the source, all but the last incomplete batch; None for ever.
      rows: the rows of the global batch that this process makes, R of them:
        `process_rows(batch_size, mesh)`. By default process p of n makes the rows from
        p B / n to (p + 1) B / n, which is right on a mesh of devices in their order.
      threads: batches that are made at once; 0 makes them when they are asked for.
      prefetch: batches that may wait, made or in the making.

    Returns:
      An iterator of pytrees of arrays [R, ...], for `fit`. Its state is JSON: the
      number of batches drawn, and what the stream depends on.

    Raises:
      ValueError: if `source` is empty, has no numbered examples or is too short for one
        batch in all `epochs`, if `batch_size` does not divide by the processes and
        there are no `rows`, or if a number is out of range.
      ImportError: without Grain.

    >>> source = array_source({"x": np.arange(10)})
    >>> [batch["x"].shape for batch in pipeline(source, 4, seed=0, epochs=2)]
    [(4,), (4,), (4,), (4,), (4,)]
    >>> first, rest = pipeline(source, 4, seed=0), pipeline(source, 4, seed=0)
    >>> _ = next(first)
    >>> rest.set_state(first.get_state())
    >>> bool((next(first)["x"] == next(rest)["x"]).all())
    True
    """
    count = _length(source)
    batch_size, seed = operator.index(batch_size), operator.index(seed)
    local = _rows(batch_size, rows)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32); it is {seed}")
    if epochs is not None and epochs * count < batch_size:
        raise ValueError(
            f"epochs must be at least 1 and hold a batch of {batch_size}; they are "
            f"{epochs} of {count} examples"
        )

    # Batches in the making may lie on both sides of the end of several short epochs.
    @functools.lru_cache(maxsize=4)
    def order(epoch: int) -> np.ndarray:
        # RandomState, not Generator: NumPy promises that its stream never changes.
        return np.random.RandomState([seed, epoch]).permutation(count)

    def batch(number: int) -> Any:
        examples = []
        for row in local:
            epoch, index = divmod(number * batch_size + row, count)
            index = int(order(epoch)[index]) if shuffle else index
            examples.append(_example(source, transforms, seed, epoch, index))
        return _stack(examples)

    stream = {
        "batch_size": batch_size,
        "examples": count,
        "seed": seed,
        "shuffle": shuffle,
    }
    total = sys.maxsize if epochs is None else epochs * count // batch_size
    return Batches(batch, total, stream, threads, prefetch)


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    transforms: Sequence[Transform] = (),
    seed: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    threads: int = 8,
    prefetch: int = 8,
) -> Batches:
    """Give every example once, in order, in full batches with a weight for each row.

    The last batch is filled up with copies of the last example of weight 0, so that
    sums of weight * value over the batches are those over the examples, whatever the
    batch size and the number of processes, and one shape is compiled.

    Args:
      source: examples by number, dicts. Where they have a `weight` (of their tokens,
        for instance), it is kept, and 0 in the copies.
      batch_size: rows of the global batch, over all processes.
      transforms: as in `pipeline`; each example is always drawn alike.
      seed: of the transforms.
      rows: as in `pipeline`.
      threads: as in `pipeline`.
      prefetch: as in `pipeline`.

    Returns:
      An iterator of dicts of arrays [R, ...], with `weight` in float32. Processes
      get the same number of batches. Make a new one for another pass.

    Raises:
      ValueError: if an argument is out of range, as in `pipeline`, or if an example is
        not a dict.
      ImportError: without Grain.

    >>> source = array_source({"x": np.arange(5.0)})
    >>> batches = list(eval_batches(source, 4))
    >>> batches[1]["weight"].tolist()
    [1.0, 0.0, 0.0, 0.0]
    >>> float(sum((b["weight"] * b["x"]).sum() for b in batches))
    10.0
    """
    count = _length(source)
    local = _rows(batch_size, rows)

    def batch(number: int) -> Any:
        examples = []
        for row in local:
            position = number * batch_size + row
            index = min(position, count - 1)
            example = _example(source, transforms, seed, 0, index)
            if not isinstance(example, Mapping):
                raise ValueError(
                    f"source must give dicts, to add a weight; it gave {type(example)}"
                )
            kept = np.float32(position < count)
            weight = np.asarray(example.get("weight", 1), np.float32) * kept
            examples.append({**example, "weight": weight})
        return _stack(examples)

    stream = {"batch_size": batch_size, "examples": count, "seed": seed}
    return Batches(batch, -(-count // batch_size), stream, threads, prefetch)


class _ArraySource:
    def __init__(self, arrays: Any, count: int) -> None:
        self._arrays, self._count = arrays, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return jax.tree.map(lambda x: x[index], self._arrays)


def _read_only(x: Any) -> np.ndarray:
    view = np.asarray(x).view()
    view.flags.writeable = False
    return view


def _length(source: Source) -> int:
    if isinstance(source, Mapping):
        raise ValueError("source must have numbered examples; use array_source")
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            f"source must have numbered examples and a length; it is {type(source)}"
        )
    if len(source) == 0:
        raise ValueError("source must have examples; its length is 0")
    return len(source)


def _rows(batch_size: int, rows: Sequence[int] | np.ndarray | None) -> list[int]:
    """Return the rows of a global batch that are those of this process."""
    processes = 1 if rows is not None else jax.process_count()
    if batch_size < 1 or batch_size % processes:
        raise ValueError(
            f"batch_size must be positive and divide by the {processes} processes; it "
            f"is {batch_size}"
        )
    if rows is None:
        local = batch_size // processes
        first = jax.process_index() * local
        return list(range(first, first + local))
    local = np.asarray(rows)
    if (
        local.ndim != 1
        or local.size == 0
        or local.dtype.kind not in "iu"
        or not 0 <= local.min() <= local.max() < batch_size
    ):
        raise ValueError(
            f"rows must be integers in [0, {batch_size}), at least one; they are {rows}"
        )
    return local.tolist()


def _example(
    source: Source, transforms: Sequence[Transform], seed: int, epoch: int, index: int
) -> Any:
    example = source[index]
    if transforms:
        # A counter of its own for each example, 2**128 draws from the next.
        key = np.array([seed, 0], np.uint64)  # a plain int takes twice the time
        counter = np.array([0, 0, epoch, index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
        for transform in transforms:
            example = transform(example, rng)
    return example


def _stack(examples: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
