"""Data sets of vectors, for densities: two moons, and patches of photographs."""

import numpy as np

from experiments._readers import Raw


def two_moons(train: int = 200_000, test: int = 20_000) -> Raw:
    """Draw two moons with noise of 0.1, whose density `metrics.TwoMoons` knows."""
    import jax

    from genlib import metrics

    x = np.asarray(metrics.TwoMoons(0.1).sample(jax.random.key(0), train + test))
    return _raw(x[:train], x[train:])


def patches(size: int = 8) -> Raw:
    """Cut grey patches out of the two photographs of scikit-learn.

    Their left halves are for training, from left to right, with every patch; the right
    halves for testing, without overlap, so that the patches differ. A patch is spread
    uniformly over the bins of its pixels, in [0, 1], loses its mean and then its last
    pixel, which says nothing new: as for BSDS300 in arXiv:1705.07057.
    """
    from sklearn.datasets import load_sample_images

    grey = np.stack([image.mean(-1).round() for image in load_sample_images().images])
    middle = grey.shape[2] // 2
    random = np.random.RandomState(0)
    halves = []
    for half, step in ((grey[:, :, :middle], 1), (grey[:, :, middle:], size)):
        windows = np.lib.stride_tricks.sliding_window_view(half, (size, size), (1, 2))
        columns = windows[:, ::step, ::step].transpose(2, 1, 0, 3, 4)
        x = columns.reshape(-1, size * size)
        x = (x + random.rand(*x.shape)) / 256
        halves.append((x - x.mean(1, keepdims=True))[:, :-1].astype(np.float32))
    return _raw(*halves)


def _raw(train: np.ndarray, test: np.ndarray) -> Raw:
    labels = (np.zeros(len(x), np.int32) for x in (train, test))
    return Raw(train, next(labels), test, next(labels), 1, 0)
