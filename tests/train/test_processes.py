"""Real processes on one host: those that disagree, and two that are one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import build, data
from experiments import train as experiment
from experiments.configs import digits_edm
from genlib import train
from tests.train import toy

ROOT = Path(experiment.__file__).parents[1]

# One interpreter imports everything, and forks the processes of both tests.
SCRIPT = """
import os, sys, time
from pathlib import Path
import jax
import numpy as np
from experiments import build, data
from experiments import train as experiment
from genlib import train
from tests.train import test_processes

folder, ports = Path(sys.argv[1]), list(map(int, sys.argv[2:]))


def differing(index):
    train.initialize(f"127.0.0.1:{ports[0]}", 2 + index, index, timeout=60)


def lonely(index):
    train.initialize(f"127.0.0.1:{ports[1]}", 2, index, timeout=1)


def refused(call, *arguments):
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{call} did not raise")


def pair(index):
    os.environ |= dict(
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{ports[2]}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=str(index),
    )
    jax.config.update("jax_num_cpu_devices", 4)
    assert train.initialize(timeout=100) == train.initialize() == 2
    assert train.is_main() == (index == 0)
    train.check_same("seed", {"a": 1})
    message = refused(train.check_same, "seed", index)
    assert "process 0 in [1]" in message and message.endswith(f"it is {index}")
    assert f"{index} it is 'b{index}'" in refused(train.barrier, f"b{index}")

    x = np.arange(32).reshape(16, 2)
    mixed = sorted(jax.devices(), key=lambda device: device.id % 4)
    for sizes, devices, first in (
        ({}, None, [0, 1, 2]),
        ({"data": 2, "fsdp": 2, "tensor": 2}, mixed, [0, 1, 2]),
        ({"fsdp": 4, "tensor": -1, "data": 2}, mixed, [0, 1, 4]),
    ):
        mesh = train.make_mesh(**sizes, devices=devices)
        rows = train.process_rows(16, mesh)
        found = train.to_host({"x": train.shard_batch(x[rows], mesh), "y": x})
        assert (found["x"] == x).all() and (found["y"] == x).all(), sizes

    make = data.batches
    def slowly(*arguments, **settings):
        batches = make(*arguments, **settings)
        return lambda step: time.sleep(0.02) or batches(step)
    data.batches = slowly
    config = test_processes.endless()
    config.mesh = {"data": 2, "fsdp": 4}
    config.sharding = (("blocks.*kernel", (None, "fsdp")),)
    test_processes.fit(config, folder / "run")


children = {}
for role, index in (
    (differing, 0), (differing, 1), (lonely, 1), (pair, 0), (pair, 1)
):
    name = f"{role.__name__}{index}"
    child = os.fork()
    if not child:
        sys.stderr = open(folder / f"{name}.txt", "w", buffering=1)
        role(index)
        raise SystemExit(0)
    children[name] = child
    (folder / f"{name}.pid").write_text(str(child))
for name, child in children.items():
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (folder / f"{name}.code").write_text(str(code))
"""


def endless():
    config = digits_edm.get_config("smoke")
    config.steps = 10**5
    config.accumulate = 2
    config.save_every = 10**5
    return config


def fit(config, workdir):
    dataset = data.load("digits")
    init_params, apply = build.lazy_network(config, (8, 8, 1), 10)
    loss_fn = build.loss_function(config, apply, 10)
    return experiment.fit(config, workdir, dataset, init_params, loss_fn)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(path, process):
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None or path.exists()
        assert time.monotonic() < deadline, path
        time.sleep(0.05)
    return path.read_text()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Start them; the pair is in the middle of its run, and `codes` waits for all."""
    folder = tmp_path_factory.mktemp("processes")
    ports = [str(free_port()) for _ in range(3)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles faster
    command = [sys.executable, "-c", SCRIPT, str(folder), *ports]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, start_new_session=True
    )
    yield folder, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def outcome(folder, process, name):
    code = int(wait_for(folder / f"{name}.code", process))
    return code, (folder / f"{name}.txt").read_text()


def stop_at(monkeypatch, last):
    """Let the run get SIGTERM as it asks for batch `last`; return the steps it asks."""
    asked, make = [], data.batches

    def stopping(*arguments, **settings):
        batches = make(*arguments, **settings)

        def batch(step):
            if step == last:
                signal.raise_signal(signal.SIGTERM)
            asked.append(step)
            return batches(step)

        return batch

    monkeypatch.setattr(data, "batches", stopping)
    return asked


def steps_in(workdir):
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def test_two_processes_are_one_run_and_go_on_as_one(processes, tmp_path, monkeypatch):
    folder, process = processes
    run = folder / "run"
    wait_for(run / "metrics.jsonl", process)
    os.kill(int((folder / "pair1.pid").read_text()), signal.SIGTERM)
    for name in ("pair0", "pair1"):
        code, said = outcome(folder, process, name)
        assert code == train.Preempted().code, said
    assert len(steps_in(run)) == 1
    stopped = steps_in(run)[0]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(5, stopped + 1, 5))

    # It goes on in this process with the next batches, and was never another run.
    with monkeypatch.context() as patched:
        asked = stop_at(patched, stopped + 2)
        with pytest.raises(train.Preempted):
            fit(endless(), run)
    assert asked == [stopped, stopped + 1]
    with monkeypatch.context() as patched:
        asked = stop_at(patched, stopped + 2)
        with pytest.raises(train.Preempted):
            fit(endless(), tmp_path)
    assert asked == list(range(stopped + 2))
    assert steps_in(run)[-1] == steps_in(tmp_path)[-1] == stopped + 2
    like, _ = build.network(endless(), (8, 8, 1), 10)
    for ema in (False, True):
        found, expected = (
            train.restore_params(where / "checkpoints", like, ema=ema)
            for where in (run, tmp_path)
        )
        toy.assert_close(found, expected)
    start = np.concatenate([x.ravel() for x in jax.tree.leaves(like)])
    moved = np.concatenate([np.ravel(x) for x in jax.tree.leaves(expected)])
    assert abs(moved - start).max() > 1e-3


def test_processes_that_differ_or_are_missing_end_with_a_clear_error(processes):
    folder, process = processes
    for index in (0, 1):
        code, said = outcome(folder, process, f"differing{index}")
        assert code == 1
        assert f"In process {index} it is {2 + index}" in said.splitlines()[-1]
        assert "ValueError: num_processes must be the same" in said
    code, said = outcome(folder, process, "lonely1")
    assert code == 1
    assert "RuntimeError: processes must meet within 1 s: process 1 of 2" in said
