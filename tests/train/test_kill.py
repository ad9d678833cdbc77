"""A run killed with SIGKILL and started again ends with the bits of one left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import genlib

SCRIPT = """
import sys, time
import jax, numpy as np, optax
from genlib import train
from tests.train import toy

folder, pause = sys.argv[1], float(sys.argv[2])

def batches(index):
    time.sleep(pause)
    return toy.batch(index)

tx = optax.adam(1e-2)
state = train.init(jax.random.key(0), toy.params(), tx)
step = jax.jit(train.make_step(toy.noisy_loss_fn, tx, accumulate=2), donate_argnums=0)
writer = train.Metrics(folder)
with train.Checkpointer(folder + "/checkpoints", keep=2) as checkpointer:
    state = train.fit(
        step, state, batches, steps=60, writer=writer, log_every=5,
        checkpointer=checkpointer, save_every=4, progress=False,
    )
leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
np.savez(folder + "/final.npz", *leaves)
"""


def start(folder, pause):
    root = Path(genlib.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(pause)]
    return subprocess.Popen(command, env=environment, cwd=root)


def steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_killed_runs_resume_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    alone, victim = start(whole, 0), start(killed, 0.05)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "12").exists():
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert not (killed / "final.npz").exists()
    assert start(killed, 0).wait(120) == 0
    assert alone.wait(120) == 0
    with np.load(whole / "final.npz") as a, np.load(killed / "final.npz") as b:
        assert len(a.files) == 13
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], strict=True)
    assert steps(killed) == steps(whole) == list(range(5, 61, 5))
