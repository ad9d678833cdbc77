"""Compile a config's train step for a TPU pod that is only described, and say its cost.

    python -m experiments.aot --config=latent_dit_xl --topology=v5e:16x16 \\
        --config.mesh.data=2 --config.mesh.fsdp=128
    python -m experiments.aot --config=latent_dit_xl --rows=4 --plot=pods.png \\
        --topology=v5p:2x2x4,v5p:4x4x4,v5p:4x8x8,v5p:8x8x16,v5p:16x16x24

The compiler is that of real TPUs (`pip install genlib[tpu]`); no TPU is needed and
nothing of the model's size is allocated. Printed for each topology: bytes on a chip,
the collectives and the loops they run in, FLOPs (`genlib.train.flops`) and how many
there are for each byte. It is an error if a chip's memory does not suffice, or if a
large array is whole on every chip although the mesh splits parameters.

With several topologies each gets the largest "fsdp" that splits all large arrays and
that its network can route, the rest on "data", and --rows of the batch on each chip;
--plot draws their bytes against their chips.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments import _hlo, build
from experiments import train as experiment
from experiments._cli import one_line_errors, parse
from genlib import train, tree

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "v5e:16x16, v5e:16x16*2 (slices), or several with commas"
)
ROWS = flags.DEFINE_integer("rows", 0, "of the batch on a chip, for batch_size")
PLOT = flags.DEFINE_string("plot", None, "PNG of the bytes on a chip")
HLO = flags.DEFINE_string("hlo", None, "file for the compiled program's text")

# Shape and classes of what the data sets of `experiments.data` hold.
DATA = {
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "latents": ((32, 32, 4), 1000),
}
LARGE = 2**20  # bytes; smaller arrays may be whole on every chip
# A v4 chip is one device only if it is asked for.
CHIP = {"v4": {"chip_config_name": "megacore"}}


class Report(NamedTuple):
    """Hold what a step takes on one chip of a topology.

    Attributes:
      topology: its name.
      mesh: sizes of its axes.
      rows: of the global batch.
      state: table of the parts of the state.
      whole: large arrays that every chip holds completely, though the mesh splits.
      memory: bytes of the compiled step.
      collectives: what it sends.
      flops: of matrix products, as the step is written (with what remat repeats).
      peak: what the chip can do, None if that is not known.
    """

    topology: str
    mesh: dict[str, int]
    rows: int
    state: str
    whole: list[str]
    memory: train.Memory
    collectives: list[_hlo.Collective]
    flops: float
    peak: train.Peak | None


def devices_of(topology: str) -> list[Any]:
    """Return the devices of a described topology, such as v5e:16x16.

    v5e:16x16*2 are two such slices, between which the network is slow.

    Raises:
      ValueError: if there is no such topology, or no compiler for it.
    """
    from jax.experimental import topologies

    # Several processes may describe TPUs at once; and without the others the library
    # looks for the machine that it runs on.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    name, _, slices = topology.partition("*")
    settings = CHIP.get(name.partition(":")[0], {})
    try:
        return list(
            topologies.get_topology_desc(
                topology_name=name,
                platform="tpu",
                num_slices=int(slices or 1),
                **settings,
            ).devices
        )
    except (AssertionError, ImportError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            "topology must be one that libtpu (pip install genlib[tpu]) can describe, "
            f"such as v5e:16x16 or v5p:16x16x24, got {topology!r}: {reason}"
        ) from error


def compile_step(config: build.Config, topology: str) -> tuple[Report, str]:
    """Compile the train step of a config, and return what it takes and its HLO.

    Raises:
      ValueError: if the config cannot be used, or the batch or the memory of the chips
        does not suffice.
    """
    devices = devices_of(topology)
    mesh = train.make_mesh(**config.get("mesh", {}), devices=devices)
    rows, ways = config.batch_size, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows < 1 or rows % (ways * config.accumulate):
        raise ValueError(
            f"batch_size must be a multiple of the {ways} devices that split it (times "
            f"accumulate, {config.accumulate}), got {rows}"
        )
    step, state = described(config)
    shardings = split(config, state, mesh)
    shape, _ = data_of(config)
    batch = {
        "image": jax.ShapeDtypeStruct((rows, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    jitted = train.jit_step(step, mesh, shardings)
    lowered = jitted.trace(state, batch).lower(lowering_platforms=("tpu",))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology={topology} cannot run the step: {_first_line(error)}"
        ) from error
    hlo = compiled.as_text()
    report = Report(
        topology=topology,
        mesh=dict(mesh.shape),
        rows=rows,
        state=train.memory_table(state, shardings),
        whole=whole(state, shardings) if splits(mesh) else [],
        memory=train.memory(compiled),
        collectives=_hlo.collectives(hlo),
        flops=train.flops(step, state, batch) / len(devices),
        peak=train.device_peak(devices[0]),
    )
    return report, hlo


def described(config: build.Config) -> tuple[train.Step, train.State]:
    """Return the step of a config and the shapes of its state."""
    shape, num_classes = data_of(config)
    init_params, apply = build.lazy_network(config, shape, num_classes)
    loss_fn = build.loss_function(config, apply, num_classes)
    step, new = build.training(config, loss_fn, init_params)
    return step, jax.eval_shape(new, jax.random.key(0))


def split(config: build.Config, state: train.State, mesh: Any) -> train.State:
    """Return how a config splits a state over a mesh."""
    return train.state_shardings(state, mesh, config.get("sharding", ()))


def data_of(config: build.Config) -> tuple[tuple[int, ...], int]:
    """Return the shape of an example and the number of classes of a config's data."""
    name = config.data["name"].removeprefix("synthetic_")
    if name not in DATA:
        raise ValueError(
            f"config.data.name must be one of {', '.join(DATA)}, of known shapes, "
            f"got {name!r}"
        )
    return DATA[name]


