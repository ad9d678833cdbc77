"""The launch scripts: one runs here for real, with two processes; the others parse."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import build, train
from experiments.configs import digits_edm
from genlib.train import restore_params
from tests.train.toy import assert_close

ROOT = Path(train.__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.iterdir())


def bash(*words, path=None, cwd=ROOT, seconds=20, **variables):
    """Run a script to its end, and whatever it started with it."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    run = subprocess.Popen(
        ["bash", *map(str, words)],
        cwd=cwd,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with run:
        try:
            out, error = run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    return run.returncode, out, error


@pytest.fixture
def recorded(tmp_path):
    """Stand in for the tools of clusters: each writes down its words, one a line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "xpk", "srun", "scontrol", "git"):
        tool = folder / name
        tool.write_text(
            f'#!/usr/bin/env bash\nprintf "%s\\n" {name} "$@" >>{tmp_path}/said\n'
            f'[[ {name} == srun ]] && exit "${{STATUS:-0}}"\nexit 0\n'
        )
        tool.chmod(0o755)
    return folder


def said(folder):
    return (folder / "said").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_parses_and_asks_for_a_config(script, tmp_path):
    assert bash("-n", script) == (0, "", "")
    code, _, error = bash(script, cwd=tmp_path)
    assert code == 1
    assert f"{script.name} CONFIG [FLAG...]" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("tpu_vm.sh", {"TPU": "t", "ZONE": "z"}, "--worker=all"),
        ("gke_xpk.sh", {"CLUSTER": "c", "IMAGE": "i"}, "--restart-on-exit-codes=143"),
    ],
)
def test_flags_reach_the_cluster_as_they_are(
    script, variables, expected, recorded, tmp_path
):
    words = ("digits_edm", "--config.model=MLP(features=8, depth=1)")
    run = bash(LAUNCH / script, *words, path=recorded, PROJECT="p", **variables)
    assert run == (0, "", "")
    assert expected in said(tmp_path).splitlines()
    # The remote shell splits the command once more.
    command = said(tmp_path)[said(tmp_path).index("-m experiments.train ") :]
    _, echo, _ = bash("-c", f"printf '%s\\n' {command.splitlines()[0]}")
    arguments = echo.splitlines()
    assert arguments[2:] == ["--config=digits_edm", words[1]]


@pytest.mark.parametrize(
    ("status", "left", "requeued"),
    [(0, 60, False), (143, 60, True), (143, 9000, False), (1, 60, False)],
)
def test_slurm_requeues_a_run_whose_time_is_up(
    status, left, requeued, recorded, tmp_path
):
    end = int(time.time()) + left
    code, _, _ = bash(
        LAUNCH / "slurm.sbatch",
        "digits_edm",
        "--config.steps=9",
        path=recorded,
        STATUS=str(status),
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_JOB_ID="71",
        SLURM_JOB_END_TIME=str(end),
    )
    assert code == status
    lines = said(tmp_path).splitlines()
    assert lines[-2:] == (
        ["requeue", "71"] if requeued else ["--config=digits_edm", "--config.steps=9"]
    )


def test_two_processes_do_the_whole_experiment(digits_run, tmp_path):
    script = LAUNCH / "two_processes_cpu.sh"
    code, out, error = bash(
        script,
        "digits_edm:smoke",
        f"--workdir={tmp_path}/run",
        seconds=300,
        XLA_FLAGS="--xla_backend_optimization_level=0",  # compiles faster
    )
    assert code == 0, error
    assert out.count("parameters on 8 device(s)") == out.count("done in") == 1
    pair = tmp_path / "run"
    names = {path.name for path in digits_run.iterdir()}
    assert {path.name for path in pair.iterdir()} == names
    one, two = (
        list(map(json.loads, (path / "metrics.jsonl").read_text().splitlines()))
        for path in (digits_run, pair)
    )
    assert [line["step"] for line in two] == [line["step"] for line in one] == [5, 10]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    like, _ = build.network(digits_edm.get_config("smoke"), (8, 8, 1), 10)
    for ema in (False, True):
        assert_close(
            restore_params(pair / "checkpoints", like, ema=ema),
            restore_params(digits_run / "checkpoints", like, ema=ema),
        )
    rows = json.loads((pair / "results.json").read_text())
    expected = json.loads((digits_run / "results.json").read_text())
    assert rows[1]["frechet"] == pytest.approx(expected[1]["frechet"], rel=1e-3)
