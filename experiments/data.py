"""Data sets of images, latents or vectors in memory, and batches of them by number.

| name                | what it reads                                          |
|---------------------|--------------------------------------------------------|
| `digits`            | 8x8 grey digits inside the scikit-learn wheel          |
| `digits_360`        | the same, another split: 360 digits held out           |
| `mnist`             | the four idx files, plain or `.gz`                     |
| `cifar10`           | the six files of the binary version                    |
| `folder`            | image files, one sub-folder for each class             |
| `npz`               | arrays `images` and `labels` of one file               |
| `synthetic_mnist`   | made-up images of the shape of MNIST, for smoke runs   |
| `synthetic_cifar10` | made-up images of the shape of CIFAR-10                |
| `latents`           | arrays `latents` and `labels` of one npz file          |
| `synthetic_latents` | made-up latents of 256x256 images, 1000 classes        |
| `two_moons`         | points in the plane, of known density                  |
| `patches`           | 8x8 grey patches of scikit-learn's photographs, 63 of  |
|                     | their numbers                                          |

What fits into memory needs no input pipeline: `batches` gathers a whole batch at once,
as a function of the step, and a run resumes from its step number alone. What does not
fit, or needs work on each example, is for `genlib.train.pipeline`.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import _readers, _vectors

Batch = dict[str, np.ndarray]

# Where `load` looks when it is given no directory.
DIRECTORY_VARIABLE = "GENLIB_DATA"

_BUILT_IN = {
    "digits": _readers.digits,
    "digits_360": functools.partial(_readers.digits, 360),
    "synthetic_mnist": functools.partial(_readers.synthetic, (28, 28, 1)),
    "synthetic_cifar10": functools.partial(_readers.synthetic, (32, 32, 3)),
    "synthetic_latents": _readers.synthetic_latents,
}
_VECTORS = {"two_moons": _vectors.two_moons, "patches": _vectors.patches}
_ON_DISK = {
    "mnist": _readers.mnist,
    "cifar10": _readers.cifar10,
    "folder": _readers.folder,
    "npz": _readers.npz,
    "latents": _readers.latents,
}


class Split(NamedTuple):
    """Hold the images and labels of one split.

    images: float32 [N, H, W, C], pixels in [-1, 1] or latents of unit variance; [N, D]
      for vectors, in their own units.
    labels: int32 [N] in [0, num_classes).
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Hold a data set.

    levels: pixels had the integer values 0 ... levels - 1; 0 for latents and vectors.
    scale: what latents were multiplied by; divide by it before decoding them.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    levels: int
    scale: float = 1.0


