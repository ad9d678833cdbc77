"""Diffusion on latents: an autoencoder, frozen, and the space that it makes.

A config of a diffusion model with an entry `autoencoder`, itself a config, is trained
on latents. The autoencoder is trained first, in the folder `autoencoder` of the working
directory, or taken from the run `autoencoder_workdir` of the same config. Its latents
(codes, or means of the posterior) are standardised, each channel by the mean and the
standard deviation over the training images; these numbers are in the metadata of every
checkpoint of the diffusion model, so that what it draws can be decoded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import autoencoder, build
from experiments.data import Dataset, Split, equal_batches
from genlib import train


class Space(NamedTuple):
    """Hold a space of latents.

    Attributes:
      encode: `images [N, H, W, C] -> latents [N, h, w, c]`, standardised.
      decode: back, to images in about [-1, 1].
      mean: of the latents before, for each channel [c].
      std: their standard deviation.
      shape: of a latent.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    mean: np.ndarray
    std: np.ndarray
    shape: tuple[int, ...]

    @property
    def statistics(self) -> dict[str, list[float]]:
        """What a checkpoint has to remember of it."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def dataset(self, dataset: Dataset) -> Dataset:
        """Return a data set of images as one of latents."""
        encode = lambda split: Split(self.encode(split.images), split.labels)
        splits = encode(dataset.train), encode(dataset.test)
        return Dataset(f"latents of {dataset.name}", *splits, dataset.num_classes, 0)


def has_latents(config: build.Config) -> bool:
    """Tell whether a config trains on the latents of an autoencoder."""
    return "autoencoder" in config


def folder(config: build.Config, workdir: Path) -> Path:
    """Return the working directory of the autoencoder of a run."""
    return Path(config.get("autoencoder_workdir", "") or workdir / "autoencoder")


def shape(config: build.Config, dataset: Dataset) -> tuple[int, ...]:
    """Return the shape of the latents of a config, before anything is trained.

    Raises:
      ValueError: if the autoencoder cannot be built.
    """
    own = config.autoencoder
    model = autoencoder.model(own, dataset.train.images.shape[1:], dataset.levels)
    return model.latent_shape(autoencoder.shapes(own, model))


def fitted(config: build.Config, model: autoencoder.Model, params: Any, split: Split):
    """Return the space of an autoencoder, standardised by the images of a split.

    Raises:
      ValueError: if a channel is the same for all images.
    """
    raw = space(config, model, params, np.zeros(1), np.ones(1))
    z = raw.encode(split.images)
    axes = tuple(range(z.ndim - 1))
    mean, std = z.mean(axes, dtype=np.float64), z.std(axes, dtype=np.float64)
    if not (std > 0).all():
        raise ValueError(
            f"autoencoder must use all of its latents, channel {int(std.argmin())} is "
            f"always {mean[std.argmin()]:.4g}"
        )
    return space(config, model, params, mean, std)


def space(
    config: build.Config,
    model: autoencoder.Model,
    params: Any,
    mean: np.ndarray,
    std: np.ndarray,
) -> Space:
    """Return the space of an autoencoder with known statistics."""
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    shift, scale = mean[None, None, None], std[None, None, None]
    params = jax.device_put(params)
    batch = config.sampling["batch"]

    @jax.jit
    def encode(params: Any, x: jax.Array) -> jax.Array:
        return (model.encode(params, x).astype(jnp.float32) - shift) / scale

    @jax.jit
    def decode(params: Any, z: jax.Array) -> jax.Array:
        return model.decode(params, z * scale + shift)

    def all_of(function: Any) -> Callable[[np.ndarray], np.ndarray]:
        def run(rows: np.ndarray) -> np.ndarray:
            return np.concatenate(
                [
                    np.asarray(function(params, rows[index]))[:new]
                    for index, new in equal_batches(len(rows), batch)
                ]
            )

        return run

    shape = model.latent_shape(params)
    return Space(all_of(encode), all_of(decode), mean, std, shape)


def restored(
    config: build.Config, workdir: Path, statistics: dict[str, list[float]]
) -> Space:
    """Return the space of a run's autoencoder, from its checkpoint.

    Args:
      config: of the run.
      workdir: of the run.
      statistics: from its metadata.

    Raises:
      ValueError: if there is no checkpoint of the autoencoder.
    """
    checkpoints = folder(config, workdir) / "checkpoints"
    metadata = train.read_metadata(checkpoints)
    own, shape = config.autoencoder, tuple(metadata["shape"])
    model = autoencoder.model(own, shape, metadata["levels"])
    params = train.restore_params(checkpoints, autoencoder.shapes(own, model))
    return space(own, model, params, **{k: np.array(v) for k, v in statistics.items()})
