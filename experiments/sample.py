"""Draw samples from a trained checkpoint: a PNG grid, one row for each class, and .npz.

    python -m experiments.sample --workdir=runs/digits_edm
    python -m experiments.sample --workdir=runs/digits_edm --classes=3,8 --steps=10 \\
        --solver="ddim(eta=1.0)" --guidance=1.5 --seed=1 --out=eights
    python -m experiments.sample --workdir=runs/digits_glow --temperature=0.7

What is not given is as in the config that the run was trained with. The .npz file holds
`samples`, float32 [N, H, W, C] in about [-1, 1], and `labels`, int32 [N]. Of a
normalizing flow it is the best step that is sampled, at temperature 1 by default; one
that was given no classes fills ten rows, and one of vectors makes no grid. Of a VAE it
is draws of its prior, decoded, in ten rows, and of an autoencoder with codes, which has
none, the first test images of each class as they come back.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import (
    autoencoder,
    autoencoder_report,
    build,
    code_prior,
    data,
    density,
    density_report,
    latents,
    plots,
)
from experiments._cli import one_line_errors, say
from genlib import train


class Trained(NamedTuple):
    """Hold what a run left: its config, the EMA parameters and what they are for."""

    config: build.Config
    params: Any
    apply: build.Apply
    shape: tuple[int, ...]
    num_classes: int
    space: latents.Space | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Draw and write what the arguments say."""
    given = parser().parse_args(argv)
    with one_line_errors(given.traceback):
        draw(given)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    line = argparse.ArgumentParser(
        prog="python -m experiments.sample", description=str(__doc__).partition("\n")[0]
    )
    add = line.add_argument
    add("--workdir", type=Path, required=True, help="of experiments.train")
    add("--solver", help="for instance heun or 'ddim(eta=1.0)'")
    add("--grid", help="for instance 'karras(rho=7.0)'")
    add("--steps", type=int, help="steps of the solver")
    add("--guidance", type=float, help="1 is the conditional model")
    add("--temperature", type=float, help="of a normalizing flow")
    add("--seed", type=int, default=0, help="of the samples")
    add("--classes", help="numbers with commas between, by default all")
    add("--per_class", type=int, default=8, help="samples of each class, or a tenth")
    add("--out", help="prefix of the files, by default in the workdir")
    add("--traceback", action="store_true", help="show where an error was raised")
    return line


def draw(given: argparse.Namespace) -> None:
    """Draw samples and write them, or raise a ValueError before anything is written."""
    config = described(given.workdir)[0]
    kinds = (
        (density.is_flow, draw_flow),
        (autoencoder.is_autoencoder, draw_autoencoder),
        (code_prior.is_prior, draw_codes),
        (lambda config: True, draw_diffusion),
    )
    draw = next(draw for fits, draw in kinds if fits(config))
    samples, labels = draw(given)
    out = given.out or str(given.workdir / f"samples_seed{given.seed}")
    rows = len(labels) // given.per_class
    if samples.ndim == 4:
        say(f"wrote {plots.grid(samples, rows, given.per_class, f'{out}.png')}")
    np.savez(f"{out}.npz", samples=samples, labels=labels)
    say(f"wrote {out}.npz")