def load(
    name: str,
    directory: str | os.PathLike | None = None,
    *,
    size: int = 0,
    channels: int = 3,
    scale: float = 0.0,
) -> Dataset:
    """Load a data set by name, with pixels k scaled to 2 k / (levels - 1) - 1.

    Latents z become scale z, by default of unit variance over all training latents
    (arXiv:2112.10752 gives this rule, without a shift). A given scale is for latents of
    a known encoder: 0.18215 for that of Stable Diffusion 1 and 2.

    Args:
      name: one of the names in the table of this module.
      directory: where the files are: for `mnist` and `cifar10` their folder or the one
        above it, for `npz` and `latents` the file itself. Empty or None stands for the
        environment variable GENLIB_DATA. `digits` and `synthetic_*` take none.
      size: height and width in pixels to which `folder` crops and resizes.
      channels: 1 (grey) or 3 (RGB), for `folder`.
      scale: of latents; 0 stands for 1 / (their standard deviation).

    Returns:
      The data set. `digits` is split 1400/397 by `RandomState(0).permutation`, and
      `digits_360` 1437/360; `two_moons` are 200,000 and 20,000 points; `patches` come
      from the left (training) and the right halves of the photographs. The
      three `folder`, `npz` and `latents` hold out the last tenth of such a permutation,
      unless they bring their own test split: sub-folders `train` and `test`, each with
      one sub-folder for each class, or arrays `test_images` (`test_latents`) and
      `test_labels`.

    Raises:
      ValueError: an unknown name, an argument that the data set does not take, or a
        directory or file that is missing, empty, truncated or of another format.

    >>> digits = load("digits")
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1400, 8, 8, 1), (397, 8, 8, 1), 10)
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale must be 0 or positive, got {scale}")
    inside = {**_BUILT_IN, **_VECTORS}
    if name not in inside and name not in _ON_DISK:
        known = ", ".join((*inside, *_ON_DISK))
        raise ValueError(f"name must be one of {known}, got {name!r}")
    if name in inside:
        if directory:
            raise ValueError(f"directory must be empty for {name}, got {directory!r}")
        raw = inside[name]()
    elif name == "folder":
        raw = _readers.folder(_existing(name, directory), size, channels)
    else:
        raw = _ON_DISK[name](_existing(name, directory))
    if raw.levels == 0 and name not in _VECTORS:
        return _latents(name, raw, scale)
    if scale:
        raise ValueError(f"scale must be 0 for {name}, got {scale}")
    if name in _VECTORS:
        splits = Split(*raw[:2]), Split(*raw[2:4])
        return Dataset(name, *splits, raw.num_classes, 0)
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
    rows: np.ndarray | None = None,
) -> Callable[[int], Batch]:
    """Give training batches by number: the same batch k whoever asks, and when.

    Batch k holds positions k B ... (k + 1) B - 1 of one endless stream of epochs, each
    a permutation drawn from (seed, epoch). So every batch is full, every example comes
    once an epoch, and a run resumes exactly from its step number, on any number of
    processes.

    Args:
      dataset: the data set; its `train` split is read.
      batch_size: examples in a batch of all processes, B.
      seed: of the permutations and flips.
      flip: mirror half of the images left to right, chosen anew each epoch.
      dequantize: spread each pixel uniformly over its bin, half a level to either side,
        anew in each batch: a density can then be fitted to the images.
      rows: the rows of each batch to give, R of them, all by default: several processes
        take `train.process_rows(batch_size, mesh)`.

    Returns:
      A function of a step >= 0 to a dict of `image`, float32 [R, H, W, C], and
      `label`, int32 [R].

    Raises:
      ValueError: `batch_size` below 1, rows that it does not have, no training images,
        latents to dequantize, vectors to flip, or a negative seed or step.

    >>> batch = batches(load("digits"), batch_size=32, seed=0)(1000)
    >>> batch["image"].shape, batch["label"].shape
    ((32, 8, 8, 1), (32,))
    """
    images, labels = dataset.train
    count = len(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if rows.size == 0 or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"rows must be in [0, {batch_size}), got {rows}")
    if dequantize and dataset.levels == 0:
        raise ValueError(
            f"dequantize must be False for {dataset.name}: it has no pixels"
        )
    if count == 0:
        raise ValueError(f"dataset must have training images, {dataset.name} has none")
    if flip and images.ndim != 4:
        raise ValueError(f"flip must be False for {dataset.name}: it has no images")
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
        epochs, offsets = np.divmod(step * batch_size + rows, count)
        index = np.empty(len(rows), np.int64)
        mirrored = np.empty(len(rows), bool)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, coins = draw(int(epoch))
            index[here], mirrored[here] = order[offsets[here]], coins[offsets[here]]
        image = images[index]
        if flip:
            image[mirrored] = image[mirrored, :, ::-1]
        if dequantize:
            shape = batch_size, *image.shape[1:]  # those of the other processes too
            u = np.random.RandomState([seed, step, 1]).rand(*shape)[rows]
            image += (2 * u - 1) / (dataset.levels - 1)
        return {"image": image, "label": labels[index]}

    return batch


def integers(images: np.ndarray, levels: int) -> np.ndarray:
    """Return the pixels 0 ... levels - 1 that images in [-1, 1] were scaled from.

    >>> integers(np.array([-1.0, 0.0, 1.0]), levels=17)
    array([ 0,  8, 16], dtype=int32)
    """
    return np.round((images + 1) * (levels - 1) / 2).astype(np.int32)


def equal_batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut a split into batches of one size, so that one program takes them all.

    Yields:
      The rows of a batch, and how many of them, from the first, are new: the last batch
      takes rows again, to be as large as the others.

    >>> [(rows.tolist(), new) for rows, new in equal_batches(5, 3)]
    [([0, 1, 2], 3), ([3, 4, 0], 2)]
    """
    size = min(size, count)
    for first in range(0, count, size):
        yield np.arange(first, first + size) % count, min(size, count - first)


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


def _latents(name: str, raw: _readers.Raw, scale: float) -> Dataset:
    if not scale:
        # By example, in float64: latents of ImageNet are 20 GB and not to be copied.
        x = raw.train_images.reshape(len(raw.train_images), -1)
        mean = x.mean(1, dtype=np.float64).mean()
        variance = np.einsum("nd,nd->n", x, x).mean(dtype=np.float64) / x.shape[1]
        variance -= mean**2
        if variance <= 1e-6 * mean**2:
            raise ValueError(f"latents must vary, those of {name} are all {mean:.4g}")
        scale = float(variance**-0.5)
    for images in (raw.train_images, raw.test_images):
        images *= np.float32(scale)  # in place: they were read for this
    train = Split(raw.train_images, raw.train_labels.astype(np.int32))
    test = Split(raw.test_images, raw.test_labels.astype(np.int32))
    return Dataset(name, train, test, raw.num_classes, 0, scale)
