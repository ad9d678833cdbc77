"""Image data sets in memory, and batches of them by number.

| name                | what it reads                                          |
|---------------------|--------------------------------------------------------|
| `digits`            | 8x8 grey digits inside the scikit-learn wheel          |
| `mnist`             | the four idx files, plain or `.gz`                     |
| `cifar10`           | the six files of the binary version                    |
| `folder`            | image files, one sub-folder for each class             |
| `npz`               | arrays `images` and `labels` of one file               |
| `synthetic_mnist`   | made-up images of the shape of MNIST, for smoke runs   |
| `synthetic_cifar10` | made-up images of the shape of CIFAR-10                |
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import _readers

Batch = dict[str, np.ndarray]

# Where `load` looks when it is given no directory.
DIRECTORY_VARIABLE = "GENLIB_DATA"

_BUILT_IN = {
    "digits": _readers.digits,
    "synthetic_mnist": functools.partial(_readers.synthetic, (28, 28, 1)),
    "synthetic_cifar10": functools.partial(_readers.synthetic, (32, 32, 3)),
}
_ON_DISK = {
    "mnist": _readers.mnist,
    "cifar10": _readers.cifar10,
    "folder": _readers.folder,
    "npz": _readers.npz,
}


class Split(NamedTuple):
    """Hold the images and labels of one split.

    images: float32 [N, H, W, C] in [-1, 1]. labels: int32 [N] in [0, num_classes).
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Hold a data set whose pixels had the integer values 0 ... levels - 1."""

    name: str
    train: Split
    test: Split
    num_classes: int
    levels: int


def load(
    name: str,
    directory: str | os.PathLike | None = None,
    *,
    size: int = 0,
    channels: int = 3,
) -> Dataset:
    """Load a data set by name, with pixels k scaled to 2 k / (levels - 1) - 1.

    Args:
      name: one of the names in the table of this module.
      directory: where the files are: for `mnist` and `cifar10` their folder or the one
        above it, for `npz` the file itself. Empty or None stands for the environment
        variable GENLIB_DATA. `digits` and `synthetic_*` take none.
      size: height and width in pixels to which `folder` crops and resizes.
      channels: 1 (grey) or 3 (RGB), for `folder`.

    Returns:
      The data set. `digits` is split 1400/397 by `RandomState(0).permutation`. `folder`
      and `npz` hold out the last tenth of such a permutation, unless they bring their
      own test split: sub-folders `train` and `test`, each with one sub-folder for each
      class, or arrays `test_images` and `test_labels`.

    Raises:
      ValueError: an unknown name, an argument that the data set does not take, or a
        directory or file that is missing, empty, truncated or of another format.

    >>> digits = load("digits")
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1400, 8, 8, 1), (397, 8, 8, 1), 10)
    """
    if name not in _BUILT_IN and name not in _ON_DISK:
        known = ", ".join((*_BUILT_IN, *_ON_DISK))
        raise ValueError(f"name must be one of {known}, got {name!r}")
    if name in _BUILT_IN:
        if directory:
            raise ValueError(f"directory must be empty for {name}, got {directory!r}")
        raw = _BUILT_IN[name]()
    elif name == "folder":
        raw = _readers.folder(_existing(name, directory), size, channels)
    else:
        raw = _ON_DISK[name](_existing(name, directory))
    train = _split(raw.train_images, raw.train_labels, raw.levels)
    test = _split(raw.test_images, raw.test_labels, raw.levels)
    return Dataset(name, train, test, raw.num_classes, raw.levels)


def batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    *,
    flip: bool = False,
    dequantize: bool = False,
) -> Callable[[int], Batch]:
    """Give training batches by number: the same batch k whoever asks, and when.

    Batch k holds positions k B ... (k + 1) B - 1 of one endless stream of epochs, each
    a permutation drawn from (seed, epoch). So every batch is full, every example comes
    once an epoch, and a run resumes exactly from its step number.

    Args:
      dataset: the data set; its `train` split is read.
      batch_size: examples in a batch, B.
      seed: of the permutations and flips.
      flip: mirror half of the images left to right, chosen anew each epoch.
      dequantize: spread each pixel uniformly over its bin, half a level to either side,
        anew in each batch: a density can then be fitted to the images.

    Returns:
      A function of a step >= 0 to a dict of `image`, float32 [B, H, W, C], and
      `label`, int32 [B].

    Raises:
      ValueError: `batch_size` below 1, no training images, or a negative seed or step.

    >>> batch = batches(load("digits"), batch_size=32, seed=0)(1000)
    >>> batch["image"].shape, batch["label"].shape
    ((32, 8, 8, 1), (32,))
    """
    images, labels = dataset.train
    count = len(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if count == 0:
        raise ValueError(f"dataset must have training images, {dataset.name} has none")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {seed}")

    @functools.lru_cache(maxsize=2)  # a batch at the end of an epoch reads two
    def draw(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        # RandomState, not Generator: NumPy promises that its stream never changes.
        random = np.random.RandomState([seed, epoch])
        return random.permutation(count), random.rand(count) < 0.5

    def batch(step: int) -> Batch:
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        first = step * batch_size
        epochs, offsets = np.divmod(np.arange(first, first + batch_size), count)
        index = np.empty(batch_size, np.int64)
        mirrored = np.empty(batch_size, bool)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, coins = draw(int(epoch))
            index[here], mirrored[here] = order[offsets[here]], coins[offsets[here]]
        image = images[index]
        if flip:
            image[mirrored] = image[mirrored, :, ::-1]
        if dequantize:
            u = np.random.RandomState([seed, step, 1]).rand(*image.shape)
            image += (2 * u - 1) / (dataset.levels - 1)
        return {"image": image, "label": labels[index]}

    return batch


def _existing(name: str, directory: str | os.PathLike | None) -> Path:
    where = directory or os.environ.get(DIRECTORY_VARIABLE)
    if not where:
        raise ValueError(
            f"directory must say where the {name} files are (or set the environment "
            f"variable {DIRECTORY_VARIABLE}), got {directory!r}"
        )
    path = Path(where).expanduser()
    if not path.exists():
        raise ValueError(f"directory must exist, got {str(path)!r}")
    return path


def _split(pixels: np.ndarray, labels: np.ndarray, levels: int) -> Split:
    images = pixels.astype(np.float32)
    images /= (levels - 1) / 2  # in place: CIFAR-10 is 0.6 GB as float32
    images -= 1
    return Split(images, labels.astype(np.int32))
