"""What a trained flow is worth: its likelihood on the test split, and pictures.

| file                | what it shows                                                 |
|---------------------|---------------------------------------------------------------|
| `results.json`      | the likelihood of the flow, and what to compare it with       |
| `samples_tT.png`    | images at temperature T                                       |
| `interpolation.png` | straight lines between test images in the space of latents    |
| `density.png`       | of data in the plane: the learned density, samples and data   |
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, plots
from experiments._cli import say
from experiments.data import Dataset, Split
from experiments.density import Measure, Model, data_dtype
from genlib import metrics, train
from genlib.types import Array, Key

# Above, the covariance matrix of the one Gaussian to compare with takes too long.
_GAUSSIAN_DIMENSIONS = 1024


def best(workdir: Path, metric: str, like: Any) -> tuple[int, Any]:
    """Return the step of a run that is best by a metric, and its averaged parameters.

    Raises:
      ValueError: if no step has the metric: it was NaN whenever it was measured.
    """
    checkpoints = workdir / "checkpoints"
    params = train.restore_params(checkpoints, like, step="best")
    with train.Checkpointer(checkpoints, best=metric) as checkpointer:
        step = checkpointer.best
    assert step is not None  # parameters of it have been read
    return step, params


def compare(
    config: build.Config,
    model: Model,
    measure: Measure,
    dataset: Dataset,
    params: Any,
    step: int,
) -> list[dict[str, Any]]:
    """Measure the flow on the test split, beside what is known of the data.

    Returns:
      Rows of a table: `model`, the mean and its `standard_error` in the unit of the
      model, `examples`, `draws` of the dequantisation for each, and the `step`. The
      last is the flow; before it come one Gaussian with full covariance, where the data
      are not too large or too few, and the density itself where it is known.
    """
    test, draws = dataset.test, config.test["draws"]
    rows = []

    def add(name: str, costs: np.ndarray, draws: int, step: int) -> None:
        error = float(costs.std() / math.sqrt(len(costs)))
        result = {model.unit: float(costs.mean()), "standard_error": error}
        counts = {"examples": len(costs), "draws": draws, "step": step}
        rows.append({"model": name, **result, **counts})

    if dataset.name == "two_moons":
        exact = metrics.TwoMoons(0.1).log_density(jnp.asarray(test.images))
        add("true density", -np.asarray(exact, np.float64), 1, 0)
    size = math.prod(model.shape)
    if size <= min(_GAUSSIAN_DIMENSIONS, len(dataset.train.labels) // 2):
        add("one Gaussian", _gaussian(model, dataset), 1, 0)
    add("flow", measure(params, test, draws), draws, step)
    return rows


def sampler(
    config: build.Config, model: Model
) -> Callable[[Key, Any, np.ndarray, float], np.ndarray]:
    """Build a draw: `(key, params, labels [N], temperature) -> samples [N, ...]`.

    Images come back in [-1, 1]. A flow that is given no class ignores the labels.
    """
    batch = config.sampling["batch"]

    @jax.jit
    def draw(key: Key, params: Any, labels: Array, temperature: Array) -> Array:
        shape = (len(labels), *model.shape)
        settings = dict(dtype=data_dtype(model), temperature=temperature)
        cond = model.cond(labels)
        return _scaled(
            model, model.density.sample(key, params, shape, cond, **settings)
        )

    def draw_all(
        key: Key, params: Any, labels: np.ndarray, temperature: float
    ) -> np.ndarray:
        size = min(batch, len(labels))
        rows = np.resize(labels, (-(-len(labels) // size), size))
        keys = jax.random.split(key, len(rows))
        parts = [
            np.asarray(draw(key, params, row, temperature))
            for key, row in zip(keys, rows, strict=True)
        ]
        return np.concatenate(parts)[: len(labels)]

    return draw_all


def interpolate(
    model: Model, key: Key, params: Any, split: Split, rows: int, cols: int
) -> np.ndarray:
    """Go from examples to others in straight lines through the latents.

    Returns:
      [rows * cols, ...], images in [-1, 1]; the first and the last of each row are
      examples of the split.
    """
    keyed = {"key": key} if model.flow.stochastic else {}

    @jax.jit
    def between(params: Any, x: Array, labels: Array) -> Array:
        own, cond = params.get("flow", {}), model.cond(labels)
        z, _ = model.flow.forward(own, x, cond, **keyed)
        weight = jnp.linspace(0.0, 1.0, cols)

        def mix(ends: Array) -> Array:
            start, end = ends[:rows, None], ends[rows:, None]
            shape = (1, cols) + (1,) * (ends.ndim - 1)
            steps = weight.reshape(shape).astype(ends.dtype)
            return (start * (1 - steps) + end * steps).reshape(-1, *ends.shape[1:])

        z, cond = jax.tree.map(mix, (z, cond))
        return _scaled(model, model.flow.inverse(own, z, cond, **keyed)[0])

    ends = slice(None, 2 * rows)
    return np.asarray(between(params, split.images[ends], split.labels[ends]))


def log_density_grid(
    model: Model, params: Any, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Return the log-density in nats [len(y), len(x)] of points in the plane."""
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
    labels = np.zeros(len(points), np.int32)
    cost = jax.jit(model.cost)(jax.random.key(0), params, points, labels)
    return -np.asarray(cost).reshape(len(y), len(x))


