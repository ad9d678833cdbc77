"""Every way in which data can be missing or broken gives one clear error."""

import re

import numpy as np
import pytest

from experiments import data
from tests.experiments.files import write_cifar10, write_folder, write_idx, write_mnist

LATENTS = np.random.RandomState(0).randn(4, 2, 2, 1).astype(np.float32)


def _no_variable(tmp_path):
    return "mnist", None, {}


def _missing(tmp_path):
    return "cifar10", tmp_path / "nowhere", {}


def _empty(name):
    return lambda tmp_path: (name, tmp_path, {"size": 4})


def _one_file_missing(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    return "cifar10", tmp_path, {}


def _cifar10_cut(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    return "cifar10", tmp_path, {}


def _cifar10_hollow(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"")
    return "cifar10", tmp_path, {}


def _cifar100(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"\x63" * 3073)
    return "cifar10", tmp_path, {}


def _idx(content: bytes, name: str = "t10k-images-idx3-ubyte"):
    def prepare(tmp_path):
        write_mnist(tmp_path)
        (tmp_path / name).write_bytes(content)
        return "mnist", tmp_path, {}

    return prepare


def _packed_cut(tmp_path):
    write_mnist(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    return "mnist", tmp_path, {}


def _labels_of_another_set(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(11, np.uint8))
    return "mnist", tmp_path, {}


def _broken_image(tmp_path):
    write_folder(tmp_path, {"a": 3})
    (tmp_path / "a" / "x.png").write_bytes(b"no picture")
    return "folder", tmp_path, {"size": 4}


def _class_without_training(tmp_path):
    write_folder(tmp_path / "train", {"a": 3})
    write_folder(tmp_path / "test", {"b": 3})
    return "folder", tmp_path, {"size": 4}


def _folder(count, options):
    def prepare(tmp_path):
        write_folder(tmp_path, {"a": count})
        return "folder", tmp_path, options

    return prepare


def _npz(**arrays):
    def prepare(tmp_path):
        np.savez(tmp_path / "set.npz", **arrays)
        return "npz", tmp_path / "set.npz", {}

    return prepare


def _latents(latents=LATENTS, labels=None, **options):
    def prepare(tmp_path):
        rows = np.zeros(len(latents), int) if labels is None else labels
        np.savez(tmp_path / "z.npz", latents=latents, labels=rows)
        return "latents", tmp_path / "z.npz", options

    return prepare


def _npz_cut(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((9, 4, 4), np.uint8))
    path = tmp_path / "set.npz"
    path.write_bytes(path.read_bytes()[:50])
    return "npz", path, {}


PIXELS = np.zeros((4, 2, 2), np.uint8)
LABELS = np.zeros(4, int)
BAD = {
    "unknown name": (lambda _: ("imagenet", None, {}), "name must be one of digits,"),
    "digits in a directory": (lambda path: ("digits", path, {}), "directory must be e"),
    "no directory": (_no_variable, "GENLIB_DATA"),
    "missing directory": (_missing, "directory must exist"),
    "empty directory, mnist": (_empty("mnist"), "hold train-images-idx3-ubyte"),
    "empty directory, cifar10": (_empty("cifar10"), "hold data_batch_1.bin"),
    "empty directory, folder": (_empty("folder"), "one sub-folder for each class"),
    "directory, npz": (_empty("npz"), "must be an .npz file"),
    "one file missing": (_one_file_missing, "hold data_batch_3.bin, got none"),
    "cifar10 cut": (_cifar10_cut, "multiple of 3073 bytes, got 9218"),
    "cifar10 hollow": (_cifar10_hollow, "multiple of 3073 bytes, got 0"),
    "cifar10 labels": (_cifar100, "labels 0 ... 9, got 99"),
    "idx hollow": (_idx(b""), "must be an idx file"),
    "idx magic": (_idx(b"\x89PNG" * 20), "got 0x89504e47"),
    "idx of floats": (_idx(b"\0\0\x0d\x03" + bytes(99)), "got 0x00000d03"),
    "idx header cut": (_idx(b"\0\0\x08\x03\0\0"), "16 header bytes, got 6"),
    "idx cut": (
        _idx(b"\0\0\x08\x01\0\0\0\x05abcd"),
        "(5,) bytes after its header, got 4",
    ),
    "idx of nothing": (_idx(b"\0\0\x08\x01\0\0\0\0"), "must not be empty"),
    "idx of another rank": (_idx(b"\0\0\x08\x01\0\0\0\x05abcde"), "images (5,)"),
    "gz cut": (_packed_cut, "hold readable files"),
    "labels of another set": (_labels_of_another_set, "labels (11,)"),
    "broken image": (_broken_image, "hold readable images"),
    "a class without training": (_class_without_training, "['b'] only in test"),
    "no images": (_folder(0, {"size": 4}), "hold images (.bmp"),
    "one image": (_folder(1, {"size": 4}), "at least 2 images, got 1"),
    "no size": (_folder(2, {}), "size must be"),
    "channels": (_folder(2, {"size": 4, "channels": 4}), "channels must be 1 or 3"),
    "npz cut": (_npz_cut, "must be an .npz file"),
    "npz names": (_npz(x=PIXELS), "must hold images and labels, got ['x']"),
    "npz of floats": (_npz(images=PIXELS / 255, labels=LABELS), "uint8 [N, H, W]"),
    "npz labels": (
        _npz(images=PIXELS, labels=LABELS[:3]),
        "integers (4,), got int64 (3",
    ),
    "npz negative": (_npz(images=PIXELS, labels=LABELS - 1), "not be negative, got -1"),
    "npz two shapes": (
        _npz(
            images=PIXELS,
            labels=LABELS,
            test_images=np.zeros((4, 2, 3), np.uint8),
            test_labels=LABELS,
        ),
        "test_images",
    ),
    "latents names": (
        lambda path: ("latents", _npz(images=PIXELS, labels=LABELS)(path)[1], {}),
        "must hold latents and labels, got ['images', 'labels']",
    ),
    "latents of bytes": (
        _latents(PIXELS[..., None]),
        "must be floats [N, H, W, C], got uint8 (4, 2, 2, 1)",
    ),
    "latents flat": (_latents(LATENTS[..., 0]), "got float32 (4, 2, 2)"),
    "latents not finite": (_latents(LATENTS * np.nan), "must be finite in float32"),
    "latents too large": (
        _latents(LATENTS.astype(float) * 1e300),
        "must be finite in float32",
    ),
    "latents all equal": (_latents(LATENTS * 0 + 3), "latents must vary"),
    "latents labels": (_latents(labels=LABELS[:3]), "integers (4,), got int64 (3"),
    "latents scale": (_latents(scale=-1.0), "scale must be 0 or positive, got -1.0"),
    "scale of pixels": (lambda _: ("digits", None, {"scale": 2.0}), "scale must be 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_clear_error(tmp_path, monkeypatch, case) -> None:
    monkeypatch.delenv(data.DIRECTORY_VARIABLE, raising=False)
    prepare, message = BAD[case]
    name, directory, options = prepare(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load(name, directory, **options)
