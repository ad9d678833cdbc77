"""Normalizing flows in the experiments: maximum likelihood, measured and drawn.

A config with an entry `base` trains a flow. What it has instead of a diffusion model's
path, kind and the rest:

| entry         | what it is                                                          |
|---------------|---------------------------------------------------------------------|
| `layers`      | of `genlib.flows`, between the data and the model                   |
| `model`       | a named flow of `genlib.nn`                                         |
| `base`        | of `genlib.flows`: the distribution of the latents                  |
| `conditional` | whether the flow is given the class                                 |
| `init_batch`  | how many training examples the layers are initialised with          |
| `validation`  | `held_out`: the last training examples, which are not trained on    |
|               | but choose the step; `draws` of the dequantisation for each         |
| `test`        | `draws` for each test example                                       |
| `sampling`    | `temperatures`, and how many samples at a time: `batch`             |

Images go into the flow as the integers that they are, through a uniform dequantisation
onto [0, 1) that is its first layer: its log-likelihood is a bound on that of the
integers. The loss is in nats; images are measured in bits per dimension. Wherever a
checkpoint is saved the validation examples are measured, by the averaged parameters,
and the step that is best at that is reported and sampled.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build
from experiments._spec import called, part
from experiments.data import Dataset, Split, equal_batches, integers
from genlib import flows, likelihood, nn, train
from genlib.types import Array, Key

LAYERS = ("actnorm", "logit", "normalize", "reshape", "shift_and_scale", "sigmoid")
MODELS = ("glow", "maf", "multiscale_realnvp", "neural_spline_flow", "nice", "realnvp")
MODELS += ("tarflow",)
BASES = ("normal", "student_t", "uniform")

Measure = Callable[[Any, Split, int], np.ndarray]


class Model(NamedTuple):
    """Hold a flow and what it is for.

    Attributes:
      flow: from data, integers if there are `levels`, to latents.
      density: it and its base.
      shape: of an example.
      num_classes: that it is given one of; 0 if it is given none.
      levels: of the integers; 0 for data that were continuous.
    """

    flow: flows.Bijector
    density: flows.Density
    shape: tuple[int, ...]
    num_classes: int
    levels: int

    @property
    def unit(self) -> str:
        """What negative log-likelihoods are measured in."""
        return "bits_per_dim" if self.levels else "nats"

    def cond(self, labels: Array) -> Array | None:
        """Return what the flow is given of the labels [B]."""
        return jax.nn.one_hot(labels, self.num_classes) if self.num_classes else None

    def cost(self, key: Key, params: Any, x: Array, labels: Array) -> Array:
        """Return the negative log-likelihood of each example [B], in `unit`."""
        nats = self.density.log_prob(params, x, self.cond(labels), key)
        return likelihood.bits_per_dim(nats, self.shape) if self.levels else -nats


def is_flow(config: build.Config) -> bool:
    """Tell whether a config trains a normalizing flow."""
    return "base" in config


def model(
    config: build.Config, shape: tuple[int, ...], num_classes: int, levels: int
) -> Model:
    """Build the flow of a config.

    Raises:
      ValueError: if an entry names no part, or one that cannot be built.
    """
    texts = [called(text) for text in config.layers]
    layers = [part("layers", text, flows, LAYERS) for text in texts]
    if levels:
        layers.insert(0, flows.uniform_dequantization(levels))
    layers.append(part("model", called(config.model), nn, MODELS))
    flow = flows.chain(*layers)
    base = part("base", called(config.base), flows, BASES)
    if config.conditional and num_classes < 2:
        raise ValueError("conditional must be False for data of no classes, got True")
    classes = num_classes if config.conditional else 0
    return Model(flow, flows.density(flow, base), tuple(shape), classes, levels)


def splits(config: build.Config, dataset: Dataset) -> tuple[Dataset, Split]:
    """Take the validation examples out of the training split, and make pixels integers.

    Raises:
      ValueError: if nothing would be left on either side.
    """
    count, held_out = len(dataset.train.labels), config.validation["held_out"]
    if not 0 < held_out < count:
        raise ValueError(
            f"validation.held_out must be from 1 to {count - 1}, got {held_out}"
        )

    def rows(split: Split, which: slice) -> Split:
        images = split.images[which]
        if dataset.levels:
            images = integers(images, dataset.levels)
        return Split(images, split.labels[which])

    changed = dataset._replace(
        train=rows(dataset.train, slice(None, -held_out)),
        test=rows(dataset.test, slice(None)),
    )
    return changed, rows(dataset.train, slice(-held_out, None))


def initial(config: build.Config, model: Model, split: Split) -> Callable[[Key], Any]:
    """Return `key -> params`, initialised with examples from all over a split.

    Every process has all of these examples, so that all get the same parameters.
    """
    # Neighbours in a data set may be alike, as patches of one photograph are.
    rows = np.linspace(0, len(split.labels) - 1, config.init_batch).astype(int)
    x, labels = split.images[rows], split.labels[rows]

    def init_params(key: Key) -> Any:
        return model.density.init(key, jnp.asarray(x), model.cond(jnp.asarray(labels)))

    return init_params


def shapes(config: build.Config, model: Model) -> Any:
    """Return the shapes and dtypes of the parameters, without any data."""
    images = np.zeros((config.init_batch, *model.shape), data_dtype(model))
    split = Split(images, np.zeros(config.init_batch, np.int32))
    return jax.eval_shape(initial(config, model, split), jax.random.key(0))


def loss_function(model: Model) -> train.LossFn:
    """Build the loss: the negative log-likelihood in nats."""

    def loss_fn(params: Any, batch: Any, key: Key) -> tuple[Array, int, dict]:
        cost = model.cost(key, params, batch["image"], batch["label"])
        if not model.levels:
            return cost.sum(), cost.size, {}
        nats = cost * math.log(2) * math.prod(model.shape)
        return nats.sum(), cost.size, {model.unit: (cost.sum(), cost.size)}

    return loss_fn


def measurement(config: build.Config, model: Model) -> Measure:
    """Return `(params, split, draws) -> costs [N]`, each the mean over the draws."""
    cost = jax.jit(model.cost)

    def measure(params: Any, split: Split, draws: int) -> np.ndarray:
        params = jax.device_put(params)
        count = len(split.labels)
        total = np.zeros(count)
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.key(config.seed), draw)
            for rows, new in equal_batches(count, config.sampling["batch"]):
                values = cost(
                    jax.random.fold_in(key, rows[0]),
                    params,
                    split.images[rows],
                    split.labels[rows],
                )
                total[rows[:new]] += np.asarray(values, np.float64)[:new]
        return total / draws

    return measure


def validation(
    config: build.Config, model: Model, measure: Measure, split: Split
) -> Callable[[train.State], dict[str, float]]:
    """Return the evaluation of `train.fit`: how the averaged parameters do."""

    def evaluate(state: train.State) -> dict[str, float]:
        costs = measure(train.to_host(state.ema), split, config.validation["draws"])
        return {f"val_{model.unit}": float(costs.mean())}

    return evaluate


def data_dtype(model: Model) -> Any:
    """Return the dtype of the data that a flow is for."""
    return jnp.int32 if model.levels else jnp.float32
