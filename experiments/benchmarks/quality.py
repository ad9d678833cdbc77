"""Quality against network calls for every solver, as one plot.

    python -m experiments.benchmarks.quality
    python -m experiments.benchmarks.quality --workdir=runs/digits_edm

Without a working directory the denoiser is the exact one of a Gaussian mixture, so that
solvers are all there is to see, and quality is the sliced Wasserstein distance to true
samples. With one it is the network that `experiments.train` left there, guided as its
config says, and quality is the squared Frechet distance to the test images. The plot
and the table go to `--out`, by default `quality.png` and `quality.md` there or here.

The grid is the same for all solvers, and a budget of calls is used as far as whole
steps go. Samplers of consistency models want another kind of network and are left out.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, data, evaluate, plots
from experiments import sample as trained
from experiments._cli import one_line_errors, say
from experiments._spec import part
from experiments.benchmarks.orders import MIXTURE
from genlib import guidance, metrics, noise, prediction, samplers
from genlib.types import Denoiser, Key

BUDGETS = (5, 10, 20, 50)
CHURN = samplers.Churn(s_churn=20.0, s_tmin=0.05, s_tmax=20.0)
FAMILIES = {
    "first order": {
        "euler": samplers.euler(),
        "ddim": samplers.ddim(),
        "addim": samplers.addim(),
        "ddim(eta=0.5)": samplers.ddim(0.5),
        "ddpm": samplers.ddpm(),
        "euler, churn": samplers.euler(CHURN),
    },
    "two or three calls a step": {
        "heun": samplers.heun(),
        "midpoint": samplers.midpoint(),
        "ralston": samplers.ralston(),
        "dpm2": samplers.dpm2(),
        "dpm_solver(2)": samplers.dpm_solver(2),
        "dpm_solver(3)": samplers.dpm_solver(3),
        "dpmpp_2s": samplers.dpmpp_2s(),
        "dpmpp_3s": samplers.dpmpp_3s(),
    },
    "multistep, through $x_0$": {
        "dpmpp_2m": samplers.dpmpp_2m(),
        'dpmpp_2m("heun")': samplers.dpmpp_2m("heun"),
        "dpmpp_3m": samplers.dpmpp_3m(),
        "unipc(1)": samplers.unipc(1),
        "unipc(2)": samplers.unipc(2),
        "unipc(3)": samplers.unipc(3),
    },
    r"multistep, through $\epsilon$ or $dx/dt$": {
        "dpm_solver_multistep(2)": samplers.dpm_solver_multistep(2),
        "dpm_solver_multistep(3)": samplers.dpm_solver_multistep(3),
        "deis(3)": samplers.deis(3),
        "lms(4)": samplers.lms(4),
        "pndm": samplers.pndm(),
        'unipc(2, of="eps")': samplers.unipc(2, of="eps"),
        "adams_bashforth(2)": samplers.adams_bashforth(2),
    },
    "with noise, multistep": {
        "dpmpp_2m_sde": samplers.dpmpp_2m_sde(),
        "dpmpp_3m_sde": samplers.dpmpp_3m_sde(),
        "sa_solver": samplers.sa_solver(),
        "sa_solver(3, 3, 0.5)": samplers.sa_solver(3, 3, 0.5),
    },
    "with noise, two calls a step": {
        "dpm2_ancestral": samplers.dpm2_ancestral(),
        "dpmpp_2s_ancestral": samplers.dpmpp_2s_ancestral(),
        "dpmpp_sde": samplers.dpmpp_sde(),
        "heun, churn": samplers.heun(CHURN),
        "predictor_corrector(ddpm)": samplers.predictor_corrector(samplers.ddpm()),
    },
}
COLOURS = ("#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e")
COLOURS += ("#7d5ba6", "#2a9d9f", "#8c564b", "#c94f9b")
GREY = "#9aa0a6"

Grid = Callable[[noise.Path, int], Any]
Measure = Callable[[samplers.Solver, Any], float]


class Curve(NamedTuple):
    """Hold the quality of a solver at a few numbers of calls."""

    nfe: list[int]
    values: list[float]


class Case(NamedTuple):
    """Hold what solvers are measured on.

    Attributes:
      path, grid: where they go.
      measure: the distance of the samples of a solver on some times, smaller is better.
      floor: the smallest and the largest distance of true samples, or a single one.
      label: what the distance is.
    """

    path: noise.Path
    grid: Grid
    measure: Measure
    floor: tuple[float, float]
    label: str


def mixture(samples: int = 4096, seed: int = 0) -> Case:
    """Return the exact Gaussian mixture, on the cosine path from sigma / alpha = 20."""
    path = noise.Cosine()
    grid = lambda path, steps: samplers.karras(
        path, steps, sigma_min=0.02, sigma_max=20.0
    )
    directions, eps, draws, *keys = jax.random.split(jax.random.key(seed), 10)
    truth, x_0, *others = (MIXTURE.sample(key, samples) for key in keys)
    # The exact marginal there: the error of samples is that of the solver alone.
    x_T = noise.perturb(path, x_0, jax.random.normal(eps, x_0.shape), grid(path, 1)[0])
    # Drawn once: programs without random numbers compile in half the time.
    drawn = jax.random.normal(draws, (max(BUDGETS), 2, *x_T.shape))

    @jax.jit
    def distance(x: jax.Array) -> jax.Array:
        return metrics.sliced_wasserstein(directions, x, truth, projections=24)

    def measure(solver: samplers.Solver, times: Any) -> float:
        # Every program runs once: it should compile fast.
        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def draw(x: jax.Array, z: jax.Array) -> jax.Array:
            z = z[:, 0] if solver.draws == 1 else z[:, : solver.draws]
            given = z if solver.stochastic else None
            denoise = MIXTURE.denoiser(path)
            return samplers.sample(solver, denoise, path, times, x, noise=given)

        return float(distance(draw(x_T, drawn[: len(times) - 1])))

    floor = [float(distance(x)) for x in others]
    label = "sliced Wasserstein distance"
    return Case(path, grid, measure, (min(floor), max(floor)), label)


def images(workdir: Path) -> Case:
    """Return the network that a run left, with its data and its sampling settings.

    Raises:
      ValueError: if there is no checkpoint, or the network is no denoiser.
    """
    config, params, apply, shape, num_classes, space = trained.load(workdir)
    if space is not None:
        raise ValueError(f"workdir must be of a model of images, got latents {shape}")
    if config.get("loss", ""):
        raise ValueError(f"workdir must be of a denoiser, got loss={config.loss!r}")
    path, kind = build.process(config)[:2]
    scale, text = config.sampling.guidance, config.sampling.grid
    text = text if "(" in text else f"{text}()"
    judge = evaluate.Evaluator(data.load(**config.data))
    labels = np.arange(config.evaluation.samples, dtype=np.int32) % num_classes

    def grid(path: noise.Path, steps: int) -> Any:
        return part("grid", text, samplers, build.GRIDS, path=path, steps=steps)

    def measure(solver: samplers.Solver, times: Any) -> float:
        @jax.jit
        def draw(key: Key, params: Any, labels: jax.Array) -> jax.Array:
            def denoiser(labels: jax.Array) -> Denoiser:
                predict = lambda x, t: apply(params, x, t, labels)
                return prediction.denoiser(predict, path, kind)

            denoise = denoiser(labels)
            if scale != 1:
                null = denoiser(jnp.full_like(labels, num_classes))
                denoise = guidance.classifier_free(denoise, null, scale)
            x = noise.prior(key, path, (len(labels), *shape), t=times[0])
            drawn = jax.random.fold_in(key, 1) if solver.stochastic else None
            return samplers.sample(solver, denoise, path, times, x, drawn)

        drawn = draw(jax.random.key(config.seed + 1), params, labels)
        return judge(np.asarray(drawn), labels).frechet

    floor = judge.real.frechet
    return Case(path, grid, measure, (floor, floor), "squared Frechet distance")


def steps_within(solver: samplers.Solver, case: Case, calls: int) -> int:
    """Return the largest number of steps that costs no more than some calls, or 1."""
    cost = lambda steps: samplers.nfe(solver, case.path, case.grid(case.path, steps))
    # What a step costs in the long run; those at the ends may cost more or less.
    a_step = cost(13) - cost(12)
    return max(1, 12 + (calls - cost(12)) // a_step)


def curve(solver: samplers.Solver, case: Case, budgets: Sequence[int]) -> Curve:
    """Measure a solver at some budgets of calls, those that a step fits in."""
    found = {}
    for budget in budgets:
        times = case.grid(case.path, steps_within(solver, case, budget))
        nfe = samplers.nfe(solver, case.path, times)
        if nfe <= budget and nfe not in found:
            found[nfe] = case.measure(solver, times)
    return Curve(list(found), list(found.values()))


def curves(
    case: Case, budgets: Sequence[int] = BUDGETS, families: Any = None
) -> dict[str, dict[str, Curve]]:
    """Measure all solvers of all families, two programs at a time."""
    families = FAMILIES if families is None else families
    with ThreadPoolExecutor(2) as pool:
        waiting = {
            family: {
                name: pool.submit(curve, solver, case, budgets)
                for name, solver in members.items()
            }
            for family, members in families.items()
        }
        return {
            family: {name: future.result() for name, future in members.items()}
            for family, members in waiting.items()
        }


def figure(
    found: dict[str, dict[str, Curve]], case: Case, budgets: Sequence[int] = BUDGETS
) -> Any:
    """Draw a panel for each family, with all other solvers in grey behind it.

    Curves leave the panels where a solver is 40 times worse than the best.
    """
    from matplotlib.figure import Figure

    columns = -(-len(found) // 2)
    sheet = Figure(figsize=(3.5 * columns, 6.4), layout="constrained")
    axes = sheet.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    everything = [c for members in found.values() for c in members.values()]
    for axis, (family, members) in zip(axes.flat, found.items(), strict=False):
        for each in everything:
            axis.plot(*each, color=GREY, alpha=0.35, linewidth=0.7)
        for index, (name, each) in enumerate(members.items()):
            # Dashes, so that what lies below a curve on the same points is seen.
            style = "o-" if index < 4 else "o--"
            axis.plot(*each, style, color=COLOURS[index], markersize=3.5, label=name)
        low, high = case.floor
        axis.fill_between([1, 1000], low, max(high, 1.02 * low), color=GREY, alpha=0.4)
        axis.set(xscale="log", yscale="log", title=family)
        axis.legend(frameon=False, fontsize=8, loc="upper right")
        axis.spines[["top", "right"]].set_visible(False)
    ticks = sorted({nfe for each in everything for nfe in each.nfe})
    best = min(value for each in everything for value in each.values)
    worst = max(value for each in everything for value in each.values)
    axes.flat[0].set(xlim=(0.85 * ticks[0], 1.15 * ticks[-1]))
    low = 0.8 * min(best, case.floor[0])
    axes.flat[0].set(ylim=(low, min(1.3 * worst, 40 * best)))
    for axis in axes[-1]:
        axis.set_xticks(budgets, [str(budget) for budget in budgets])
        axis.minorticks_off()
        axis.set(xlabel="network calls")
    for axis in axes[:, 0]:
        axis.set(ylabel=case.label)
    return sheet


def rows(
    found: dict[str, dict[str, Curve]], budgets: Sequence[int]
) -> list[dict[str, object]]:
    """Return rows of a table: the quality at the most calls within each budget."""

    def cell(each: Curve, budget: int) -> str:
        under = [value for nfe, value in zip(*each, strict=True) if nfe <= budget]
        return f"{under[-1]:.3f}" if under else ""

    return [
        {"solver": name, **{f"{calls} calls": cell(each, calls) for calls in budgets}}
        for members in found.values()
        for name, each in members.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and draw the plot."""
    line = argparse.ArgumentParser(prog="python -m experiments.benchmarks.quality")
    line.add_argument("--workdir", type=Path, help="of experiments.train")
    line.add_argument("--out", help="prefix of the files")
    given = line.parse_args(argv)
    with one_line_errors(False):
        case = mixture() if given.workdir is None else images(given.workdir)
    found = curves(case)
    out = given.out or str((given.workdir or Path()) / "quality")
    figure(found, case).savefig(f"{out}.png", dpi=150)
    text = plots.table(rows(found, BUDGETS))
    Path(f"{out}.md").write_text(f"{text}\n")
    low, high = case.floor
    say(f"{case.label}; true samples: {low:.3f} to {high:.3f}\n\n{text}")


if __name__ == "__main__":
    main()
