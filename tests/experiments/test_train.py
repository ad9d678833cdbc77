"""The training entry point: a whole run, its continuation, and its refusals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from experiments import build, data, train
from experiments._cli import CONFIGS, config_file, one_line_errors, parse
from experiments._spec import part
from experiments.configs import (
    cifar10_edm,
    cifar10_vp,
    digits_edm,
    digits_flow,
    digits_vp,
    mnist_flow,
)
from genlib import noise

ROOT = Path(train.__file__).parents[1]
# ml_collections loads configs in a way that Python means to remove.
LOADS_A_CONFIG = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
RECIPES = [digits_edm, digits_flow, digits_vp, mnist_flow, cifar10_edm, cifar10_vp]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def command_line(monkeypatch, *words: str) -> None:
    """Parse as if the words had been typed; ml_collections looks at sys.argv itself."""
    monkeypatch.setattr(sys, "argv", ["train", *words])
    flags.FLAGS.unparse_flags()
    parse(sys.argv)


def test_a_run_leaves_its_picture_tables_metrics_and_checkpoints(digits_run):
    assert steps_of(digits_run) == [5, 10]
    assert {path.name for path in (digits_run / "checkpoints").iterdir()} == {"5", "10"}
    with Image.open(digits_run / "samples.png") as picture:
        assert picture.size == (10 * 66 + 2, 10 * 66 + 2)
    rows = json.loads((digits_run / "results.json").read_text())
    assert [(row["solver"], row["NFE"]) for row in rows] == [
        ("real images", 0),
        ("ddim", 4),
    ]
    # The distance of the 1400 training digits to the 397 others, by another program.
    assert rows[0]["frechet"] == pytest.approx(0.351, abs=5e-4)
    assert rows[0]["accuracy"] > 0.95
    assert rows[1]["frechet"] > 10  # ten steps teach nothing
    assert (digits_run / "table.md").read_text().count("\n") == 4


def test_a_run_goes_on_from_its_checkpoint(digits_run, tmp_path, capsys):
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    config = digits_edm.get_config("smoke")
    config.steps = 12
    init_params, apply = build.lazy_network(config, (8, 8, 1), 10)
    loss_fn = build.loss_function(config, apply, 10)
    train.fit(config, tmp_path, data.load("digits"), init_params, loss_fn)
    assert "after step 10" in capsys.readouterr().out
    assert steps_of(tmp_path) == [5, 10, 12]
    old, new = contents(digits_run), contents(tmp_path)
    saved = [name for name in old if name.startswith("checkpoints/10/")]
    assert saved
    assert all(old[name] == new[name] for name in saved)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("model", "MLP(features=32, depth=1)"),
        ("path", "Cosine()"),
        ("seed", 1),
        ("batch_size", 8),
    ],
)
def test_another_experiment_is_refused_and_nothing_is_lost(digits_run, entry, value):
    before = contents(digits_run)
    config = digits_edm.get_config("smoke")
    config[entry] = value
    with pytest.raises(ValueError, match=f"workdir must be .*same config.* {entry} is"):
        train.train_and_evaluate(config, digits_run)
    assert contents(digits_run) == before


def test_checkpoints_of_something_else_are_refused(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(train.train, "read_metadata", lambda _: {"a": 1})
    with pytest.raises(ValueError, match="workdir must be of this experiment"):
        train.check_same_run(digits_run / "checkpoints", {"config": {}})
    train.check_same_run(tmp_path / "checkpoints", {"config": {}})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_every_config_names_parts_that_exist(recipe):
    full, smoke = recipe.get_config(), recipe.get_config("smoke")
    assert sorted(full.keys()) == sorted(smoke.keys())
    assert full.name == Path(recipe.__file__).stem != smoke.name
    for config in (full, smoke):
        assert build.process(config).path.t_max > 0
        assert set(config.evaluation.solvers) <= set(build.SOLVERS)
        build.sampler(config, lambda *_: None, (8, 8, 1), 10)
    with pytest.raises(ValueError, match="mode of the config must be smoke or none"):
        recipe.get_config("smok")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "Edm()"}, "path must be one of VPLinear"),
        ({"path": "EDM(sigma=1.0)"}, r"path='EDM\(sigma=1.0\)' is refused"),
        ({"path": "EDM(sigma_max=open('x'))"}, "path must be NAME"),
        ({"path": "EDM("}, "path must be NAME"),
        ({"kind": "noise"}, "kind must be one of X0"),
        ({"weight": "heavy"}, "weight must be one of unit"),
        ({"times": "never"}, "times must be one of uniform"),
    ],
)
def test_parts_that_do_not_exist_are_refused(changes, message):
    config = digits_edm.get_config("smoke")
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        build.process(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "rk45"}, "solver must be one of ddim"),
        ({"grid": "cubic"}, "grid must be one of uniform"),
        ({"steps": 0}, "is refused: steps must be"),
        ({"guidance": float("nan")}, "guidance must be finite"),
        ({"batch": 0}, "batch at least 1"),
    ],
)
def test_samplers_that_cannot_be_are_refused(changes, message):
    config = digits_edm.get_config("smoke")
    with pytest.raises(ValueError, match=message):
        build.sampler(config, lambda *_: None, (8, 8, 1), 10, **changes)


@pytest.mark.parametrize(
    ("solver", "budget", "nfe"),
    [("ddim", 10, 10), ("heun", 10, 9), ("heun", 1, 1), ("midpoint", 9, 9)],
)
def test_a_budget_buys_the_most_steps_that_it_pays(solver, budget, nfe):
    config = digits_edm.get_config("smoke")
    settings = dict(solver=solver, nfe=budget)
    sampler = build.sampler(config, lambda *_: None, (8, 8, 1), 10, **settings)
    assert sampler.nfe == nfe


def test_guidance_needs_dropped_labels():
    config = digits_edm.get_config("smoke")
    config.drop_labels = 0.0
    with pytest.raises(ValueError, match=r"guidance must be 1 .* without drop_labels"):
        build.sampler(config, lambda *_: None, (8, 8, 1), 10, guidance=1.5)


def test_a_part_is_its_name_or_its_call():
    assert part("path", "Cosine()", noise, ["Cosine"]) == noise.Cosine()
    assert part("path", "EDM(3.0)", noise, ["EDM"]) == noise.EDM(3.0)
    assert part("path", "EDM", noise, ["EDM"]) is noise.EDM
    with pytest.raises(ValueError, match="path must leave sigma_max out"):
        part("path", "EDM(sigma_max=3.0)", noise, ["EDM"], sigma_max=2.0)


def test_draws_are_cut_into_batches_of_one_shape():
    config = digits_edm.get_config("smoke")
    shapes = []

    def apply(params, x, t, labels):
        shapes.append(x.shape)
        return x * 0 + labels[:, None, None, None]

    sampler = build.sampler(config, apply, (2, 2, 1), 10, batch=4, steps=3)
    labels = np.arange(10, dtype=np.int32) % 3
    images = sampler.draw(jax.random.key(0), {}, labels)
    assert images.shape == (10, 2, 2, 1)
    assert set(shapes) == {(4, 2, 2, 1)}
    # The last step ends at the x_0 that the network points to, in the order asked for.
    means = [images[labels == label].mean() for label in range(3)]
    assert means == sorted(means)
    assert means[0] < means[2]


def test_configs_are_found_by_name_and_by_path(tmp_path):
    assert config_file("digits_edm:smoke") == f"{CONFIGS / 'digits_edm.py'}:smoke"
    own = tmp_path / "mine.py"
    own.write_text("")
    assert config_file(f"{own}") == str(own)
    with pytest.raises(
        ValueError, match=r"config must be a FILE\.py or one of .*digits"
    ):
        config_file("digit_edm")


@LOADS_A_CONFIG
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=digits_edm", "--config.stepz=5"], "error: .*stepz.*steps"),
        (["--config=digits_edm:fast"], "error: .*mode.*smoke"),
        (["--config=nowhere"], "error: config must be a FILE.py"),
        (["--config=digits_edm", "more"], "error: flags must begin with --"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, message, monkeypatch):
    with pytest.raises(SystemExit, match=message) as caught:
        command_line(monkeypatch, *words)
    assert "\n" not in str(caught.value)


@LOADS_A_CONFIG
def test_overrides_reach_the_config(monkeypatch):
    command_line(monkeypatch, "--config=digits_edm:smoke", "--config.path=Cosine()")
    assert isinstance(train.CONFIG.value, ConfigDict)
    assert train.CONFIG.value.path == "Cosine()"


def test_errors_show_where_they_were_raised_when_asked():
    with pytest.raises(ValueError, match="wrong"), one_line_errors(True):
        raise ValueError("wrong")
    with pytest.raises(SystemExit, match="error: wrong"), one_line_errors(False):
        raise ValueError("wrong")


def test_an_empty_data_directory_ends_in_one_line_and_leaves_nothing(tmp_path):
    workdir, empty = tmp_path / "run", tmp_path / "data"
    empty.mkdir()
    command = [sys.executable, "-m", "experiments.train", "--config=mnist_flow"]
    command += [f"--config.data.directory={empty}", f"--workdir={workdir}"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: directory must hold train-images-idx3-ubyte"
    )
    assert len(result.stderr.splitlines()) == 1
    assert not workdir.exists()
