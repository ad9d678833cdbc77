"""Small data sets on disk, in the official formats."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from experiments import _readers

RANDOM = np.random.RandomState(7)


def write_idx(path: Path, array: np.ndarray, *, packed: bool = False) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def write_mnist(directory: Path, *, packed: bool = False) -> list[np.ndarray]:
    arrays = [
        RANDOM.randint(0, 256, (12, 28, 28)).astype(np.uint8),
        RANDOM.randint(0, 10, 12).astype(np.uint8),
        RANDOM.randint(0, 256, (5, 28, 28)).astype(np.uint8),
        RANDOM.randint(0, 10, 5).astype(np.uint8),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in zip(_readers.MNIST_FILES, arrays, strict=True):
        write_idx(directory / f"{name}{'.gz' * packed}", array, packed=packed)
    return arrays


def write_cifar10(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    images = RANDOM.randint(0, 256, (6, 3, 32, 32, 3)).astype(np.uint8)
    labels = RANDOM.randint(0, 10, (6, 3)).astype(np.uint8)
    directory.mkdir(parents=True, exist_ok=True)
    for name, x, y in zip(_readers.CIFAR10_FILES, images, labels, strict=True):
        planes = x.transpose(0, 3, 1, 2).reshape(3, -1)
        (directory / name).write_bytes(
            np.concatenate([y[:, None], planes], 1).tobytes()
        )
    return images, labels


def write_folder(directory: Path, classes: dict[str, int], size=(6, 4)) -> None:
    for value, (name, count) in enumerate(classes.items()):
        (directory / name).mkdir(parents=True)
        for i in range(count):
            image = Image.new("RGB", size, (40 * value, 10, 255))
            image.save(directory / name / f"{i}.png")
        (directory / name / "notes.txt").write_text("not an image")
