"""Straight flows in two dimensions: what couplings and re-flow do, as one table.

    python -m experiments.flows2d
    python -m experiments.flows2d --source=normal --data=gaussians

Each method trains one small network from eight Gaussians to two moons, or between other
pairs, and is measured on the flow of fresh samples of the source, evenly drawn:

- energy: the normalised path energy |mean(energy) - W2^2| / W2^2, 0 for optimal
  transport (arXiv:2302.00482);
- straightness: mean |(x_1 - x_0) - v|^2 along a trajectory, 0 for straight lines run at
  constant speed (arXiv:2209.03003);
- W2: the exact Wasserstein distance of what 1 and 100 steps of Euler's method make to
  as many samples of the data.

The working directory gets `table.md`, `results.json` and `flows.png`. The first command
took 7 minutes on two CPU cores that other work shared (4.4 of processor time) and
printed, with jax 0.10.2, seed 0:

| method  | energy | straightness | W2, 1 step | W2, 100 steps |
|---------|-------:|-------------:|-----------:|--------------:|
| I-CFM   |  1.326 |        8.828 |      2.100 |         0.262 |
| OT-CFM  |  0.012 |        0.031 |      0.346 |         0.247 |
| SB-CFM  |  0.001 |        0.088 |      0.554 |         0.334 |
| VP-CFM  |  1.098 |        7.127 |      2.789 |         0.317 |
| re-flow |  0.155 |        0.033 |      0.408 |         0.306 |

The W2 of source and data is 2.764, of the data to other data 0.069. Couplings make
flows cheap as well as straight; one round of re-flow, from the pairs and the network of
I-CFM, makes them straight only: it keeps the pairs, which are not optimal.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments._cli import one_line_errors, say
from experiments._rows import write_rows
from genlib import losses, metrics, nn, noise, prediction, samplers, train
from genlib.types import Array, Denoiser, Key

SIGMA = 1.0  # of the Schroedinger bridge
PATH = noise.Rectified()  # on straight lines every velocity makes a denoiser
STEPS = 100  # of Euler's method, for trajectories and the second W2
BATCH = 256
POOL = 65_536  # pairs of a re-flow

Draw = Callable[[Key], tuple[Array, Array]]


class Method(NamedTuple):
    """Hold how a velocity is trained: on which pairs, joined by what.

    `reflow` takes the pairs of the flow of that method instead of a coupling, and goes
    on from its network.
    """

    coupling: noise.Coupling | None
    interpolant: noise.Interpolant
    reflow: str | None = None


class Flow(NamedTuple):
    """Hold a trained velocity: its parameters, and the denoiser on `PATH` of it."""

    params: Any
    denoise: Denoiser


METHODS = {
    "I-CFM": Method(noise.independent_coupling, noise.LinearInterpolant()),
    "OT-CFM": Method(noise.optimal_coupling, noise.LinearInterpolant()),
    "SB-CFM": Method(
        noise.schroedinger_coupling(SIGMA), noise.BridgeInterpolant(SIGMA)
    ),
    "VP-CFM": Method(noise.independent_coupling, noise.TrigonometricInterpolant()),
    "re-flow": Method(None, noise.LinearInterpolant(), reflow="I-CFM"),
}


def gaussians(key: Key, u: Array) -> Array:
    """Draw from eight Gaussians on a circle of radius 5; u in [0, 1) picks which."""
    angle = jnp.pi / 4 * jnp.floor(8 * u)
    centres = 5.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return centres + 0.1**0.25 * jax.random.normal(key, (len(u), 2))


def moons(key: Key, u: Array) -> Array:
    """Draw from two interleaved half circles of radius 3; u in [0, 1) picks where."""
    lower, angle = u < 0.5, jnp.pi * (2 * u % 1)
    x = jnp.where(lower, 1 - jnp.cos(angle), jnp.cos(angle))
    y = jnp.where(lower, 0.5 - jnp.sin(angle), jnp.sin(angle))
    shift = 0.2 * jax.random.uniform(key, (len(u), 1))
    return 3.0 * (jnp.stack([x, y], axis=1) + shift) - 1.0


def normal(key: Key, u: Array) -> Array:
    """Draw from the standard normal, as many points as u has."""
    return jax.random.normal(key, (len(u), 2))


def independent(distribution: Callable[[Key, Array], Array], key: Key, n: int) -> Array:
    """Draw n independent points."""
    key_place, key_rest = jax.random.split(key)
    return distribution(key_rest, jax.random.uniform(key_place, (n,)))


def even(distribution: Callable[[Key, Array], Array], key: Key, n: int) -> Array:
    """Draw n points with equal numbers of each mode, and of each n-th of an arc.

    The squared W2 of 2048 such points scatters by 0.4 %, of independent ones by 1.4 %:
    as much as the path energy of a good flow exceeds it.
    """
    key_place, key_rest = jax.random.split(key)
    places = jnp.arange(n) + jax.random.uniform(key_place, (n,))
    return distribution(key_rest, places / n)


DISTRIBUTIONS = {"gaussians": gaussians, "moons": moons, "normal": normal}


class Velocity(nnx.Module):
    """A velocity network: three hidden layers of 64, which see x and t as they are."""

    def __init__(self, *, rngs: nnx.Rngs):
        sizes = (3, 64, 64, 64, 2)
        self.layers = nnx.List(
            [
                nnx.Linear(size, next_size, rngs=rngs)
                for size, next_size in itertools.pairwise(sizes)
            ]
        )

    def __call__(self, x: Array, t: Array) -> Array:
        h = jnp.concatenate([x, t[:, None]], axis=1)
        for layer in list(self.layers)[:-1]:
            h = jax.nn.selu(layer(h))
        return self.layers[-1](h)


def fit(
    key: Key, draw: Draw, interpolant: noise.Interpolant, steps: int, start: Any = None
) -> Flow:
    """Train a velocity on the pairs (x_0, x_1) of `draw`, from parameters or anew."""
    key_init, key_run, key_data = jax.random.split(key, 3)
    params, apply = nn.from_nnx(Velocity(rngs=nnx.Rngs(params=key_init)))

    def loss_fn(params: Any, batch: Any, key: Key) -> tuple[Array, int, dict]:
        predict = lambda x, t: apply(params, x, t)
        loss = losses.flow_matching(key, predict, *batch, interpolant=interpolant)
        return loss.sum(), loss.size, {}

    tx = optax.adam(1e-3)
    step = train.make_step(loss_fn, tx, ema=0.999)

    @jax.jit
    def run(state: train.State, keys: Array) -> train.State:
        body = lambda state, key: (step(state, draw(key))[0], None)
        return jax.lax.scan(body, state, keys)[0]

    state = train.init(key_run, params if start is None else start, tx)
    state = run(state, jax.random.split(key_data, steps))
    predict = lambda x, t: apply(state.ema, x, t)
    return Flow(state.ema, prediction.denoiser(predict, PATH, prediction.VELOCITY))


def pairs(
    key: Key, method: Method, data: Any, source: Any, flows: dict[str, Flow]
) -> Draw:
    """Return a draw of a minibatch of pairs (x_0, x_1)."""
    if method.reflow is not None:
        denoise = flows[method.reflow].denoise
        times = samplers.uniform(PATH, STEPS)
        transport = lambda x_1: samplers.sample(
            samplers.euler(), denoise, PATH, times, x_1
        )
        pool = jax.jit(lambda x_1: losses.reflow_pairs(transport, x_1))
        x_0, x_1 = pool(independent(source, key, POOL))

        def draw(key: Key) -> tuple[Array, Array]:
            rows = jax.random.randint(key, (BATCH,), 0, POOL)
            return x_0[rows], x_1[rows]

        return draw
    couple = method.coupling
    assert couple is not None

    def couple_batches(key: Key) -> tuple[Array, Array]:
        key_data, key_source, key_pairs = jax.random.split(key, 3)
        x_0 = independent(data, key_data, BATCH)
        x_1 = independent(source, key_source, BATCH)
        return couple(key_pairs, x_0, x_1)[:2]

    return couple_batches


def measure(
    denoise: Denoiser, x_1: Array, x_0: Array, distance: Array
) -> tuple[dict[str, float], np.ndarray]:
    """Return the measurements of a flow, and its trajectories [STEPS + 1, N, 2]."""
    times = samplers.uniform(PATH, STEPS)

    @jax.jit
    def flow(x_1: Array) -> tuple[Array, Array]:
        follow = lambda times, save: samplers.sample(
            samplers.euler(), denoise, PATH, times, x_1, save=save
        )
        _, points = follow(times, lambda x: x)
        trajectory = jnp.concatenate([x_1[None], points])
        return trajectory, follow(samplers.uniform(PATH, 1), None)

    trajectory, one = flow(x_1)
    energy = metrics.path_energy(trajectory, times)
    row = {
        "energy": metrics.normalised_path_energy(energy, distance),
        "straightness": metrics.straightness(trajectory, times).mean(),
        "W2, 1 step": metrics.wasserstein(one, x_0),
        f"W2, {STEPS} steps": metrics.wasserstein(trajectory[-1], x_0),
    }
    return {name: float(value) for name, value in row.items()}, np.asarray(trajectory)


def picture(trajectories: dict[str, np.ndarray], path: Path) -> Path:
    """Draw the flows side by side: the source grey, the lines green, the data blue."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(trajectories), 3.5), layout="constrained")
    axes = figure.subplots(
        1, len(trajectories), squeeze=False, sharex=True, sharey=True
    )[0]
    for (name, points), axis in zip(trajectories.items(), axes, strict=True):
        points = points[:, :: -(-points.shape[1] // 700)]  # of every mode as many
        axis.plot(*points.transpose(2, 0, 1), color="olive", alpha=0.25, linewidth=0.5)
        axis.plot(*points[0].T, ".", color="0.35", markersize=3)
        axis.plot(*points[-1].T, ".", color="tab:blue", markersize=3)
        axis.set(title=name, aspect="equal", xticks=[], yticks=[])
    figure.savefig(path, dpi=130)
    return path


def compare(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and measure every method, and write what came out."""
    if given.steps < 1 or given.samples < 2:
        raise ValueError(
            "steps must be at least 1 and samples at least 2, got "
            f"{given.steps} and {given.samples}"
        )
    data, source = DISTRIBUTIONS[given.data], DISTRIBUTIONS[given.source]
    keys = jax.random.split(jax.random.key(given.seed), 3 + len(METHODS))
    n = given.samples
    x_0, x_1 = even(data, keys[0], n), even(source, keys[1], n)
    # The squared W2 of few points is too large, that of 2048 by as much as the energy
    # of a good flow is: this one is of twice as many.
    more = even(data, keys[0], 2 * n), even(source, keys[1], 2 * n)
    distance = metrics.wasserstein(*more)
    floor = metrics.wasserstein(x_0, even(data, keys[2], n))
    say(
        f"{given.source} -> {given.data}: W2 {distance:.3f}; W2 of the data to other "
        f"data {floor:.3f}"
    )
    rows, flows, trajectories = [], {}, {}
    for key, (name, method) in zip(keys[3:], METHODS.items(), strict=True):
        begun = time.monotonic()
        key_pairs, key_fit = jax.random.split(key)
        minibatch = pairs(key_pairs, method, data, source, flows)
        start = flows[method.reflow].params if method.reflow is not None else None
        flow = fit(key_fit, minibatch, method.interpolant, given.steps, start)
        row, trajectories[name] = measure(flow.denoise, x_1, x_0, distance)
        flows[name] = flow
        rows.append({"method": name, **row})
        say(f"{name}: {time.monotonic() - begun:.0f} s")
    given.workdir.mkdir(parents=True, exist_ok=True)
    write_rows(rows, given.workdir, digits=3)
    say(f"wrote {picture(trajectories, given.workdir / 'flows.png')}")
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    line = argparse.ArgumentParser(
        prog="python -m experiments.flows2d",
        description=str(__doc__).partition("\n")[0],
    )
    add = line.add_argument
    add("--source", choices=DISTRIBUTIONS, default="gaussians")
    add("--data", choices=DISTRIBUTIONS, default="moons")
    add("--steps", type=int, default=6000, help="training steps of each method")
    add("--samples", type=int, default=2048, help="that the flows are measured on")
    add("--seed", type=int, default=0)
    add("--workdir", type=Path, default=Path("runs/flows2d"))
    add("--traceback", action="store_true", help="show where an error was raised")
    return line


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the arguments say."""
    given = parser().parse_args(argv)
    with one_line_errors(given.traceback):
        compare(given)


if __name__ == "__main__":
    main()