def write_pictures(
    config: build.Config, model: Model, dataset: Dataset, params: Any, workdir: Path
) -> None:
    """Draw samples and write what the data can show of the flow.

    All processes draw, and one writes.
    """
    key = jax.random.key(config.seed)
    draw = sampler(config, model)
    if model.shape == (2,):
        samples = draw(key, params, np.zeros(2000, np.int32), 1.0)
        write_density(model, params, samples, workdir / "density.png", dataset.test)
    if len(model.shape) < 3:
        return
    # One row for each class, of a flow that is given none ten rows all the same.
    shown = min(model.num_classes or 10, 20)
    labels = np.repeat(np.arange(shown, dtype=np.int32), 10)
    for temperature in config.sampling["temperatures"]:
        images = draw(key, params, labels, temperature)
        if train.is_main():
            path = workdir / f"samples_t{temperature:g}.png"
            say(f"wrote {plots.grid(images, shown, 10, path)}")
    rows = min(8, len(dataset.test.labels) // 2)
    images = interpolate(model, key, params, dataset.test, rows, 10)
    if train.is_main():
        path = workdir / "interpolation.png"
        say(f"wrote {plots.grid(images, rows, 10, path)}")


def write_density(
    model: Model,
    params: Any,
    samples: np.ndarray,
    path: Path,
    data: Split | None = None,
) -> None:
    """Write the density of a flow in the plane, its samples and perhaps the data."""
    shown = {"samples": samples}
    if data is not None:
        shown["data"] = data.images[: len(samples)]
    points = np.concatenate(list(shown.values()))
    low, high = points.min(0) - 0.2, points.max(0) + 0.2
    x, y = (np.linspace(a, b, 200) for a, b in zip(low, high, strict=True))
    values = log_density_grid(model, params, x, y)
    if train.is_main():
        say(f"wrote {plots.density(x, y, values, shown, path)}")


def _scaled(model: Model, x: Array) -> Array:
    return 2 * x.astype(jnp.float32) / (model.levels - 1) - 1 if model.levels else x


def _gaussian(model: Model, dataset: Dataset) -> np.ndarray:
    """Return the costs of the test split under one Gaussian with full covariance."""
    random = np.random.RandomState(0)

    def flat(split: Split) -> np.ndarray:
        x = split.images.reshape(len(split.labels), -1).astype(np.float64)
        return x + random.rand(*x.shape) if model.levels else x

    x, y = flat(dataset.train), flat(dataset.test)
    root = np.linalg.cholesky(np.cov(x.T, bias=True))
    z = np.linalg.solve(root, (y - x.mean(0)).T)
    size = x.shape[1]
    nats = 0.5 * (z**2).sum(0) + np.log(np.diag(root)).sum()
    nats += 0.5 * size * math.log(2 * math.pi)
    return nats / (size * math.log(2)) if model.levels else nats
