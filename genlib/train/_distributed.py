"""Several processes as one run: their start, and what they must agree on."""

import json
import math
import os
import threading
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from genlib.train._mesh import ROWS, batch_sharding

_SLURM = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST"),
    *("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> int:
    """Join the processes of a run, on one host or many, before jax is used.

    What is not given comes from the environment: from `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, then from whatever started the process: a
    TPU pod (Cloud TPU VMs, GKE, several slices), SLURM (`srun` with several tasks) or
    Open MPI. A process that none of them speaks of is alone, and nothing happens;
    `num_processes=1` says so where they are wrong (independent runs under one `srun`).
    A second call only returns the number of processes.

    GPUs: under SLURM and Open MPI a process that is alone on its host, or to which the
    scheduler has bound one GPU, takes all that it sees; otherwise the processes of a
    host must see all its GPUs (`--gres`, not `--gpus-per-task`) and each takes the one
    of its local rank. `JAX_LOCAL_DEVICE_IDS` (such as 0,1) overrides both.

    Args:
      coordinator_address: `host:port` of process 0, on which it will listen.
      num_processes: the number of processes.
      process_id: the number of this one, 0 to num_processes - 1.
      timeout: seconds to wait for the other processes.

    Returns:
      The number of processes.

    Raises:
      ValueError: for settings that are incomplete, out of range, or contradict what
        started the process; on all processes if they differ in `num_processes`.
      RuntimeError: if jax has been used already, or if the processes have not met in
        time: then this one must end, for jax still waits in the background.

    Source: `jax.distributed.initialize`, which finds the address of process 0; the rule
    for GPUs is that of jax#28194.

    >>> initialize(num_processes=1)
    1
    """
    launcher = _launcher()
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _setting("num_processes", num_processes)
    index = _setting("process_id", process_id)
    _check(address, count, index, launcher)
    if jax.distributed.is_initialized():
        if count not in (None, jax.process_count()):
            raise ValueError(
                f"num_processes must be that of the first call, {jax.process_count()}; "
                f"it is {count}"
            )
        return jax.process_count()
    if launcher is not None and count != 1:
        count, index = launcher.tasks, launcher.rank
    if count == 1:
        return 1
    if not _on_tpu_pod():
        if (address, count, index) == (None, None, None):
            return 1
        _check_complete(address, count, index, launcher)
    _connect(timeout, address, count, index, _local_devices(launcher))
    if count is not None:
        # The service believes process 0, and the others would wait for ever.
        check_same("num_processes", count)
    return jax.process_count()


def is_main() -> bool:
    """Tell whether this is process 0, the one that writes files and prints.

    >>> is_main()
    True
    """
    return jax.process_index() == 0


def check_same(name: str, value: Any) -> None:
    """Check that all processes give the same value; all of them must call it.

    Args:
      name: of the value, for the message.
      value: JSON.

    Raises:
      ValueError: on every process, if one of them gave another name or value, naming
        those that differ from process 0; if `value` is not JSON.

    >>> check_same("batch_size", 128)
    """
    try:
        text = json.dumps([name, value], sort_keys=True)
    except TypeError as error:
        raise ValueError(f"{name} must be JSON: {error}") from error
    if jax.process_count() == 1:
        return
    sums = np.uint32(zlib.crc32(text.encode()))
    sums = multihost_utils.process_allgather(sums)
    differ = np.flatnonzero(sums != sums[0]).tolist()
    if differ:
        raise ValueError(
            f"{name} must be the same in all {len(sums)} processes; it differs from "
            f"that of process 0 in {differ}. In process {jax.process_index()} it is "
            f"{value!r}"
        )


def barrier(name: str) -> None:
    """Wait until every process is here.

    Raises:
      ValueError: on every process, if one of them waits at another barrier.

    >>> barrier("files are written")
    """
    check_same("barrier", name)


def to_host(values: Any) -> Any:
    """Copy a pytree to NumPy, whole on every process; all of them must call it.

    Leaves are gathered one after another, so that a device holds one whole leaf at most
    beside its shards. Typed keys stay keys.

    Args:
      values: pytree of arrays, sharded over the devices of all processes or not.

    Returns:
      The pytree in NumPy arrays of the same dtypes.

    >>> to_host({"w": jax.numpy.ones(2)})
    {'w': array([1., 1.], dtype=float32)}
    """

    def fetch(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                return multihost_utils.process_allgather(leaf, tiled=True)
            leaf = leaf.addressable_data(0)
        return jax.device_get(leaf)

    return jax.tree.map(fetch, values)


def process_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Number the rows of a global batch that this process loads.

    With `rows = process_rows(len(x), mesh)`, `shard_batch(x[rows], mesh)` is the global
    batch `x`, row for row, for every number of processes and any order of devices.
    Processes that share rows (a "tensor" axis across them) get the same numbers.

    Args:
      batch_size: rows of the global batch, B.
      mesh: from `make_mesh`.

    Returns:
      Row numbers in ascending order, int64 [B / processes] or more.

    Raises:
      ValueError: if B does not divide by the devices over which batches are split.

    >>> from genlib.train import make_mesh
    >>> process_rows(16, make_mesh()).tolist() == list(range(16))
    True
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    if batch_size < 1 or batch_size % shards:
        raise ValueError(
            f"batch_size must be a multiple of the {shards} devices over which the "
            f"mesh splits a batch; it is {batch_size}"
        )
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    spans = {part[0].indices(batch_size) for part in parts.values() if part}
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


class _Launcher(NamedTuple):
    """What started several processes, and which of them this is."""

    name: str
    tasks: int
    rank: int
    local_rank: int
    alone_on_host: bool


def _launcher() -> _Launcher | None:
    """Read the variables of a launcher, None for a process that is alone."""
    found = None
    number = lambda name: int(os.environ[name])
    if all(name in os.environ for name in _SLURM):
        tasks = number("SLURM_NTASKS")
        alone = tasks == int(os.environ.get("SLURM_STEP_NUM_NODES", 0))
        ranks = number("SLURM_PROCID"), number("SLURM_LOCALID")
        found = _Launcher("SLURM", tasks, *ranks, alone)
    elif "OMPI_COMM_WORLD_SIZE" in os.environ:
        ranks = number("OMPI_COMM_WORLD_RANK"), number("OMPI_COMM_WORLD_LOCAL_RANK")
        alone = number("OMPI_COMM_WORLD_LOCAL_SIZE") == 1
        found = _Launcher("Open MPI", number("OMPI_COMM_WORLD_SIZE"), *ranks, alone)
    return None if found is None or found.tasks == 1 else found


def _on_tpu_pod() -> bool:
    """Tell whether to ask jax about the other hosts of a TPU."""
    # jax sets the first where it finds TPU chips and their library.
    if "TPU_ML_PLATFORM" not in os.environ:
        return False
    if "tpu" not in (jax.config.read("jax_platforms") or ""):
        return False
    workers = os.environ.get("TPU_PROCESS_ADDRESSES")
    workers = workers or os.environ.get("TPU_WORKER_HOSTNAMES")
    if workers is not None:
        return "," in workers or int(os.environ.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return "TPU_SKIP_MDS_QUERY" not in os.environ


def _local_devices(launcher: _Launcher | None) -> list[int] | None:
    """Return the GPUs of this process: [] for all, None for JAX_LOCAL_DEVICE_IDS."""
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    if launcher is None or launcher.alone_on_host:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [launcher.local_rank]
    count = len(visible.split(","))
    if launcher.local_rank >= count > 1:
        raise ValueError(
            "CUDA_VISIBLE_DEVICES must name a GPU for each process of the host (or one "
            f"for this process alone); it is {visible!r} for the local rank "
            f"{launcher.local_rank} of {launcher.name}. JAX_LOCAL_DEVICE_IDS overrides"
        )
    return [] if count == 1 else [launcher.local_rank]


def _setting(name: str, value: int | None) -> int | None:
    variable = f"JAX_{name.upper()}"
    if value is None and variable in os.environ:
        try:
            value = int(os.environ[variable])
        except ValueError:
            raise ValueError(
                f"{variable} must be an integer; it is {os.environ[variable]!r}"
            ) from None
    return value


def _check(
    address: str | None, count: int | None, index: int | None, launcher: Any
) -> None:
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ValueError(f"coordinator_address must be host:port; it is {address!r}")
    if count is not None and count < 1:
        raise ValueError(f"num_processes must be at least 1; it is {count}")
    if index is not None and not 0 <= index < (count or index + 1):
        most = "" if count is None else f" and below num_processes={count}"
        raise ValueError(f"process_id must be at least 0{most}; it is {index}")
    if launcher is None or count == 1:
        return
    if count not in (None, launcher.tasks):
        raise ValueError(
            f"num_processes must be {launcher.tasks}, the tasks that {launcher.name} "
            f"started, or 1 for a process that is alone; it is {count}"
        )
    if index not in (None, launcher.rank):
        raise ValueError(
            f"process_id must be {launcher.rank}, the rank that {launcher.name} gave; "
            f"it is {index}"
        )


def _check_complete(
    address: str | None, count: int | None, index: int | None, launcher: Any
) -> None:
    # jax finds the address by itself, except for Open MPI 5, which hides it.
    if launcher is not None:
        known = launcher.name == "SLURM" or "OMPI_MCA_orte_hnp_uri" in os.environ
        address = address or ("known" if known else None)
    given = dict(coordinator_address=address, num_processes=count, process_id=index)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        names = " and ".join(f"{name} (JAX_{name.upper()})" for name in missing)
        raise ValueError(
            f"{names} must be given with the others: no cluster was found that knows"
        )


def _connect(
    timeout: int,
    address: str | None,
    count: int | None,
    index: int | None,
    devices: list[int] | None,
) -> None:
    """Call jax in a thread: when its own time is up, it aborts without an exception."""
    failed: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                coordinator_address=address,
                num_processes=count,
                process_id=index,
                local_device_ids=devices,
                initialization_timeout=2 * timeout + 60,
            )
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(timeout)
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise RuntimeError(
            f"processes must meet within {timeout} s: process "
            f"{'?' if index is None else index} of {count or '?'} still waits for the "
            f"others at {address or 'the address that jax found'}. Do all of them run, "
            "with the same num_processes, and can they reach that port of process 0?"
        )
