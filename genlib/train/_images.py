"""Transforms of images, for `pipeline`: `(example, rng) -> example`."""

from typing import Any

import numpy as np

from genlib.train._pipeline import Transform


def scale_pixels(name: str = "image", *, levels: int = 256) -> Transform:
    """Scale integer pixels k to float32 2 k / (levels - 1) - 1, in [-1, 1].

    Args:
      name: of the image [H, W, C] in the example, a dict.
      levels: number of values that a pixel can have.

    Raises:
      ValueError: if `levels` is below 2; the transform: if there is no such image, or
        its pixels are not integers in [0, levels).

    >>> example = {"image": np.array([[[0], [255]]], np.uint8)}
    >>> scale_pixels()(example, np.random.default_rng(0))["image"].ravel().tolist()
    [-1.0, 1.0]
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2; it is {levels}")

    def transform(example: Any, rng: np.random.Generator) -> Any:
        image = _image(example, name)
        if image.dtype.kind not in "iu" or not 0 <= image.min() <= image.max() < levels:
            raise ValueError(
                f"{name} must have integer pixels in [0, {levels}); they are "
                f"{image.dtype} in [{image.min()}, {image.max()}]"
            )
        return {**example, name: image.astype(np.float32) / ((levels - 1) / 2) - 1}

    return transform


def random_flip(name: str = "image") -> Transform:
    """Mirror half of the images left to right.

    Args:
      name: of the image [H, W, C] in the example, a dict.

    Raises:
      ValueError: the transform: if there is no such image.

    >>> example, rng = {"image": np.array([[[1], [2]]])}, np.random.default_rng(0)
    >>> {tuple(random_flip()(example, rng)["image"].ravel()) for _ in range(99)} == {
    ...     (1, 2), (2, 1)}
    True
    """

    def transform(example: Any, rng: np.random.Generator) -> Any:
        image = _image(example, name)
        return {**example, name: image[:, ::-1] if rng.random() < 0.5 else image}

    return transform


def random_crop(size: int, name: str = "image") -> Transform:
    """Cut a square out of each image, everywhere with equal probability.

    Args:
      size: height and width of the square in pixels.
      name: of the image [H, W, C] in the example, a dict.

    Raises:
      ValueError: if `size` is below 1; the transform: if there is no such image, or it
        is smaller.

    >>> example, rng = {"image": np.zeros((10, 12, 3))}, np.random.default_rng(0)
    >>> random_crop(8)(example, rng)["image"].shape
    (8, 8, 3)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1; it is {size}")

    def transform(example: Any, rng: np.random.Generator) -> Any:
        image = _image(example, name)
        height, width = image.shape[:2]
        if min(height, width) < size:
            raise ValueError(
                f"{name} must be at least {size} pixels high and wide; it is "
                f"{height} by {width}"
            )
        top, left = rng.integers([height - size + 1, width - size + 1])
        return {**example, name: image[top : top + size, left : left + size]}

    return transform


def _image(example: Any, name: str) -> np.ndarray:
    if name not in example:
        raise ValueError(f"name must be one of {sorted(example)}; it is {name!r}")
    image = np.asarray(example[name])
    if image.ndim != 3:
        raise ValueError(
            f"{name} must be an image [H, W, C]; its shape is {list(image.shape)}"
        )
    return image
