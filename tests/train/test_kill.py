"""A run killed twenty times ends with the bits of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import genlib

STEPS, SAVE_EVERY, LOG_EVERY = 150, 3, 5

# Processes are forked from one that has imported everything and started no backend.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import jax, numpy as np, optax
from genlib import train
from tests.train import toy

root, steps, save_every, log_every = Path(sys.argv[1]), *map(int, sys.argv[2:])
saves = root / "killed" / "checkpoints"
started, drawn = root / "started", root / "drawn"


def run(folder, pause):
    def batches(index):
        if not started.exists():
            started.with_suffix(".tmp").write_text(str(index))
            started.with_suffix(".tmp").rename(started)
        with drawn.open("a") as file:
            file.write(".")
        time.sleep(pause)
        return toy.batch(index)

    tx = optax.sgd(1e-2, momentum=0.9)
    state = jax.jit(train.init, static_argnums=2)(jax.random.key(0), toy.params(), tx)
    step = jax.jit(train.make_step(toy.noisy_loss_fn, tx), donate_argnums=0)
    writer = train.Metrics(folder)
    with train.Checkpointer(folder / "checkpoints", keep=2) as checkpointer:
        state = train.fit(
            step, state, batches, steps=steps, writer=writer, log_every=log_every,
            checkpointer=checkpointer, save_every=save_every, progress=False,
        )
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    np.savez(folder / "final.npz", *leaves)


def fork(folder, pause):
    started.unlink(missing_ok=True)
    drawn.write_text("")
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run(folder, pause)
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code)


def saving(since):
    \"\"\"Whether a checkpoint is being written that was begun after a time.\"\"\"
    for path in saves.glob("*tmp*"):
        try:
            if path.stat().st_ctime > since:
                return True
        except FileNotFoundError:
            pass
    return False


def kill_in_a_save(pid, since):
    \"\"\"Stop the process, look whether it is in a save, and only then kill it.\"\"\"
    while True:
        while not saving(since):
            time.sleep(1e-3)
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        if saving(since):
            return os.kill(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)


def newest():
    return max((int(x.name) for x in saves.glob("*") if x.name.isdigit()), default=0)


os.waitpid(fork(root / "whole", 0), 0)
draw, lives = random.Random(0), []
for kind in ["any time", "in a save"] * 10 + ["SIGTERM"]:
    before, since = newest(), time.time()
    pid = fork(root / "killed", 0.01)
    enough = draw.randint(2, 10)  # batches, the first of which waits for the compiler
    while drawn.stat().st_size < enough:
        time.sleep(1e-3)
    time.sleep(draw.uniform(0, 0.02))
    if kind == "in a save":
        kill_in_a_save(pid, since)
    else:
        os.kill(pid, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    life = dict(kind=kind, code=code, saved=before, resumed=int(started.read_text()))
    lives.append(life | dict(left=any(saves.glob("*tmp*"))))
last = os.waitstatus_to_exitcode(os.waitpid(fork(root / "killed", 0), 0)[1])
print(json.dumps(dict(lives=lives, last=last)))
"""


def logged(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows]


def test_killed_runs_resume_bit_for_bit(tmp_path):
    root = Path(genlib.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    arguments = map(str, (tmp_path, STEPS, SAVE_EVERY, LOG_EVERY))
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, timeout=300
    )
    assert done.returncode == 0
    found = json.loads(done.stdout)
    lives, whole, killed = found["lives"], tmp_path / "whole", tmp_path / "killed"
    assert found["last"] == 0
    codes = [life["code"] for life in lives]
    assert codes == [-9] * 20 + [143]
    # Nothing is lost beyond the last complete save, and half a save is in nobody's way.
    assert all(life["resumed"] == life["saved"] for life in lives)
    assert sum(life["left"] for life in lives if life["kind"] == "in a save") == 10
    resumed = [life["resumed"] for life in lives]
    assert resumed == sorted(resumed)
    assert len(set(resumed)) > 5
    assert {x.name for x in (killed / "checkpoints").iterdir()} == {"147", "150"}
    with np.load(whole / "final.npz") as a, np.load(killed / "final.npz") as b:
        assert len(a.files) == 9
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], strict=True)
    assert logged(killed) == logged(whole)
    assert [step for step, _ in logged(whole)] == [*range(LOG_EVERY, STEPS + 1, 5)]
