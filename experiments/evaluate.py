"""How good samples are: Frechet distance, classes, and copies of the training set.

All three are measured on features: the pixels in [-1, 1], averaged over squares until
an image is at most 8x8. On the 8x8 digits these are the pixels themselves; on larger
images they see layout and colour but no detail, so that they find a broken model and
do not rank good ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build
from experiments.data import Dataset
from experiments.latents import Space
from genlib import metrics

# Enough to fit a linear judge and to estimate a median, on data sets of any size.
_JUDGE_IMAGES, _HELD_OUT_IMAGES = 10_000, 2_000


class Scores(NamedTuple):
    """Hold what was measured on one set of images.

    Attributes:
      frechet: squared Frechet distance of the features to those of the test images.
      accuracy: share whose class the judge, a logistic regression on the training
        features, finds to be their label.
      nearest: median distance of the features to their nearest training image.
      copies: share that is nearer than the nearest 1 % of the test images are.
    """

    frechet: float
    accuracy: float
    nearest: float
    copies: float


class Evaluator:
    """Measure images against a data set, whose judge is fitted once.

    Args:
      dataset: its training images train the judge; its test images are the reference.
    """

    def __init__(self, dataset: Dataset) -> None:
        from sklearn.linear_model import LogisticRegression

        train, test = dataset.train, dataset.test
        self._train = features(train.images)
        self._test = features(test.images)
        self._judge = LogisticRegression(max_iter=2000).fit(
            self._train[:_JUDGE_IMAGES], train.labels[:_JUDGE_IMAGES]
        )
        held_out = self._nearest(self._test[:_HELD_OUT_IMAGES])
        self._threshold = np.quantile(held_out, 0.01)
        self.real = Scores(
            self._frechet(self._train),
            float(self._judge.score(self._test, test.labels)),
            float(np.median(held_out)),
            float((held_out < self._threshold).mean()),
        )

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Measure images [N, H, W, C] that were drawn for labels [N]."""
        x = features(images)
        if not np.isfinite(x).all():
            return Scores(*[float("nan")] * 4)
        nearest = self._nearest(x)
        return Scores(
            self._frechet(x),
            float(self._judge.score(x, labels)),
            float(np.median(nearest)),
            float((nearest < self._threshold).mean()),
        )

    def _frechet(self, x: np.ndarray) -> float:
        distance = metrics.frechet_distance(jnp.asarray(x), jnp.asarray(self._test))
        return float(distance)

    def _nearest(self, x: np.ndarray) -> np.ndarray:
        blocks = np.array_split(x, -(-len(x) // 500))
        return np.concatenate([_distances(rows, self._train) for rows in blocks])


def evaluate(
    config: build.Config,
    dataset: Dataset,
    apply: build.Apply,
    params: Any,
    space: Space | None = None,
) -> list[dict[str, Any]]:
    """Measure samples of each solver and NFE that `config.evaluation` names.

    Args:
      config: of the run.
      dataset: images to compare with.
      apply: the network.
      params: its parameters.
      space: of the latents that the network is for, None for the images themselves.

    Returns:
      Rows of a table: `solver`, `NFE` and the scores. The first is of real images, as
      a perfect model would score up to the number of samples: the training images for
      the Frechet distance, the test images for the rest.
    """
    evaluator = Evaluator(dataset)
    shape, num_classes = dataset.train.images.shape[1:], dataset.num_classes
    shape, decode = (shape, None) if space is None else (space.shape, space.decode)
    labels = np.arange(config.evaluation.samples, dtype=np.int32) % num_classes
    rows = [{"solver": "real images", "NFE": 0, **evaluator.real._asdict()}]
    for name in config.evaluation.solvers:
        for budget in config.evaluation.nfe:
            draw, nfe = build.sampler(
                config,
                apply,
                shape,
                num_classes,
                solver=name,
                nfe=budget,
                decode=decode,
            )
            images = draw(jax.random.key(config.seed + 1), params, labels)
            scores = evaluator(images, labels)
            rows.append({"solver": name, "NFE": nfe, **scores._asdict()})
            print(f"{name}, {nfe} NFE: Frechet distance {scores.frechet:.3f}")
    return rows


def features(images: np.ndarray) -> np.ndarray:
    """Average images [N, H, W, C] over squares to at most 8x8, as [N, D]."""
    count, height, width, channels = images.shape
    side = -(-max(height, width) // 8)
    rows, columns = height // side, width // side
    images = images[:, : rows * side, : columns * side]
    squares = images.reshape(count, rows, side, columns, side, channels)
    return squares.mean(axis=(2, 4), dtype=np.float64).reshape(count, -1)


@jax.jit
def _closest(rows: jax.Array, train: jax.Array) -> jax.Array:
    squares = jnp.square(rows).sum(1)[:, None] + jnp.square(train).sum(1)[None]
    return jnp.argmin(squares - 2 * rows @ train.T, axis=1)


def _distances(rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    # The difference itself, in float64: |a|^2 + |b|^2 - 2ab would lose a copy's 0.
    index = np.asarray(_closest(rows.astype(np.float32), train.astype(np.float32)))
    return np.linalg.norm(rows - train[index], axis=1)
