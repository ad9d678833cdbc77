"""Train a diffusion model, a flow, a normalizing flow or an autoencoder; measure it.

    python -m experiments.train --config=digits_edm
    python -m experiments.train --config=digits_edm:smoke --config.steps=20
    python -m experiments.train --config=my_config.py --workdir=runs/mine

A config is a name in `experiments/configs` or a file like those. Every entry can be
changed on the command line. The working directory gets `metrics.jsonl`, checkpoints,
`samples.png` (one row for each class), `table.md`, `results.json` and, if the config
asks for bits per dimension, `likelihood.json`. A run that was stopped, even killed,
goes on from its last checkpoint when it is started again; one that was asked to stop
(SIGTERM) saves first and ends with status 143. What a normalizing flow leaves is in
`experiments/density_report.py`, and what its config says in `experiments/density.py`;
of an autoencoder in `experiments/autoencoder_report.py` and
`experiments/autoencoder.py`. A config with an `autoencoder` in it trains that first,
and then a diffusion model on its latents (`experiments/latents.py`) or a prior on its
codes (`experiments/code_prior.py`).

It runs as one process or as many, on one host or more (`experiments/launch`). These
entries of a config say how, and may be left out or changed when a run goes on:

    config.mesh = {"data": -1, "fsdp": 8, "tensor": 1}  # sizes of `train.make_mesh`
    config.sharding = (("mlp/.*kernel", (None, "tensor")),)  # `train.param_shardings`

and these belong to the run:

    config.precision = "bfloat16"  # or ((regex, dtype), ...), see `train.make_step`
    config.loss_scale = {"initial": 2.0**15}  # `train.LossScale`, for "float16"
"""

import functools
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from experiments import (
    autoencoder,
    autoencoder_report,
    build,
    code_prior,
    data,
    density,
    density_report,
    latents,
    likelihood,
    plots,
)
from experiments._cli import one_line_errors, parse, say
from experiments._rows import write_rows
from experiments.evaluate import evaluate
from genlib import train, tree
from genlib.types import Key

CONFIG = config_flags.DEFINE_config_file("config", help_string="NAME or FILE[:smoke]")
WORKDIR = flags.DEFINE_string("workdir", None, "by default runs/NAME")
TRACEBACK = flags.DEFINE_bool("traceback", False, "show where an error was raised")

# A run may be continued with other values of these; all others make another run.
FREE = ("steps", "log_every", "save_every", "tensorboard")
FREE += ("sampling", "evaluation", "likelihood", "test", "mesh", "sharding", "samples")
FREE += ("autoencoder_workdir",)


def main(_: Sequence[str]) -> None:
    """Train and evaluate what the flags say."""
    with one_line_errors(TRACEBACK.value):
        train.initialize()
        if CONFIG.value is None:
            raise ValueError("config must be given, for instance --config=digits_edm")
        workdir = Path(WORKDIR.value or Path("runs") / CONFIG.value.name)
        train_and_evaluate(CONFIG.value, workdir)


def train_and_evaluate(config: build.Config, workdir: Path) -> None:
    """Do the whole experiment in a working directory, or what is left of it.

    Raises:
      ValueError: if the config, the data or the working directory cannot be used; then
        nothing in the working directory has been changed.
    """
    start = time.monotonic()
    for name, entry in config.to_dict().items():
        train.check_same(f"config.{name}", entry)
    train.check_same("workdir", str(workdir))
    dataset = data.load(**config.data)
    shape, labels = dataset.train.images.shape[1:], dataset.train.labels
    train.check_same("data", [dataset.name, *shape, zlib.crc32(labels.tobytes())])
    say(f"{dataset.name}: {len(labels)} examples {shape} to train on")
    if density.is_flow(config):
        train_density(config, workdir, dataset, start)
    elif autoencoder.is_autoencoder(config):
        train_autoencoder(config, workdir, dataset)
    elif code_prior.is_prior(config):
        train_prior(config, workdir, dataset)
    else:
        train_diffusion(config, workdir, dataset, start)
    say(f"done in {time.monotonic() - start:.0f} s")


