"""What a trained autoencoder is worth: its errors on the test split, and pictures.

| file                  | what it shows                                               |
|-----------------------|-------------------------------------------------------------|
| `results.json`        | of both splits, what `measure` says                         |
| `reconstructions.png` | test images, and below each what came back                  |
| `samples.png`         | decoded draws of the prior of a VAE                         |
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, plots
from experiments._cli import say
from experiments.autoencoder import Model
from experiments.data import Dataset, Split, equal_batches
from genlib import likelihood, quantize, train
from genlib.types import Array, Key


def compare(
    config: build.Config, model: Model, params: Any, dataset: Dataset
) -> list[dict[str, Any]]:
    """Measure an autoencoder on both splits.

    Returns:
      Rows of a table: `split`, `images`, the mean squared error `mse` and `psnr` in dB,
      both of images in [-1, 1]; of codes `perplexity` and `usage` over the split, the
      latter the share of codes that occur; of a VAE `nats` or, where the likelihood
      counts pixels, `bits_per_dim`: the bound, how much of it is `kl`, and
      `importance_weighted`, a tighter one.
    """
    draws = config.get("samples", 0)
    splits = {"train": dataset.train, "test": dataset.test}
    rows = []
    for name, split in splits.items():
        head = {"split": name, "images": len(split.labels)}
        rows.append({**head, **measure(config, model, params, split, draws)})
    return rows


def measure(
    config: build.Config, model: Model, params: Any, split: Split, draws: int
) -> dict[str, float]:
    """Return the means over a split that `compare` names."""
    params = jax.device_put(params)
    batch = config.sampling["batch"]
    key = jax.random.key(config.seed)

    @jax.jit
    def batch_of(key: Key, params: Any, x: Array) -> dict[str, Array]:
        flat = lambda value: value.reshape(len(x), -1)
        error = model.decode(params, model.encode(params, x)) - x
        found = {"mse": flat(jnp.square(error)).mean(1)}
        if model.emission is None:
            found["indices"] = flat(model.autoencoder.encode(params, x).indices)
            return found
        key_loss, key_draws = jax.random.split(key)
        terms = model.autoencoder.loss(key_loss, params, x).terms
        found["bound"] = terms["reconstruction"] + terms["kl"]
        found["kl"] = terms["kl"]
        found["importance_weighted"] = -likelihood.importance_weighted(
            key_draws,
            lambda x: model.autoencoder.posterior(params, x),
            lambda z, x: model.autoencoder.log_joint(params, z, x),
            x,
            samples=draws,
            chunk=max(n for n in range(1, 11) if draws % n == 0),
        )
        return found

    parts = []
    for rows, new in equal_batches(len(split.labels), batch):
        made = batch_of(jax.random.fold_in(key, rows[0]), params, split.images[rows])
        parts.append({name: np.asarray(value)[:new] for name, value in made.items()})
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    mse = float(each["mse"].mean(dtype=np.float64))
    scores = {"mse": mse, "psnr": 10 * math.log10(4 / mse) if mse else math.inf}
    if model.emission is None:
        counts = quantize.histogram(each["indices"], model.size)
        scores["perplexity"] = float(quantize.perplexity(counts))
        scores["usage"] = float(quantize.usage(counts))
        return scores
    unit, scale = "nats", 1.0
    if model.emission.counts:
        unit, scale = "bits_per_dim", math.log(2) * math.prod(model.shape)
    for name in ("bound", "kl", "importance_weighted"):
        title = unit if name == "bound" else name
        scores[title] = float(each[name].mean(dtype=np.float64)) / scale
    return scores


def write_reconstructions(
    model: Model, params: Any, split: Split, workdir: Path, cols: int = 10
) -> None:
    """Write test images in odd rows, and below each what came back."""
    images = split.images[: 4 * cols]
    cols = min(cols, len(images))
    images = images[: len(images) // cols * cols]
    back = jax.jit(lambda params, x: model.decode(params, model.encode(params, x)))
    pairs = np.stack(
        [
            part.reshape(-1, cols, *model.shape)
            for part in (images, back(params, images))
        ],
        axis=1,
    )
    if train.is_main():
        path = workdir / "reconstructions.png"
        sheet = pairs.reshape(-1, *model.shape)
        say(f"wrote {plots.grid(sheet, len(sheet) // cols, cols, path)}")


def draw(model: Model, key: Key, params: Any, count: int) -> np.ndarray:
    """Decode draws of the prior N(0, I) of a VAE: images [count, H, W, C]."""
    z = jax.random.normal(key, (count, *model.latent_shape(params)))
    return np.asarray(jax.jit(model.decode)(params, z))