def splits(mesh: Any) -> bool:
    """Tell whether a mesh has an axis that parameters are split over."""
    return mesh.shape["fsdp"] * mesh.shape["tensor"] > 1


def whole(state: train.State, shardings: train.State) -> list[str]:
    """Name the arrays of a state above a size that every device holds completely."""
    leaves = zip(tree.named(state).items(), jax.tree.leaves(shardings), strict=True)
    return [
        f"{name} {leaf.shape}"
        for (name, leaf), sharding in leaves
        if sharding.is_fully_replicated and leaf.size * leaf.dtype.itemsize > LARGE
    ]


def text(report: Report) -> str:
    """Write a report for people."""
    memory, peak, chips = report.memory, report.peak, math.prod(report.mesh.values())
    axes = " x ".join(f"{axis} {n}" for axis, n in report.mesh.items() if n > 1)
    lines = [f"\n{report.topology}: {chips} chips ({axes}), {report.rows} rows"]
    lines += [f"  {line}" for line in report.state.splitlines()]
    for name, size in memory._asdict().items():
        lines.append(f"  {name:<18}{_mb(size):>12}")
    if peak is not None:
        share = memory.total / peak.memory
        lines.append(f"  of its memory     {_mb(peak.memory):>12} ({share:.1%} used)")
    lines.append("  collectives                 number  runs/step  MB/step  inside")
    for each in report.collectives:
        inside = " in ".join(f"a loop of {n or '?'}" for n in reversed(each.loops))
        lines.append(
            f"    {each.kind:<24}{each.count:>8}{each.count * each.runs:>11}"
            f"{each.bytes * each.runs / 1e6:>9.1f}  {inside or 'no loop'}"
        )
    sent = sum(each.bytes * each.runs for each in report.collectives)
    touched = memory.arguments + memory.outputs + 2 * memory.temporary
    lines.append(f"  {report.flops / 1e12:.3f} TFLOP a chip and step")
    lines.append(f"  at most {report.flops / touched:.0f} for each byte of memory")
    if peak is not None:
        balance = peak.bfloat16 / peak.bandwidth
        seconds = report.flops / peak.bfloat16
        lines[-1] += f" (the chip is balanced at {balance:.0f})"
        lines[-2] += f": {1e3 * seconds:.2f} ms at its peak"
    if sent:
        lines.append(f"  {report.flops / sent:.0f} for each byte of the collectives")
    return "\n".join(lines)


