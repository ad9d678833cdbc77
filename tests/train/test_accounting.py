"""Tables and shares of peaks, against counts by hand and against real buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import train
from genlib.train import (
    device_peak,
    memory,
    memory_table,
    mfu,
    param_table,
)
from genlib.train._peaks import DEVICE_PEAKS

TX = optax.adam(1e-3)
RULES = [("dense/w", ("fsdp", "tensor"))]


def params():
    return {
        "dense": {"w": jnp.ones((64, 32)), "b": jnp.ones(32, jnp.bfloat16)},
        "scale": jnp.ones(()),
    }


@pytest.fixture(scope="module")
def mesh():
    return train.make_mesh(2, fsdp=2, tensor=2)


def cells(table: str) -> dict[str, list[str]]:
    rows = [line.split("  ") for line in table.splitlines()[1:]]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {row[0]: row[1:] for row in rows}


def test_parameters_are_listed_with_totals_of_each_module(mesh):
    shardings = train.param_shardings(params(), mesh, RULES)
    rows = cells(param_table(params(), shardings))
    assert rows == {
        "dense/b": ["32", "bfloat16", "32", "64 B", "64 B"],
        "dense/w": [
            *("64x32", "float32", "2,048", "8.19 kB", "2.05 kB"),
            "('fsdp', 'tensor')",
        ],
        "dense": ["2,080", "8.26 kB", "2.11 kB"],
        "scale": ["scalar", "float32", "1", "4 B", "4 B"],
        "all": ["2,081", "8.26 kB", "2.12 kB"],
    }
    placed = jax.device_put(params(), shardings)
    assert param_table(placed) == param_table(params(), shardings)
    shapes = jax.eval_shape(params)
    assert param_table(shapes, shardings) == param_table(params(), shardings)
    with pytest.raises(ValueError, match="shardings must have the structure"):
        param_table(params(), shardings["dense"])


def test_the_memory_of_a_state_is_that_of_its_buffers(mesh):
    make = lambda: train.init(jax.random.key(0), params(), TX)
    shapes = jax.eval_shape(make)
    shardings = train.state_shardings(shapes, mesh, RULES)
    rows = cells(memory_table(shapes, shardings))
    state = jax.jit(make, out_shardings=shardings)()
    assert memory_table(state) == memory_table(shapes, shardings)
    first = jax.devices()[0]
    local = lambda x: sum(
        s.data.nbytes for s in x.addressable_shards if s.device == first
    )
    held = sum(map(local, jax.tree.leaves(state.params)))
    number = 64 * 32 + 32 + 1  # in float32, a quarter of the matrix on each device
    assert held == 4 * (64 * 32 // 4 + 32 + 1)
    assert rows["params"] == rows["ema"] == [f"{number:,}", "8.32 kB", "2.18 kB"]
    assert rows["opt_state"] == [f"{2 * number + 1:,}", "16.7 kB", "4.36 kB"]
    assert rows["others"] == ["2", "12 B", "12 B"]  # the step and the key
    assert rows["all"][0] == f"{4 * number + 3:,}"
    without = shapes._replace(ema=None)
    assert "ema" not in cells(memory_table(without))


def test_the_memory_of_a_program_counts_donated_arguments_once():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    size = 4 * 256**2
    add = lambda x, y: (x + y, (x * y).sum())
    plain = memory(jax.jit(add).lower(x, x).compile())
    given = memory(jax.jit(add, donate_argnums=0).lower(x, x).compile())
    assert plain.arguments == given.arguments == 2 * size
    assert (plain.aliased, given.aliased) == (0, size)
    assert plain.total - plain.temporary == 2 * size + plain.outputs
    assert given.total == given.arguments + given.outputs - size + given.temporary

    class Silent:
        memory_analysis = staticmethod(lambda: None)

    with pytest.raises(ValueError, match="backend that tells its memory"):
        memory(Silent())


def test_utilisation_is_of_the_sum_of_the_peaks():
    assert mfu(1.97e14, 2.0, ["TPU v5 lite"]) == pytest.approx(0.5)
    two = ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    np.testing.assert_allclose(mfu(989.4e12, 1.0, two), 0.5)
    fraction = mfu(30.3e12, 1.0, ["NVIDIA L4"], dtype=jnp.float32)
    np.testing.assert_allclose(fraction, 1.0)
    with pytest.raises(ValueError, match=r"known bfloat16 peak.*one is 'cpu'"):
        mfu(1e12, 1.0)
    with pytest.raises(ValueError, match=r"known float32 peak.*one is 'TPU v4'"):
        mfu(1e12, 1.0, ["TPU v4"], dtype="float32")
    with pytest.raises(ValueError, match="seconds must be positive; it is 0"):
        mfu(1e12, 0.0, ["TPU v4"])
    with pytest.raises(ValueError, match="dtype must be bfloat16 or float32"):
        mfu(1e12, 1.0, ["TPU v4"], dtype=jnp.int8)


def test_peaks_are_of_devices_as_jax_names_them():
    assert device_peak(jax.devices()[0]) is None
    for kind, peak in DEVICE_PEAKS.items():
        assert device_peak(kind) is peak
        # Each reads its memory in milliseconds to tens of them, and needs between 80
        # and 650 operations a byte to be busy: a slip by 10 or by 2 shows up.
        assert 0.009 < peak.memory / peak.bandwidth < 0.081
        assert 80 < peak.bfloat16 / peak.bandwidth < 650
