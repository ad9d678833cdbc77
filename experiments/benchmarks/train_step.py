"""What a train step costs beside the least that does the same work.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.train_step
    JAX_PLATFORMS=cpu python -m experiments.benchmarks.train_step --model=DiT

A small network on images of the digits' size, AdamW, a batch of 128. "bare" is a step
written by hand: gradient, update, loss, and nothing else. Beside it `make_step` as a
config uses it (average, gradient norm, clipping, the check for what is not finite), and
the same with the batch accumulated from 4 parts with ragged weights. The loop is
`fit`, which draws, places and logs, beside a bare loop over batches that are placed.

Medians, with the quartiles in brackets, over repeats in which all candidates alternate:
load from elsewhere then falls on all of them alike. Ratios are pair by pair, in seconds
of CPU time of the process (other processes matter less) and of the clock.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.samplers import spread
from experiments.plots import table
from genlib import losses, nn, noise, prediction, train

TX = optax.adamw(1e-3)
ROWS, STEPS = 128, 4


class Candidate(NamedTuple):
    """Hold one way to take `STEPS` steps, and the functions that it has compiled."""

    run: Callable[[], Any]
    jitted: Any


def model(name: str) -> tuple[Any, train.LossFn]:
    """Return the parameters of a UNet or a DiT and its weighted loss."""
    settings: dict[str, Any] = dict(multipliers=(1, 2), blocks=1, head_dim=16)
    settings |= dict(features=16, attention_at=(4,), image_size=8)
    if name == "DiT":
        settings = dict(features=64, depth=2, patch_size=2, num_heads=4)
    build = getattr(nn, name)
    init, apply = nn.lazy(lambda rngs: build(1, num_classes=10, rngs=rngs, **settings))
    path = noise.Cosine()

    def loss_fn(params: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        predict = lambda x_t, t: apply(params, x_t, t, batch["label"])
        loss = losses.denoising(key, predict, path, batch["image"], kind=prediction.V)
        return (loss * batch["weight"]).sum(), batch["weight"].sum(), {}

    return jax.jit(init)(jax.random.key(0)), loss_fn


def batch(index: int) -> dict[str, np.ndarray]:
    """Return made-up images with labels, a third of them padding."""
    draw = np.random.default_rng(index)
    return {
        "image": draw.normal(size=(ROWS, 8, 8, 1)).astype(np.float32),
        "label": draw.integers(0, 10, ROWS, dtype=np.int32),
        "weight": (draw.uniform(size=ROWS) > 1 / 3).astype(np.float32),
    }


def bare(loss_fn: train.LossFn) -> Any:
    """Return the step by hand, `(params, opt_state, key), batch -> carry, loss`."""

    def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, opt_state, key = carry
        key, key_loss = jax.random.split(key)

        def mean(params: Any) -> jax.Array:
            total, weight, _ = loss_fn(params, batch, key_loss)
            return total / weight

        loss, gradient = jax.value_and_grad(mean)(params)
        updates, opt_state = TX.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), loss

    return jax.jit(step, donate_argnums=0)


def looped(step: Any, carry: Any, batches: Sequence[Any]) -> Candidate:
    """Return a bare loop of a jitted step, which goes on where it stopped."""
    carried = [carry]

    def run() -> None:
        metrics = None
        for each in batches:
            carried[0], metrics = step(carried[0], each)
        jax.block_until_ready(metrics)

    return Candidate(run, step)


def fitted(step: Any, new: Callable[[], train.State]) -> Candidate:
    """Return `fit` with as many steps, drawing its batches on the host."""
    drawn = [batch(index) for index in range(STEPS)]
    held = [new()]

    class Silent:
        def write(self, step: int, values: Any) -> None: ...
        def rewind(self, step: int) -> None: ...

    def run() -> None:
        state = held[0]
        done = int(state.step)
        held[0] = train.fit(
            step,
            state,
            lambda index: drawn[index % STEPS],
            steps=done + STEPS,
            writer=Silent(),
            log_every=2,
            progress=False,
        )
        jax.block_until_ready(held[0].params)

    return Candidate(run, step)


def candidates(name: str) -> dict[str, Candidate]:
    """Return all ways to take the steps, the bare one first."""
    params, loss_fn = model(name)
    placed = [jax.device_put(batch(index)) for index in range(STEPS)]
    new = lambda: train.init(jax.random.key(0), params, TX)
    steps = {
        parts: jax.jit(
            train.make_step(loss_fn, TX, clip_norm=1.0, accumulate=parts),
            donate_argnums=0,
        )
        for parts in (1, 4)
    }
    own = jax.tree.map(jnp.copy, params)
    carry = own, TX.init(own), jax.random.key(0)
    return {
        "bare": looped(bare(loss_fn), carry, placed),
        "make_step": looped(steps[1], new(), placed),
        "accumulate=4": looped(steps[4], new(), placed),
        "fit": fitted(steps[1], new),
    }


def measure(runs: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Return seconds a step [repeats, runs, 2]: of the CPU, and of the clock."""
    for run in runs:
        run()
    times = np.empty((repeats, len(runs), 2))
    for repeat in range(repeats):
        for index, run in enumerate(runs):
            start = np.array([time.process_time(), time.perf_counter()])
            run()
            end = np.array([time.process_time(), time.perf_counter()])
            times[repeat, index] = (end - start) / STEPS
    return times


def rows(times: np.ndarray, names: Sequence[str]) -> list[dict[str, object]]:
    """Return the table: each candidate beside the one whose work it repeats."""
    beside = {"make_step": "bare", "accumulate=4": "make_step", "fit": "make_step"}
    found = []
    for index, name in enumerate(names):
        row: dict[str, object] = {"step": name}
        row["CPU ms"] = spread(1e3 * times[:, index, 0])
        row["beside"] = beside.get(name, "")
        for column, which in (("ratio, CPU", 0), ("ratio, clock", 1)):
            row[column] = ""
            if name in beside:
                other = times[:, names.index(beside[name]), which]
                row[column] = spread(times[:, index, which] / other)
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the machine and its load, then the table."""
    line = argparse.ArgumentParser(prog="python -m experiments.benchmarks.train_step")
    line.add_argument("--repeats", type=int, default=20)
    line.add_argument("--model", choices=("UNet", "DiT"), default="UNet")
    given = line.parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; "
        f"{given.repeats} repeats; median [quartiles]\n"
    )
    found = candidates(given.model)
    times = measure([candidate.run for candidate in found.values()], given.repeats)
    print(table(rows(times, list(found))))
    compiled = {name: each.jitted._cache_size() for name, each in found.items()}
    print(f"\nprograms compiled for each: {compiled}")


if __name__ == "__main__":
    main()
