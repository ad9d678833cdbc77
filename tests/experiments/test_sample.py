"""Sampling from a checkpoint: what it writes, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from experiments import build, sample
from genlib import train


def draw(folder, *words):
    sample.main([f"--workdir={folder}", *words])


def test_samples_are_written_as_a_grid_and_as_arrays(digits_run, tmp_path):
    words = ("--classes=3,1", "--per_class=2", "--steps=2", "--guidance=1.5")
    draw(digits_run, *words, f"--out={tmp_path}/first")
    with np.load(tmp_path / "first.npz") as file:
        samples, labels = file["samples"], file["labels"]
    assert samples.shape == (4, 8, 8, 1)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert labels.tolist() == [3, 3, 1, 1]
    with Image.open(tmp_path / "first.png") as picture:
        assert picture.size == (2 * 66 + 2, 2 * 66 + 2)
    draw(digits_run, *words, f"--out={tmp_path}/again")
    draw(digits_run, *words, "--seed=1", f"--out={tmp_path}/other")
    again, other = (
        np.load(tmp_path / f"{n}.npz")["samples"] for n in ("again", "other")
    )
    np.testing.assert_array_equal(samples, again)
    assert not np.array_equal(samples, other)


def test_what_is_not_given_is_as_in_the_config(digits_run, capsys):
    draw(digits_run, "--per_class=1")
    assert "10 samples with 4 NFE" in capsys.readouterr().out
    assert (digits_run / "samples_seed0.png").is_file()
    assert (digits_run / "samples_seed0.npz").is_file()


def test_the_average_is_what_is_sampled(digits_run):
    params = sample.load(digits_run).params
    like, _ = build.network(sample.load(digits_run).config, (8, 8, 1), 10)
    last = train.restore_params(digits_run / "checkpoints", like, ema=False)
    kernel = lambda tree: np.asarray(tree["output"]["kernel"])
    assert np.abs(kernel(params)).max() > 0
    assert not np.array_equal(kernel(params), kernel(last))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--solver=rk45", "solver must be one of ddim"),
        ("--solver=ddim(eta='x'", "solver must be NAME"),
        ("--grid=cubic", "grid must be one of uniform"),
        ("--steps=0", "steps must be"),
        ("--guidance=nan", "guidance must be finite"),
        ("--classes=3,10", "classes must be numbers from 0 to 9, got '10'"),
        ("--classes=-1", "classes must be numbers from 0 to 9, got '-1'"),
        ("--classes=", "classes must be numbers from 0 to 9, got ''"),
        ("--per_class=0", "per_class must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(digits_run, tmp_path, word, message):
    with pytest.raises(SystemExit, match="error: .*" + message) as caught:
        draw(digits_run, f"--out={tmp_path}/none", word)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: directory must hold a checkpoint"):
        draw(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_checkpoint_is_refused(digits_run, monkeypatch, tmp_path):
    metadata = train.read_metadata(digits_run / "checkpoints")
    monkeypatch.setattr(train, "read_metadata", lambda _: {"lr": 1})
    with pytest.raises(SystemExit, match=r"workdir must be of experiments\.train"):
        draw(digits_run, f"--out={tmp_path}/none")
    metadata["config"]["model"] = "MLP(features=8, depth=1)"
    monkeypatch.setattr(train, "read_metadata", lambda _: metadata)
    with pytest.raises(SystemExit, match="must be one of this model"):
        draw(digits_run, f"--out={tmp_path}/none")
    assert list(tmp_path.iterdir()) == []
