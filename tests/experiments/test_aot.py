"""What the pod compiler reports: of texts, on CPUs, and for a described TPU."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from laws.registry import jit_once

from experiments import _hlo, aot
from experiments.configs import latent_dit_xl, transformer_1b
from genlib import train

HLO = """HloModule step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.3 (input: f32[64]) -> f32[16] {
  %input = f32[64]{0} parameter(0)
  %whole = f32[64]{0} all-reduce(%input), channel_id=4, to_apply=%add
  ROOT %slice = f32[16]{0} dynamic-slice(%whole), dynamic_slice_sizes={16}
}

%hidden (p: bf16[8]) -> bf16[32] {
  ROOT %g.2 = bf16[32]{0:T(8)(2,1)S(1)} all-gather(%p), channel_id=1, dimensions={0}
}

%inner_condition (s: (u32[], f32[4])) -> pred[] {
  %limit.8 = u32[]{:T(128)} constant(8)
  %i = u32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %limit.8), direction=LT
}

%inner (s: (u32[], f32[4])) -> (u32[], f32[4]) {
  %p = (f32[4]{0}, f32[4]{0}, u32[]) collective-permute-start(%a), channel_id=2
  %f = bf16[32]{0} fusion(%b), kind=kCustom, calls=%hidden
}

%outer_condition (s: (s32[], /*index=1*/f32[4])) -> pred[] {
  %other = s32[] constant(5)
  %limit = s32[] constant(28)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT, metadata={op_name="lt"}
}

%outer (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %g = bf16[32]{0:T(8)(2,1)S(1)} all-gather(%p), channel_id=1, dimensions={0}
  %w = (u32[], f32[4]{0}) while(%t), condition=%inner_condition, body=%inner
  %r = f32[16]{0} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.3
}

%until (s: f32[]) -> pred[] {
  ROOT %gt = pred[] compare(%s, %s), direction=GT
}

%search (s: f32[]) -> f32[] {
  ROOT %a = f32[] all-reduce(%s), channel_id=6, to_apply=%add
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%t), condition=%outer_condition, body=%outer
  %v = (s32[], f32[4]{0}) while(%t), condition=%until, body=%search
  %s = ((s32[2]{0}), s32[8]{0}) async-start(%p), calls=%async
  %d = s32[8]{0} async-done(%s), calls=%async
  ROOT %r = (f32[2,3]{1,0}, f32[]) all-reduce(%x, %y), channel_id=5, to_apply=%add
}

