"""How many bits a held-out image takes: an upper bound, by the probability flow.

A config with the entry `likelihood` has it measured after training:

| entry    | what it is                                                              |
|----------|-------------------------------------------------------------------------|
| `images` | how many test images, from the first                                    |
| `batch`  | how many of them at a time                                              |
| `probes` | solves for each image, with new Hutchinson probes and new dequantisation |
| `times`  | a grid with its steps, which ends before sigma = 0, or `adaptive(...)`  |

Pixels, 2 / (levels - 1) apart, are spread uniformly over their bins. The model should
have been trained on such images too (`config.dequantize`): one of bare pixels puts
spikes on them, and spread images take more bits than they need.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import build, flow_map
from experiments._spec import part
from experiments.data import Dataset, equal_batches, integers
from genlib import likelihood, prediction, samplers
from genlib.types import Array, Key

TIMES = ("adaptive", *build.GRIDS)

Measure = Callable[[Any], dict[str, float]]


def measurement(
    config: build.Config, dataset: Dataset, apply: build.Apply, params: Any
) -> Measure | None:
    """Return the measurement that `config.likelihood` asks for, None without it.

    It has been traced: nothing that it needs is missing after days of training.

    Args:
      config: with the entries in the table of this module.
      dataset: its test images are measured, each given its class.
      apply: the network.
      params: its parameters, of which only the shapes matter.

    Returns:
      `params -> row`, with `bits_per_dim`, its `standard_error` over the images,
      `images` and `probes`. Bits per dimension are those of an image given its class:
      the image and its class take at most log2(classes) / D more.

    Raises:
      ValueError: if an entry is out of range or names times that cannot be used, or for
        data of no levels (latents).
      ImportError: for adaptive steps without diffrax.
    """
    settings = config.get("likelihood", None)
    if not settings:
        return None
    for name in ("images", "batch", "probes"):
        if settings[name] < 1:
            raise ValueError(
                f"likelihood.{name} must be at least 1, got {settings[name]}"
            )
    if not dataset.levels:
        raise ValueError(
            f"likelihood must be left out for {dataset.name}: it has no pixels to "
            "count bits of"
        )
    images, labels = (rows[: settings["images"]] for rows in dataset.test)
    pixels = integers(images, dataset.levels)
    batch = min(settings["batch"], len(pixels))
    bits = jax.jit(_bits(config, dataset.levels, apply))
    key = jax.random.key(config.seed)
    jax.eval_shape(bits, key, params, pixels[:batch], labels[:batch])

    def measure(params: Any) -> dict[str, float]:
        each = np.zeros(len(pixels))
        for probe in range(settings["probes"]):
            key_probe = jax.random.fold_in(key, probe)
            for rows, new in equal_batches(len(pixels), batch):
                key_batch = jax.random.fold_in(key_probe, rows[0])
                values = bits(key_batch, params, pixels[rows], labels[rows])
                each[rows[:new]] += np.asarray(values, np.float64)[:new]
        each /= settings["probes"]
        return {
            "bits_per_dim": float(each.mean()),
            "standard_error": float(each.std() / math.sqrt(len(each))),
            "images": len(each),
            "probes": settings["probes"],
        }

    return measure


def adaptive(rtol: float = 1e-5, atol: float = 1e-5) -> dict[str, float]:
    """Return the settings of adaptive steps, from 1e-5 of the path's duration."""
    return {"rtol": rtol, "atol": atol}


def _bits(
    config: build.Config, levels: int, apply: build.Apply
) -> Callable[[Key, Any, Array, Array], Array]:
    """Return `(key, params, pixels, labels) -> bits per dimension [B]`."""
    path, kind = build.process(config)[:2]
    text = config.likelihood["times"]
    text = text if "(" in text else f"{text}()"
    if text.startswith("adaptive"):
        solve = part("likelihood.times", text, sys.modules[__name__], TIMES)
    else:
        grid = part("likelihood.times", text, samplers, TIMES, path=path)
        solve = {"times": grid}
    half = 1 / (levels - 1)  # half a bin: pixels are the middles of theirs

    def bits(key: Key, params: Any, pixels: Array, labels: Array) -> Array:
        key_bins, key_probe = jax.random.split(key)
        x = likelihood.dequantize(
            key_bins, pixels, levels=levels, low=-1 - half, high=1 + half
        )
        predict = lambda x, t: apply(params, x, t, labels)
        if config.get("loss", ""):
            predict = flow_map.velocity(predict, None)
        denoise = prediction.denoiser(predict, path, kind)
        divergence = likelihood.hutchinson(key_probe)
        nats = likelihood.log_prob(denoise, path, x, divergence=divergence, **solve)
        return likelihood.bits_per_dim(nats, x.shape[1:], bin_width=2 * half)

    return bits
