"""What starts several processes, and what they must agree on, seen from one process."""

import os
import types

import jax
import numpy as np
import pytest

from genlib import train
from genlib.train import _distributed as distributed

SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
GKE = {"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "a,b"}


@pytest.fixture
def started_with(monkeypatch):
    """Return a function that sets variables, and returns the calls of jax."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    for name in (*EXPLICIT, "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda **settings: calls.append(settings)
    )

    def prepare(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return calls

    return prepare


def names(address, count, index, devices):
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "local_device_ids": devices,
        "initialization_timeout": 660,
    }


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {**SLURM, "SLURM_NTASKS": "1"},
        {key: SLURM[key] for key in ("SLURM_JOB_ID", "SLURM_NTASKS")},  # salloc
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        {**SLURM, "JAX_NUM_PROCESSES": "1"},
        {"JAX_NUM_PROCESSES": "1", "JAX_COORDINATOR_ADDRESS": "host:1"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},  # a variable, and no TPU
    ],
)
def test_a_process_that_is_alone_does_nothing(started_with, variables):
    calls = started_with(variables)
    assert train.initialize() == 1
    assert calls == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (EXPLICIT, names("host:1234", 4, 3, [])),
        ({**EXPLICIT, "JAX_LOCAL_DEVICE_IDS": "0,1"}, names("host:1234", 4, 3, None)),
        # jax finds the address, and takes the GPU of the local rank.
        (SLURM, names(None, 4, 3, [1])),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "2,3"}, names(None, 4, 3, [1])),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "3"}, names(None, 4, 3, [])),
        ({**SLURM, "JAX_LOCAL_DEVICE_IDS": "2,3"}, names(None, 4, 3, None)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "4"}, names(None, 4, 3, [])),
        ({**SLURM, **EXPLICIT}, names("host:1234", 4, 3, [1])),
        (OPEN_MPI, names(None, 2, 1, [1])),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, names(None, 2, 1, [])),
    ],
)
def test_the_environment_says_which_process_this_is(started_with, variables, expected):
    calls = started_with(variables)
    train.initialize()
    assert calls == [expected]


def test_arguments_come_before_the_environment(started_with):
    calls = started_with(EXPLICIT)
    train.initialize("other:5", 8, 7, timeout=20)
    assert calls == [{**names("other:5", 8, 7, []), "initialization_timeout": 100}]


@pytest.mark.parametrize(
    ("platforms", "variables", "asked"),
    [
        ("tpu,cpu", GKE, True),
        ("cpu", GKE, False),
        ("tpu,cpu", {**GKE, "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        (
            "tpu",
            {**GKE, "TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
            True,
        ),
        ("tpu,cpu", {"TPU_ML_PLATFORM": "JAX"}, True),  # a TPU VM: jax asks around
        ("tpu,cpu", {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_jax_is_asked_about_tpu_pods(
    started_with, monkeypatch, platforms, variables, asked
):
    calls = started_with(variables)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "config", types.SimpleNamespace(read=lambda _: platforms))
        train.initialize()
    assert calls == ([names(None, None, None, [])] if asked else [])


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({}, ("host:1", 4, 4), "process_id must be .*below num_processes=4; it is 4"),
        ({}, ("host:1", 4, -1), "process_id must be at least 0.*; it is -1"),
        ({}, ("host:1", 0, 0), "num_processes must be at least 1; it is 0"),
        ({}, ("host", 2, 0), "coordinator_address must be host:port; it is 'host'"),
        ({}, ("host:1", 2), r"process_id \(JAX_PROCESS_ID\) must be given with the"),
        ({}, (None, 2), "coordinator_address .* and process_id .* must be given"),
        ({"JAX_PROCESS_ID": "0"}, (), "coordinator_address .* and num_processes"),
        ({"JAX_NUM_PROCESSES": "two"}, (), "JAX_NUM_PROCESSES must be an integer"),
        (SLURM, (None, 2), "num_processes must be 4, the tasks that SLURM.*; it is 2"),
        ({**SLURM, "JAX_NUM_PROCESSES": "8"}, (), "num_processes must be 4"),
        (SLURM, (None, None, 0), "process_id must be 3, the rank .*; it is 0"),
        (OPEN_MPI, (None, 4), "num_processes must be 2, the tasks that Open MPI"),
        (
            {**SLURM, "SLURM_LOCALID": "2", "CUDA_VISIBLE_DEVICES": "0,1"},
            (),
            "CUDA_VISIBLE_DEVICES must name a GPU for each process",
        ),
    ],
)
def test_settings_that_contradict_are_refused(
    started_with, variables, arguments, message
):
    calls = started_with(variables)
    with pytest.raises(ValueError, match=message):
        train.initialize(*arguments)
    assert calls == []


def test_open_mpi_5_needs_the_address(started_with, monkeypatch):
    calls = started_with(OPEN_MPI)
    monkeypatch.delenv("OMPI_MCA_orte_hnp_uri")
    with pytest.raises(ValueError, match=r"coordinator_address .* must be given"):
        train.initialize()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    train.initialize()
    assert calls == [names("host:1234", 2, 1, [1])]


def test_a_second_call_only_counts(started_with, monkeypatch):
    calls = started_with({})
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert train.initialize() == jax.process_count() == 1
    with pytest.raises(ValueError, match="that of the first call, 1; it is 3"):
        train.initialize("host:1", 3, 0)
    assert calls == []


def test_jax_must_not_have_been_used():
    jax.devices()
    with pytest.raises(RuntimeError, match="before any JAX"):
        train.initialize("127.0.0.1:1", 2, 0)


def test_one_process_agrees_with_itself():
    train.check_same("config", {"a": [1, None], "b": "x"})
    train.barrier("here")
    assert train.is_main()
    with pytest.raises(ValueError, match="config must be JSON"):
        train.check_same("config", {"a": object()})


def test_differing_processes_are_named(monkeypatch):
    gathered = np.array([5, 6, 5, 7], np.uint32)
    gather = types.SimpleNamespace(process_allgather=lambda _: gathered)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(distributed, "multihost_utils", gather)
    message = r"seed must be the same in all 4 processes; .* in \[1, 3\]. .* it is 3"
    with pytest.raises(ValueError, match=message):
        train.check_same("seed", 3)


def test_whole_arrays_come_to_the_host(key):
    mesh = train.make_mesh(2, fsdp=4, devices=jax.devices("cpu"))
    x = np.arange(32, dtype=np.float32).reshape(16, 2)
    values = {"x": train.shard_batch(x, mesh), "key": key, "n": np.int32(3)}
    found = train.to_host(values)
    np.testing.assert_array_equal(found["x"], x, strict=True)
    assert isinstance(found["x"], np.ndarray)
    assert found["n"] == 3
    assert found["key"] == key


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4}, {"data": 1, "tensor": 8}])
def test_one_process_loads_all_rows(sizes):
    mesh = train.make_mesh(**sizes, devices=jax.devices("cpu"))
    np.testing.assert_array_equal(train.process_rows(16, mesh), np.arange(16))


def test_rows_must_divide():
    mesh = train.make_mesh(4, tensor=2, devices=jax.devices("cpu"))
    with pytest.raises(ValueError, match=r"multiple of the 4 devices .*; it is 6"):
        train.process_rows(6, mesh)
    with pytest.raises(ValueError, match=r"batch_size must be .*; it is 0"):
        train.process_rows(0, mesh)