def train_diffusion(
    config: build.Config, workdir: Path, dataset: data.Dataset, start: float
) -> None:
    """Do the whole experiment of a diffusion model, on images or on their latents."""
    num_classes, pixels, space = dataset.num_classes, dataset, None
    shape, has_latents = dataset.train.images.shape[1:], latents.has_latents(config)
    if has_latents:
        shape = latents.shape(config, dataset)
    # All that can be refused is built before anything is trained.
    init_params, apply = build.lazy_network(config, shape, num_classes)
    loss_fn = build.loss_function(config, apply, num_classes)
    sampler = functools.partial(build.sampler, config, apply, shape, num_classes)
    draw = sampler().draw
    shapes = jax.eval_shape(init_params, jax.random.key(config.seed))
    known = {}
    if has_latents:
        model, params = train_autoencoder(
            config.autoencoder, latents.folder(config, workdir), dataset
        )
        space = latents.fitted(config.autoencoder, model, params, dataset.train)
        dataset, draw = space.dataset(dataset), sampler(decode=space.decode).draw
        known = {"latents": space.statistics}
        say(f"latents {space.shape}: {space.statistics}")
    measure = likelihood.measurement(config, dataset, apply, shapes)
    say_size(config.model, shapes)

    state = fit(config, workdir, dataset, init_params, loss_fn, known=known)
    ema = train.to_host(state.ema)
    # All processes measure, and one writes: none has to wait for another.
    say(f"trained after {time.monotonic() - start:.0f} s; drawing samples")
    key = jax.random.key(config.seed)
    write_samples(lambda labels: draw(key, ema, labels), num_classes, workdir)
    report(evaluate(config, pixels, apply, ema, space), workdir)
    if measure is not None:
        report_likelihood(measure(ema), workdir)


def train_autoencoder(
    config: build.Config, workdir: Path, dataset: data.Dataset
) -> tuple[autoencoder.Model, Any]:
    """Do the whole experiment of an autoencoder; return it with its parameters."""
    model = autoencoder.model(config, dataset.train.images.shape[1:], dataset.levels)
    init_params = autoencoder.initial(config, model, dataset.train)
    shapes = jax.eval_shape(init_params, jax.random.key(config.seed))
    say_size(f"{config.encoder}, {', '.join(config.bottleneck)}", shapes)

    start = time.monotonic()
    loss_fn, settings = autoencoder.loss_function(model), autoencoder.settings(model)
    known = {"levels": dataset.levels}
    state = fit(config, workdir, dataset, init_params, loss_fn, known=known, **settings)
    params = train.to_host(tree.merge(state.ema, state.params))
    say(f"trained the autoencoder after {time.monotonic() - start:.0f} s")
    rows = autoencoder_report.compare(config, model, params, dataset)
    write_rows(rows, workdir)
    autoencoder_report.write_reconstructions(model, params, dataset.test, workdir)
    if model.emission is not None:
        images = autoencoder_report.draw(
            model, jax.random.key(config.seed), params, 100
        )
        if train.is_main():
            say(f"wrote {plots.grid(images, 10, 10, workdir / 'samples.png')}")
    return model, params


def train_prior(config: build.Config, workdir: Path, dataset: data.Dataset) -> None:
    """Do the whole experiment of a prior over the codes of an autoencoder."""
    own, num_classes = config.autoencoder, dataset.num_classes
    model = autoencoder.model(own, dataset.train.images.shape[1:], dataset.levels)
    prior = code_prior.prior(config, model, autoencoder.shapes(own, model), num_classes)
    loss_fn = code_prior.loss_function(config, prior, num_classes)
    _, params = train_autoencoder(own, latents.folder(config, workdir), dataset)
    codes = code_prior.codes(config, model, params, dataset)
    say_size(config.prior, code_prior.shapes(prior))
    state = fit(config, workdir, codes, prior.init, loss_fn, known={"size": model.size})

    own = train.to_host(state.ema)
    sample, key = code_prior.sampler(config, prior, model), jax.random.key(config.seed)
    draw_by = lambda key: lambda labels: sample(key, (own, params), labels)
    write_samples(draw_by(key), num_classes, workdir)
    draw = draw_by(jax.random.fold_in(key, 1))
    rows = code_prior.measure(config, prior, own, codes.test, dataset, draw)
    write_rows(rows, workdir)


def train_density(
    config: build.Config, workdir: Path, dataset: data.Dataset, start: float
) -> None:
    """Do the whole experiment of a normalizing flow: its best step is what counts."""
    dataset, held_out = density.splits(config, dataset)
    shape, num_classes = dataset.train.images.shape[1:], dataset.num_classes
    model = density.model(config, shape, num_classes, dataset.levels)
    init_params = density.initial(config, model, dataset.train)
    shapes = jax.eval_shape(init_params, jax.random.key(config.seed))
    say_size(config.model, shapes)

    measure = density.measurement(config, model)
    evaluate = density.validation(config, model, measure, held_out)
    loss_fn, metric = density.loss_function(model), f"val_{model.unit}"
    known = {"levels": dataset.levels}
    fit(config, workdir, dataset, init_params, loss_fn, evaluate, metric, known=known)
    step, params = density_report.best(workdir, metric, shapes)
    value = measure(params, held_out, config.validation["draws"]).mean()
    say(
        f"trained after {time.monotonic() - start:.0f} s; step {step} is the best, "
        f"with {metric} {value:.4f}, and is what is measured"
    )
    rows = density_report.compare(config, model, measure, dataset, params, step)
    write_rows(rows, workdir)
    density_report.write_pictures(config, model, dataset, params, workdir)


def write_samples(
    draw: Callable[[np.ndarray], np.ndarray], num_classes: int, workdir: Path
) -> None:
    """Draw ten images of each class, in all processes, and write them in one."""
    shown = min(num_classes, 20)
    images = draw(np.repeat(np.arange(shown, dtype=np.int32), 10))
    if train.is_main():
        say(f"wrote {plots.grid(images, shown, 10, workdir / 'samples.png')}")


