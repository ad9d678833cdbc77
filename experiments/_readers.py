"""Readers of files into integer pixels or latents, each with its own checks."""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


class Raw(NamedTuple):
    """Hold pixels in 0 ... levels - 1 as [N, H, W, C] and labels as [N].

    Latents are float32 [N, H, W, C], with levels 0.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    levels: int


def digits(test: int = 397) -> Raw:
    """Read the 1797 digits of scikit-learn, split by `RandomState(0)`."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1)
    order = np.random.RandomState(0).permutation(len(images))
    first, last = order[:-test], order[-test:]
    return Raw(images[first], labels[first], images[last], labels[last], 10, 17)


def synthetic(shape: tuple[int, int, int], count: int = 256) -> Raw:
    """Make `count` images of ten classes: a blob whose place is its class, in noise."""
    height, width, channels = shape
    random = np.random.RandomState(0)
    labels = np.arange(count + 64) % 10
    angle = 2 * np.pi * labels / 10
    rows = np.arange(height) - height * (0.5 + 0.25 * np.sin(angle))[:, None]
    columns = np.arange(width) - width * (0.5 + 0.25 * np.cos(angle))[:, None]
    distance = rows[:, :, None] ** 2 + columns[:, None, :] ** 2
    blobs = 200 * np.exp(-distance / (2 * (height / 8) ** 2))[..., None]
    images = blobs + 55 * random.rand(len(labels), height, width, channels)
    images = images.astype(np.uint8)
    train, test = slice(None, count), slice(count, None)
    return Raw(images[train], labels[train], images[test], labels[test], 10, 256)


def synthetic_latents(count: int = 256) -> Raw:
    """Make `count` latents of 16 of 1000 classes: 8x8 squares in noise."""
    random = np.random.RandomState(0)
    labels = 62 * (np.arange(count + 64) % 16)
    patches = random.randn(1000, 8, 8, 4)[labels].repeat(4, axis=1).repeat(4, axis=2)
    latents = (patches + random.randn(*patches.shape)).astype(np.float32)
    train, test = slice(None, count), slice(count, None)
    return Raw(latents[train], labels[train], latents[test], labels[test], 1000, 0)


def mnist(directory: Path) -> Raw:
    """Read the four idx files of MNIST, plain or gzipped."""
    directory = _holding(directory, "mnist", MNIST_FILES[0])
    arrays = [_idx(_plain_or_gz(directory / name)) for name in MNIST_FILES]
    train, train_labels, test, test_labels = arrays
    for images, labels in ((train, train_labels), (test, test_labels)):
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max() > 9:
            raise ValueError(
                f"{directory} must hold images [N, H, W] and N labels 0 ... 9, got "
                f"images {images.shape}, labels {labels.shape} up to {labels.max()}"
            )
    return Raw(train[..., None], train_labels, test[..., None], test_labels, 10, 256)