def draw_diffusion(given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of a diffusion or flow-matching model, and their labels."""
    refuse(given, "temperature")
    config, params, apply, shape, num_classes, space = load(given.workdir)
    labels = class_labels(given.classes, given.per_class, num_classes)
    names = ("solver", "grid", "steps", "guidance")
    changes = {name: getattr(given, name) for name in names}
    changes = {name: value for name, value in changes.items() if value is not None}
    if space is not None:
        changes["decode"] = space.decode
    sampler = build.sampler(config, apply, shape, num_classes, **changes)
    say(f"drawing {len(labels)} samples with {sampler.nfe} NFE")
    return sampler.draw(jax.random.key(given.seed), params, labels), labels


def draw_flow(given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of a normalizing flow, and their labels."""
    refuse(given, "solver", "grid", "steps", "guidance")
    model, config, params = load_flow(given.workdir)
    if not model.num_classes:
        refuse(given, "classes")
    labels = class_labels(given.classes, given.per_class, model.num_classes or 10)
    if not model.num_classes:  # ten times as many, of no class
        labels = np.zeros_like(labels)
    temperature = 1.0 if given.temperature is None else given.temperature
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be 0 or positive, got {temperature}")
    say(f"drawing {len(labels)} samples at temperature {temperature:g}")
    sampler = density_report.sampler(config, model)
    key = jax.random.key(given.seed)
    return sampler(key, params, labels, temperature), labels


def draw_autoencoder(given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return draws of a VAE's prior, or test images that came back from codes."""
    refuse(given, "solver", "grid", "steps", "guidance", "temperature")
    model, config, params, metadata = load_autoencoder(given.workdir)
    num_classes = metadata["num_classes"]
    if model.emission is not None:
        refuse(given, "classes")
        labels = np.zeros(10 * given.per_class, np.int32)
        key = jax.random.key(given.seed)
        return autoencoder_report.draw(model, key, params, len(labels)), labels
    labels = class_labels(given.classes, given.per_class, num_classes)
    test = data.load(**config.data).test
    order = np.argsort(test.labels, kind="stable")
    first = np.searchsorted(test.labels[order], labels)
    seen = np.arange(len(labels)) % given.per_class
    rows = order[np.minimum(first + seen, len(order) - 1)]
    back = jax.jit(lambda params, x: model.decode(params, model.encode(params, x)))
    return np.asarray(back(params, test.images[rows])), test.labels[rows]


def draw_codes(given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of a prior over codes, and their labels."""
    refuse(given, "solver", "grid", "steps")
    config, _, num_classes, _ = described(given.workdir)
    labels = class_labels(given.classes, given.per_class, num_classes)
    changes = {name: getattr(given, name) for name in ("guidance", "temperature")}
    config.sampling.update({k: v for k, v in changes.items() if v is not None})
    folder = latents.folder(config, given.workdir)
    model, _, decoder, _ = load_autoencoder(folder)
    prior = code_prior.prior(config, model, decoder, num_classes)
    own = train.restore_params(given.workdir / "checkpoints", code_prior.shapes(prior))
    sampler = code_prior.sampler(config, prior, model)
    return sampler(jax.random.key(given.seed), (own, decoder), labels), labels


def refuse(given: argparse.Namespace, *names: str) -> None:
    """Raise a ValueError if something is given that the run has no use for."""
    for name in names:
        if getattr(given, name) is not None:
            raise ValueError(f"{name} must be left out for the run {given.workdir}")


def load(workdir: Path) -> Trained:
    """Restore a run: its config and the EMA parameters of its newest checkpoint.

    Raises:
      ValueError: if there is no checkpoint of `experiments.train`.
    """
    config, shape, num_classes, _ = described(workdir)
    like, apply = build.network(config, shape, num_classes)
    params = train.restore_params(workdir / "checkpoints", like)
    space = None
    if latents.has_latents(config):
        statistics = train.read_metadata(workdir / "checkpoints")["latents"]
        space = latents.restored(config, workdir, statistics)
    return Trained(config, params, apply, shape, num_classes, space)


def load_autoencoder(
    workdir: Path,
) -> tuple[autoencoder.Model, build.Config, Any, dict[str, Any]]:
    """Restore an autoencoder: itself, its config, parameters and metadata.

    Raises:
      ValueError: if there is no checkpoint of `experiments.train`.
    """
    config, shape, _, levels = described(workdir)
    model = autoencoder.model(config, shape, levels)
    like = autoencoder.shapes(config, model)
    params = train.restore_params(workdir / "checkpoints", like)
    return model, config, params, train.read_metadata(workdir / "checkpoints")


def load_flow(workdir: Path) -> tuple[density.Model, build.Config, Any]:
    """Restore a normalizing flow: itself, its config and its best parameters.

    Raises:
      ValueError: if there is no checkpoint of `experiments.train`.
    """
    config, shape, num_classes, levels = described(workdir)
    model = density.model(config, shape, num_classes, levels)
    like = density.shapes(config, model)
    params = train.restore_params(workdir / "checkpoints", like, step="best")
    return model, config, params


def described(workdir: Path) -> tuple[build.Config, tuple[int, ...], int, int]:
    """Read what a run says of itself: config, shape, classes and levels of the data.

    Raises:
      ValueError: if there is no checkpoint of `experiments.train`.
    """
    metadata = train.read_metadata(workdir / "checkpoints")
    if not {"config", "shape", "num_classes"} <= metadata.keys():
        raise ValueError(f"workdir must be of experiments.train, got {workdir}")
    config = ConfigDict(metadata["config"])
    shape, levels = tuple(metadata["shape"]), metadata.get("levels", 0)
    return config, shape, metadata["num_classes"], levels


def class_labels(classes: str | None, per_class: int, num_classes: int) -> np.ndarray:
    """Return each class of "0,3,8" (None for all) `per_class` times, int32.

    Raises:
      ValueError: if a class is not a number from 0 to num_classes - 1, or `per_class`
        is not positive.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    known = {str(label): label for label in range(num_classes)}
    names = list(known) if classes is None else classes.split(",")
    if wrong := [name for name in names if name not in known]:
        raise ValueError(
            f"classes must be numbers from 0 to {num_classes - 1}, got {wrong[0]!r}"
        )
    labels = np.array([known[name] for name in names], np.int32)
    return labels.repeat(per_class)


if __name__ == "__main__":
    main()