%async (p: s32[2]) -> s32[8] {
  ROOT %g = s32[8]{0} all-to-all(%p), channel_id=7, dimensions={0}
}
"""


def test_collectives_are_found_in_their_loops_and_counted_once():
    found = _hlo.collectives(HLO)
    assert {(each.kind, each.loops): (each.count, each.bytes) for each in found} == {
        ("all-gather", (28,)): (1, 64),  # and not again where the inner loop hides it
        ("collective-permute", (28, 8)): (1, 16),
        ("reduce-scatter", (28,)): (1, 256),
        ("all-reduce", ()): (1, 28),
        ("all-reduce", (None,)): (1, 4),
        ("all-to-all", ()): (1, 32),
    }
    moved = [each.bytes * each.runs for each in found]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] == 28 * 256


def test_collectives_of_a_compiled_program():
    mesh = train.make_mesh(1, fsdp=8)
    rows = PartitionSpec("fsdp")

    def layers(x, w):
        def layer(h, w):
            w = jax.lax.all_gather(w, "fsdp", tiled=True)
            return jnp.tanh(h @ w), None

        h, _ = jax.lax.scan(layer, x, w)
        return jax.lax.psum(h.sum(), "fsdp")

    split = jax.shard_map(
        layers,
        mesh=mesh,
        in_specs=(rows, PartitionSpec(None, "fsdp")),
        out_specs=PartitionSpec(),
    )
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 64), (3, 64, 64))]
    found = _hlo.collectives(jit_once(split).lower(*shapes).compile().as_text())
    assert found == [
        _hlo.Collective("all-gather", (3,), 1, 4 * 64**2),
        _hlo.Collective("all-reduce", (), 1, 4),
    ]


@pytest.fixture
def config():
    config = latent_dit_xl.get_config("smoke")
    config.data["name"] = "digits"
    config.model = "MLP(features=256, depth=1)"
    config.batch_size = 16
    config.mesh = {"data": 2, "fsdp": 2}
    config.precision = None
    return config


def test_a_step_compiles_for_a_described_pod(config):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install genlib[tpu]")
    report, hlo = aot.compile_step(config, "v5e:2x2")
    assert report.mesh == {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}
    mesh = train.make_mesh(2, fsdp=2, devices=jax.devices()[:4])
    step, state = aot.described(config)
    shardings = aot.split(config, state, mesh)
    assert report.state == train.memory_table(state, shardings)
    batch = {
        "image": jnp.zeros((16, 8, 8, 1)),
        "label": jnp.zeros(16, jnp.int32),
    }
    assert report.flops == train.flops(step, state, batch) / 4
    assert report.peak == train.device_peak("TPU v5 lite")
    local = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(
            jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
        )
    )
    # Buffers are padded to tiles, and every one of the state is donated.
    assert local < report.memory.arguments < 1.5 * local
    assert report.memory.aliased > 0.9 * report.memory.outputs
    assert report.collectives == _hlo.collectives(hlo)
    assert {each.kind for each in report.collectives} >= {"all-gather", "all-reduce"}
    assert report.whole == [] == aot.check(report)
    lines = aot.text(report).splitlines()
    assert lines[1] == "v5e:2x2: 4 chips (data 2 x fsdp 2), 16 rows"
    config.batch_size = 6
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 4"):
        aot.compile_step(config, "v5e:2x2")
    with pytest.raises(ValueError, match=r"topology must be .*got 'v5e:3x5'"):
        aot.devices_of("v5e:3x5")


def test_only_the_data_axis_crosses_slices():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install genlib[tpu]")
    devices = aot.devices_of("v5e:2x2*2")
    for data, fsdp, tensor in [(2, 4, 1), (4, 1, 2)]:
        mesh = train.make_mesh(data, fsdp=fsdp, tensor=tensor, devices=devices)
        slices = [{d.slice_index for d in row.flat} for row in mesh.devices]
        assert slices == [{index * 2 // data} for index in range(data)]
    with pytest.raises(ValueError, match="data must divide by the number of slices, 2"):
        train.make_mesh(1, fsdp=8, devices=devices)


def test_without_libtpu_one_line_says_what_is_missing(monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ValueError, match=r"libtpu \(pip install.*not installed"):
        aot.devices_of("v5e:2x2")


def test_what_does_not_fit_or_is_not_split_is_told(config):
    memory = train.Memory(9 * 10**9, 9 * 10**9, 9 * 10**9, 8 * 10**9, 17 * 10**9)
    peak = train.device_peak("TPU v5 lite")
    mesh = {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}
    report = aot.Report("v5e:2x2", mesh, 8, "", ["params/w"], memory, [], 1e12, peak)
    memory_fault, whole_fault = aot.check(report)
    assert "has 16,000.0 MB on a chip, and the step needs 17,000.0 MB" in memory_fault
    assert "must split large arrays" in whole_fault
    assert aot.check(report._replace(peak=None, whole=[])) == []

    mesh = train.make_mesh(1, fsdp=8)
    leaf = jax.ShapeDtypeStruct((28, 9, 1153), jnp.float32)
    state = train.State(leaf, {"w": leaf}, None, {"w": leaf}, leaf)
    shardings = train.state_shardings(state, mesh)
    assert "params/w (28, 9, 1153)" in aot.whole(state, shardings)
    split = train.state_shardings(state, mesh, [("w", (None, None, None))])
    assert aot.whole(state, split) == aot.whole(state, shardings)
    assert aot.splits(mesh)
    assert not aot.splits(train.make_mesh(8))


@pytest.mark.parametrize("recipe", [latent_dit_xl, transformer_1b])
def test_the_large_configs_split_all_that_is_large(recipe):
    config = recipe.get_config()
    mesh = aot.largest_mesh(config, jax.devices())
    tensor = config.mesh.tensor
    assert mesh == {"data": 1, "fsdp": 8 // tensor, "tensor": tensor, "sequence": 1}
    _, state = aot.described(config)
    number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    d, depth = {1: (1152, 28), 4: (1536, 24)}[tensor]
    blocks = depth * (18 * d**2 + 15 * d)
    ends = 17 * d + 1001 * d + (257 * d + d**2 + d) + (2 * d**2 + 2 * d + 16 * d + 16)
    assert number == blocks + ends
    shardings = aot.split(config, state, train.make_mesh(**mesh))
    assert aot.whole(state, shardings) == []
    with pytest.raises(ValueError, match="mode of the config"):
        recipe.get_config("tiny")


def test_the_mesh_of_a_sweep_splits_what_it_can(config):
    config.model = "MLP(features=576, depth=1)"  # 576 divides by 6 and not by 7
    assert aot.largest_mesh(config, jax.devices()[:6])["fsdp"] == 6
    with pytest.raises(ValueError, match="large arrays that divide"):
        aot.largest_mesh(config, jax.devices()[:7])
    config.data["name"] = "folder"
    with pytest.raises(ValueError, match=r"config\.data\.name must be one of digits"):
        aot.data_of(config)


def test_bytes_are_drawn_against_chips(tmp_path):
    reports = [
        aot.Report(
            f"v5e:{n}",
            {"data": 1, "fsdp": n, "tensor": 1, "sequence": 1},
            4 * n,
            "",
            [],
            train.Memory(10**9 // n, 10**9 // n, 10**9 // n, 10**8, 10**9 // n + 10**8),
            [],
            1e12,
            None,
        )
        for n in (16, 64)
    ]
    aot.plot(reports, tmp_path / "new" / "pods.png")
    assert (tmp_path / "new" / "pods.png").stat().st_size > 5000