def cifar10(directory: Path) -> Raw:
    """Read the six files of the binary version of CIFAR-10."""
    directory = _holding(directory, "cifar-10-batches-bin", CIFAR10_FILES[0])
    record = 1 + 32 * 32 * 3
    images, labels = [], []
    for name in CIFAR10_FILES:
        data = _bytes(_present(directory / name))
        if len(data) == 0 or len(data) % record:
            raise ValueError(
                f"directory must hold whole files: {directory / name} must have a "
                f"multiple of {record} bytes, got {len(data)}"
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, record)
        labels.append(rows[:, 0])
        images.append(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        if labels[-1].max() > 9:
            raise ValueError(
                f"directory must hold labels 0 ... 9, got {labels[-1].max()} in "
                f"{directory / name}: is it the binary version of CIFAR-10?"
            )
    train, train_labels = np.concatenate(images[:5]), np.concatenate(labels[:5])
    return Raw(train, train_labels, images[5], labels[5], 10, 256)


def folder(directory: Path, size: int, channels: int) -> Raw:
    """Read image files, one sub-folder for each class, cropped and resized."""
    if size < 1:
        raise ValueError(
            f"size must be the pixels to resize to, at least 1, got {size}"
        )
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if not directory.is_dir():
        raise ValueError(f"directory must be a folder, got {str(directory)!r}")
    classes = _classes(directory)
    if classes != ["test", "train"]:
        return _held_out(*_images(directory, classes, size, channels), len(classes))
    classes = _classes(directory / "train")
    if unknown := set(_classes(directory / "test")) - set(classes):
        raise ValueError(
            f"directory must hold the same classes in train and test, got "
            f"{sorted(unknown)} only in test"
        )
    return Raw(
        *_images(directory / "train", classes, size, channels),
        *_images(directory / "test", classes, size, channels),
        len(classes),
        256,
    )


def npz(path: Path) -> Raw:
    """Read `images` and `labels`, and `test_images` and `test_labels` if there."""
    return _pairs(path, "images", 256)


def latents(path: Path) -> Raw:
    """Read `latents` and `labels`, and `test_latents` and `test_labels` if there."""
    return _pairs(path, "latents", 0)


def _pairs(path: Path, what: str, levels: int) -> Raw:
    if not path.is_file():
        raise ValueError(f"directory must be an .npz file, got {str(path)!r}")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (
        Exception
    ) as error:  # zipfile, zlib, NumPy and the system each have their own
        raise ValueError(f"directory must be an .npz file: {path}: {error}") from error
    train = _pair(path, arrays, "", what)
    if f"test_{what}" not in arrays:
        return _held_out(*train, int(train[1].max()) + 1, levels)
    test = _pair(path, arrays, "test_", what)
    if test[0].shape[1:] != train[0].shape[1:]:
        raise ValueError(
            f"test_{what} of {path} must have the shape of {what}, "
            f"{train[0].shape[1:]}, got {test[0].shape[1:]}"
        )
    return Raw(*train, *test, int(max(train[1].max(), test[1].max())) + 1, levels)


def _pair(
    path: Path, arrays: dict, prefix: str, what: str
) -> tuple[np.ndarray, np.ndarray]:
    name = prefix + what
    try:
        images, labels = arrays[name], arrays[f"{prefix}labels"]
    except KeyError as error:
        raise ValueError(
            f"{path} must hold {name} and {prefix}labels, got {sorted(arrays)}"
        ) from error
    if what == "latents":
        images = _checked_latents(path, name, images)
    elif images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            f"{name} of {path} must be uint8 [N, H, W] or [N, H, W, C], "
            f"got {images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{prefix}labels of {path} must be integers {images.shape[:1]}, "
            f"got {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0:
        raise ValueError(
            f"{prefix}labels of {path} must not be negative, got {labels.min()}"
        )
    return images.reshape(*images.shape[:3], -1), labels


def _checked_latents(path: Path, name: str, latents: np.ndarray) -> np.ndarray:
    if latents.dtype.kind != "f" or latents.ndim != 4 or latents.size == 0:
        raise ValueError(
            f"{name} of {path} must be floats [N, H, W, C], "
            f"got {latents.dtype} {latents.shape}"
        )
    with np.errstate(over="ignore"):  # the next line tells
        latents = latents.astype(np.float32, copy=False)
    if not np.isfinite(latents).all():
        raise ValueError(f"{name} of {path} must be finite in float32")
    return latents


def _held_out(
    images: np.ndarray, labels: np.ndarray, num_classes: int, levels: int = 256
) -> Raw:
    if len(images) < 2:
        raise ValueError(f"a data set must hold at least 2 images, got {len(images)}")
    order = np.random.RandomState(0).permutation(len(images))
    test = max(1, len(images) // 10)
    first, last = order[:-test], order[-test:]
    return Raw(
        images[first], labels[first], images[last], labels[last], num_classes, levels
    )


def _classes(directory: Path) -> list[str]:
    names = sorted(
        path.name
        for path in directory.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    if not names:
        raise ValueError(
            f"directory must hold one sub-folder for each class, got none in "
            f"{str(directory)!r}"
        )
    return names


def _images(
    directory: Path, classes: list[str], size: int, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image, ImageOps

    images, labels = [], []
    for label, name in enumerate(classes):
        inside = directory / name
        files = sorted(inside.iterdir()) if inside.is_dir() else []
        for path in files:
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            try:
                with Image.open(path) as image:
                    image = ImageOps.exif_transpose(image)
                    image = image.convert("L" if channels == 1 else "RGB")
            except OSError as error:
                raise ValueError(
                    f"directory must hold readable images: {path}: {error}"
                ) from error
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
            images.append(np.asarray(image).reshape(size, size, channels))
            labels.append(label)
    if not images:
        raise ValueError(
            f"directory must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}) in its "
            f"sub-folders, got none in {str(directory)!r}"
        )
    return np.stack(images), np.array(labels)


def _holding(directory: Path, usual: str, first: str) -> Path:
    # The folder of the files or the one above it, in which they lie as `usual`.
    names = (first, f"{first}.gz")
    for candidate in (directory, directory / usual):
        if any((candidate / name).is_file() for name in names):
            return candidate
    raise ValueError(
        f"directory must hold {first} (or {usual}/{first}), got {str(directory)!r}"
    )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"directory must hold {path.name}, got none at {path}")
    return path


def _plain_or_gz(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    return packed if packed.is_file() and not path.is_file() else _present(path)


def _bytes(path: Path) -> bytes:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"directory must hold readable files: {path}: {error}"
        ) from error


def _idx(path: Path) -> np.ndarray:
    # idx: two zero bytes, a type (8 = uint8), the rank, then big-endian sizes.
    data = _bytes(path)
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise ValueError(
            f"{path} must be an idx file of bytes (magic 0x0000080r), "
            f"got 0x{data[:4].hex()}"
        )
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError(f"{path} must have {start} header bytes, got {len(data)}")
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} must hold {shape} bytes after its header, got "
            f"{len(data) - start}: is it truncated?"
        )
    if math.prod(shape) == 0:
        raise ValueError(f"{path} must not be empty, got shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