def say_size(name: str, shapes: Any) -> None:
    """Print how large a model is."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    say(f"{name}: {count:,} parameters on {jax.device_count()} device(s)")


def fit(
    config: build.Config,
    workdir: Path,
    dataset: data.Dataset,
    init_params: Callable[[Key], Any],
    loss_fn: train.LossFn,
    evaluate: Callable[[train.State], dict[str, float]] | None = None,
    best: str | None = None,
    *,
    known: Mapping[str, Any] | None = None,
    **settings: Any,
) -> train.State:
    """Train for `config.steps` steps, from the last checkpoint if there is one.

    With `evaluate` the state is measured wherever it is saved, and the checkpoint that
    is best by the metric `best` stays. What is `known` goes into the metadata of the
    checkpoints, and `settings` are those of `build.training`.
    """
    metadata = {
        "config": config.to_dict(),
        "shape": dataset.train.images.shape[1:],
        "num_classes": dataset.num_classes,
        **(known or {}),
    }
    check_same_run(workdir / "checkpoints", metadata)
    step, new = build.training(config, loss_fn, init_params, **settings)
    mesh = train.make_mesh(**config.get("mesh", {}))
    batches = data.batches(
        dataset,
        config.batch_size,
        config.seed,
        flip=config.flip,
        dequantize=config.get("dequantize", False),
        rows=train.process_rows(config.batch_size, mesh),
    )
    # Each device makes its own part: the whole state may fit on none.
    key = jax.random.key(config.seed)
    shardings = train.state_shardings(
        jax.eval_shape(new, key), mesh, config.get("sharding", ())
    )
    state = jax.jit(new, out_shardings=shardings)(key)

    check_one_folder(workdir)
    writer = train.Metrics(workdir, tensorboard=config.tensorboard)
    checkpoints = workdir / "checkpoints"
    with train.Checkpointer(checkpoints, best=best, metadata=metadata) as checkpointer:
        if checkpointer.latest is not None:
            say(f"resuming {workdir} after step {checkpointer.latest}")
        state = train.fit(
            train.jit_step(step, mesh, shardings),
            state,
            batches,
            steps=config.steps,
            mesh=mesh,
            writer=writer,
            log_every=config.log_every,
            checkpointer=checkpointer,
            save_every=config.save_every,
            eval_fn=evaluate,
            eval_every=config.save_every if evaluate else None,
        )
    writer.close()
    return state


def check_one_folder(workdir: Path) -> None:
    """Make the working directory, in one process, and check that all see it.

    Raises:
      ValueError: on every process, if one of them does not.
    """
    if train.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
    train.barrier("workdir is made")
    steps = sorted(path.name for path in workdir.glob("checkpoints/*"))
    train.check_same(
        f"workdir on one file system: {workdir}", [workdir.is_dir(), steps]
    )


def check_same_run(checkpoints: Path, metadata: dict[str, Any]) -> None:
    """Refuse to continue a run that another config began.

    Raises:
      ValueError: naming the first entry that differs.
    """
    if not any(path.name.isdigit() for path in checkpoints.glob("*")):
        return
    old, new = train.read_metadata(checkpoints), json.loads(json.dumps(metadata))
    if old.keys() != new.keys():
        raise ValueError(f"workdir must be of this experiment, got {checkpoints}")
    # The same data may lie elsewhere today.
    old, new = (
        {**run["config"], "data": {**run["config"]["data"], "directory": ""}}
        for run in (old, new)
    )
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in FREE and old.get(name) != new.get(name):
            raise ValueError(
                f"workdir must be new or of a run with the same config: in "
                f"{checkpoints.parent} {name} is {old.get(name)!r}, now it is "
                f"{new.get(name)!r}"
            )


def report(rows: list[dict[str, Any]], workdir: Path) -> None:
    """Print and write the measurements, in one process."""
    write_rows(rows, workdir, digits=3)
    real, best = rows[0], min(rows[1:], key=lambda row: row["frechet"])
    say(
        f"Memorising? Median distance to the nearest training image: samples "
        f"{best['nearest']:.3f} ({best['solver']}, {best['NFE']} NFE), held-out images "
        f"{real['nearest']:.3f}. Nearer than the nearest 1 % of the held-out images: "
        f"{best['copies']:.1%} of the samples."
    )


def report_likelihood(row: dict[str, float], workdir: Path) -> None:
    """Print and write the bits per dimension, in one process."""
    if not train.is_main():
        return
    (workdir / "likelihood.json").write_text(json.dumps(row, indent=1) + "\n")
    say(
        f"Held-out images given their class: at most {row['bits_per_dim']:.3f} +- "
        f"{row['standard_error']:.3f} bits/dim ({row['images']} images, "
        f"{row['probes']} solves each)"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
