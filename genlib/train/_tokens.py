"""Token streams as examples: windows of a flat array, and packed documents."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from genlib.train._pipeline import Source


def token_windows(tokens: Any, length: int, *, stride: int | None = None) -> Source:
    """Read windows of a flat array of tokens as examples.

    Example i is {"tokens": tokens[i stride : i stride + length]}, in int32. A rest that
    fills no window is left out. To predict the next token from `length` others, take
    windows of `length + 1` with `stride=length`.

    Args:
      tokens: integers [N]; a memory-mapped file is read where it is asked for.
      length: tokens in a window.
      stride: tokens from the start of one window to that of the next; by default
        `length`.

    Raises:
      ValueError: if `tokens` are not integers [N] with N >= `length`, or a number is
        not positive.

    >>> windows = token_windows(np.arange(10, dtype=np.uint16), 4, stride=3)
    >>> [window["tokens"].tolist() for window in windows]
    [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    """
    tokens = _integers("tokens", tokens)
    stride = length if stride is None else stride
    if length < 1 or stride < 1:
        raise ValueError(
            f"length and stride must be positive; they are {length} and {stride}"
        )
    if len(tokens) < length:
        raise ValueError(
            f"tokens must fill a window of {length}; there are {len(tokens)}"
        )
    return _Windows(tokens, length, stride)


def pack_documents(
    documents: Iterable[Sequence[int] | np.ndarray], length: int
) -> dict[str, np.ndarray]:
    """Pack documents into rows of one length, by first fit in the order given.

    Each document goes, whole, to the first row with room for it. A longer one is cut
    into pieces of `length`, which count as documents. Every token is in one row, once;
    documents without tokens vanish.

    Args:
      documents: token ids, one sequence for each document.
      length: tokens in a row.

    Returns:
      Arrays [rows, length], for `array_source`: `tokens` int32, 0 where a row is not
      full; `segments` int32, 1, 2, ... for the documents of a row and 0 for no
      document: a token may attend to those of its own segment; `positions` int32, from
      0 in each document; `weight` float32, 1 for tokens and 0 where there is none.

    Raises:
      ValueError: if `length` is not positive, a document is not a sequence of integers,
        or there are no tokens.

    >>> packed = pack_documents([[5, 6, 7], [8, 9, 8], [4]], length=4)
    >>> packed["tokens"].tolist()
    [[5, 6, 7, 4], [8, 9, 8, 0]]
    >>> packed["segments"].tolist(), packed["positions"].tolist()
    ([[1, 1, 1, 2], [1, 1, 1, 0]], [[0, 1, 2, 0], [0, 1, 2, 0]])
    """
    if length < 1:
        raise ValueError(f"length must be positive; it is {length}")
    pieces = []
    for number, document in enumerate(documents):
        document = _integers(f"documents[{number}]", document)
        pieces += [document[i : i + length] for i in range(0, len(document), length)]
    if not pieces:
        raise ValueError("documents must have tokens; there are none")

    used = np.zeros(len(pieces), np.int64)  # as many rows as can be needed
    placed = []
    rows = 0
    for piece in pieces:
        row = int(np.argmax(used[: rows + 1] + len(piece) <= length))
        placed.append((row, int(used[row])))
        used[row] += len(piece)
        rows = max(rows, row + 1)

    shape = rows, length
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    count = np.zeros(rows, np.int32)
    for piece, (row, first) in zip(pieces, placed, strict=True):
        count[row] += 1
        here = row, slice(first, first + len(piece))
        tokens[here], segments[here] = _int32("documents", piece), count[row]
        positions[here] = np.arange(len(piece))
    weight = (segments > 0).astype(np.float32)
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "weight": weight,
    }


class _Windows:
    def __init__(self, tokens: np.ndarray, length: int, stride: int) -> None:
        self._tokens, self._length, self._stride = tokens, length, stride

    def __len__(self) -> int:
        return (len(self._tokens) - self._length) // self._stride + 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}); it is {index}")
        first = index * self._stride
        window = self._tokens[first : first + self._length]
        return {"tokens": _int32("tokens", window)}


def _int32(name: str, values: np.ndarray) -> np.ndarray:
    """Return token ids as int32, or refuse those that would become others."""
    limits = np.iinfo(np.int32)
    if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
        raise ValueError(f"{name} must be within int32; they reach {values.max()}")
    return np.array(values, np.int32)


def _integers(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    values = values if values.size else values.astype(np.int32)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integers [N]; it is {values.dtype} {list(values.shape)}"
        )
    return values