def plot(reports: Sequence[Report], path: Path) -> None:
    """Draw the bytes on a chip against the number of chips."""
    import matplotlib.pyplot as plt

    chips = [math.prod(report.mesh.values()) for report in reports]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    state = [report.memory.arguments for report in reports]
    axis.loglog(chips, [x / 1e6 for x in state], "o-", label="state and batch")
    temporary = [report.memory.temporary for report in reports]
    axis.loglog(chips, [x / 1e6 for x in temporary], "s-", label="temporary")
    total = [report.memory.total for report in reports]
    axis.loglog(chips, [x / 1e6 for x in total], "k^-", label="total")
    ideal = [state[0] * chips[0] / n / 1e6 for n in chips]
    axis.loglog(chips, ideal, "k:", linewidth=1, label="1 / chips")
    axis.set_xticks(chips, [str(n) for n in chips])
    axis.minorticks_off()
    rows = {report.rows // n for report, n in zip(reports, chips, strict=True)}
    each = " or ".join(map(str, sorted(rows)))
    axis.set_xlabel(f"chips, {each} row(s) of the batch on each")
    axis.set_ylabel("MB on a chip")
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(_: Sequence[str]) -> None:
    """Compile what the flags say."""
    jax.config.update("jax_platforms", "cpu")
    with one_line_errors(experiment.TRACEBACK.value):
        config = experiment.CONFIG.value
        if config is None or not TOPOLOGY.value:
            raise ValueError(
                "config and topology must be given, for instance "
                "--config=latent_dit_xl --topology=v5e:16x16"
            )
        run(config, TOPOLOGY.value.split(","))


def run(config: build.Config, topologies: Sequence[str]) -> None:
    """Compile for every topology, and print and draw what that takes.

    Raises:
      ValueError: as `compile_step`; and if a step that was printed does not fit into
        its chips, or has a large array that is not split.
    """
    reports, faults = [], []
    for topology in topologies:
        devices = devices_of(topology)
        if len(topologies) > 1:
            config.mesh = largest_mesh(config, devices)
        if ROWS.value or len(topologies) > 1:
            config.batch_size = max(1, ROWS.value) * len(devices)
        report, hlo = compile_step(config, topology)
        print(text(report), flush=True)
        faults += check(report)
        reports.append(report)
        if HLO.value:
            Path(HLO.value).write_text(hlo)
    if PLOT.value:
        plot(reports, Path(PLOT.value))
    if faults:
        raise ValueError("; ".join(faults))


def largest_mesh(config: build.Config, devices: Sequence[Any]) -> dict[str, int]:
    """Return the mesh for a config on some devices whose axis "fsdp" is longest.

    Every large array is split over it; "data" gets the rest.

    Raises:
      ValueError: if there is none.
    """
    fixed = {
        axis: config.get("mesh", {}).get(axis, 1) for axis in ("tensor", "sequence")
    }
    rest = len(devices) // math.prod(fixed.values())
    _, state = described(config)
    for fsdp in (n for n in range(rest, 0, -1) if rest % n == 0):
        try:
            mesh = train.make_mesh(fsdp=fsdp, **fixed, devices=devices)
            shardings = split(config, state, mesh)
        except (ValueError, NotImplementedError):
            continue  # it divides no axis of the torus, or not an array with a rule
        if not whole(state, shardings):
            return dict(mesh.shape)
    raise ValueError(
        f"config must have large arrays that divide by some part of {rest} devices"
    )


def check(report: Report) -> list[str]:
    """Say what is wrong with a step: too much memory, or arrays that are not split."""
    faults = []
    if report.peak is not None and report.memory.total > report.peak.memory:
        faults.append(
            f"topology={report.topology} has {_mb(report.peak.memory)} on a chip, and "
            f"the step needs {_mb(report.memory.total)}"
        )
    if report.whole:
        faults.append(
            f"mesh and sharding must split large arrays; on {report.topology} every "
            f"chip holds all of {', '.join(report.whole[:3])} ({len(report.whole)} in "
            "all): choose another size of fsdp, or a rule"
        )
    return faults


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
