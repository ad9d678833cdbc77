"""Priors over the codes of an autoencoder: a second stage that makes it generative.

A config with an entry `prior` and an `autoencoder`, itself a config, trains a
transformer on the indices that the autoencoder gives to the training images. Its other
entries are those of a diffusion model's optimizer, batches and checkpoints, and

| entry         | what it is                                                          |
|---------------|---------------------------------------------------------------------|
| `prior`       | `code_prior(...)` of `genlib.nn`, without size, shape and classes   |
| `drop_labels` | share of the labels that become the null class                      |
| `sampling`    | settings of `CodePrior.sample`, such as `temperature` or `top_k`,   |
|               | and how many images at a time: `batch`                              |
| `evaluation`  | how many `samples` to measure                                       |

`python -m experiments.train` trains the autoencoder first, as for latents
(`experiments/latents.py`), and leaves `results.json`, `table.md` and `samples.png`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import autoencoder, build
from experiments._spec import called, part
from experiments.data import Dataset, Split, equal_batches
from experiments.evaluate import Evaluator
from genlib import nn, train
from genlib.types import Array, Key

Draw = Callable[[Key, Any, np.ndarray], np.ndarray]


def is_prior(config: build.Config) -> bool:
    """Tell whether a config trains a prior over codes."""
    return "prior" in config


def codes(
    config: build.Config, model: autoencoder.Model, params: Any, dataset: Dataset
) -> Dataset:
    """Return a data set of images as one of indices, int32."""
    encode = jax.jit(lambda params, x: model.autoencoder.encode(params, x).indices)
    params = jax.device_put(params)

    def indices(split: Split) -> Split:
        batches = equal_batches(len(split.labels), config.sampling["batch"])
        rows = [np.asarray(encode(params, split.images[i]))[:n] for i, n in batches]
        return Split(np.concatenate(rows), split.labels)

    name, classes = f"codes of {dataset.name}", dataset.num_classes
    return Dataset(name, indices(dataset.train), indices(dataset.test), classes, 0)


def prior(
    config: build.Config, model: autoencoder.Model, params: Any, num_classes: int
) -> nn.CodePrior:
    """Build the prior of a config over the codes of an autoencoder.

    Args:
      config: with the entry `prior`.
      model: the autoencoder.
      params: of it, of which only the shapes matter.
      num_classes: of the data.

    Raises:
      ValueError: if the autoencoder has no codes, or the entry names no prior, or one
        that cannot be built.
    """
    if not model.size:
        raise ValueError(
            "autoencoder must have codes for a prior over them, got the bottleneck "
            f"{config.autoencoder.bottleneck[0]!r}"
        )
    shape = model.index_shape(params)
    given = dict(size=model.size, shape=shape, num_classes=num_classes)
    return part("prior", called(config.prior), nn, ("code_prior",), **given)


def loss_function(
    config: build.Config, prior: nn.CodePrior, num_classes: int
) -> train.LossFn:
    """Build the loss: nats of a code."""

    def loss_fn(params: Any, batch: Any, key: Key) -> tuple[Array, int, dict]:
        key_labels, key_loss = jax.random.split(key)
        labels = nn.drop_labels(
            key_labels, batch["label"], config.drop_labels, num_classes
        )
        loss = prior.loss(key_loss, params, batch["image"], labels)
        return loss.sum(), loss.size, {}

    return loss_fn


def sampler(
    config: build.Config, prior: nn.CodePrior, model: autoencoder.Model
) -> Draw:
    """Build a draw: `(key, (own, autoencoder) params, labels [N]) -> images`."""
    settings = dict(config.sampling)
    batch = settings.pop("batch")

    @jax.jit
    def draw(key: Key, params: Any, labels: Array) -> Array:
        own, decoder = params
        indices = prior.sample(key, own, len(labels), labels, **settings)
        return model.autoencoder.lookup(decoder, indices)

    def draw_all(key: Key, params: Any, labels: np.ndarray) -> np.ndarray:
        params = jax.device_put(params)
        parts = []
        for rows, new in equal_batches(len(labels), batch):
            images = draw(jax.random.fold_in(key, rows[0]), params, labels[rows])
            parts.append(np.asarray(images)[:new])
        return np.concatenate(parts)

    return draw_all


def measure(
    config: build.Config,
    prior: nn.CodePrior,
    params: Any,
    indices: Split,
    dataset: Dataset,
    draw: Callable[[np.ndarray], np.ndarray],
) -> list[dict[str, Any]]:
    """Measure a prior: its bits for a code of the test split, and what it draws.

    Returns:
      Rows of a table as `experiments.evaluate` has them, of real images and of samples,
      with the column `bits_per_code` in place of solver and NFE; of a masked prior
      these are bits of its loss, which is no likelihood.
    """
    cost = jax.jit(prior.loss)
    nats = np.zeros(len(indices.labels))
    key = jax.random.key(config.seed)
    for rows, new in equal_batches(len(nats), config.sampling["batch"]):
        here = jax.random.fold_in(key, rows[0])
        values = cost(here, params, indices.images[rows], indices.labels[rows])
        nats[rows[:new]] = np.asarray(values)[:new]
    bits = float(nats.mean()) / math.log(2)
    evaluator = Evaluator(dataset)
    count = config.evaluation["samples"]
    labels = np.arange(count, dtype=np.int32) % dataset.num_classes
    scores = evaluator(draw(labels), labels)
    return [
        {"images": "real", "bits_per_code": math.nan, **evaluator.real._asdict()},
        {"images": "samples", "bits_per_code": bits, **scores._asdict()},
    ]


def shapes(prior: nn.CodePrior) -> Any:
    """Return the shapes and dtypes of the parameters."""
    return jax.eval_shape(prior.init, jax.random.key(0))
