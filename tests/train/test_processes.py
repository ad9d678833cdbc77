"""Two processes with two devices each are one run, equal to one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax

import genlib
from genlib import train
from tests.train import toy

SCRIPT = """
import sys
import jax

index, port, folder = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)

import numpy as np
import optax
from genlib import train
from tests.train import toy

mesh = train.make_mesh(4)
tx = optax.adam(1e-2)
step = train.make_step(toy.noisy_loss_fn, tx, accumulate=2, clip_norm=1.0)
step = train.jit_step(step, mesh)
rows = slice(index * 16, (index + 1) * 16)
batches = lambda step: {name: x[rows] for name, x in toy.batch(step).items()}
writer = train.Metrics(folder)
for steps in (3, 6):
    state = train.replicate(train.init(jax.random.key(0), toy.params(), tx), mesh)
    with train.Checkpointer(folder + "/checkpoints") as checkpointer:
        state = train.fit(
            step, state, batches, steps=steps, mesh=mesh, writer=writer, log_every=2,
            checkpointer=checkpointer, progress=False,
        )
assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(state))
np.savez(f"{folder}/final{index}.npz", *map(np.asarray, jax.tree.leaves(state.ema)))
"""


def start(index, port, folder):
    root = Path(genlib.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(index), str(port), str(folder)]
    return subprocess.Popen(command, env=environment, cwd=root)


def test_two_processes_are_one_run(key, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [start(index, port, tmp_path) for index in range(2)]
    tx = optax.adam(1e-2)
    step = train.make_step(toy.noisy_loss_fn, tx, accumulate=2, clip_norm=1.0)
    state, step = train.init(key, toy.params(), tx), jax.jit(step)
    for index in range(6):
        state, _ = step(state, toy.batch(index))
    assert [process.wait(120) for process in pair] == [0, 0]
    for index in range(2):
        with np.load(tmp_path / f"final{index}.npz") as found:
            leaves = [found[name] for name in found.files]
        toy.assert_close(leaves, jax.tree.leaves(state.ema))
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 4
