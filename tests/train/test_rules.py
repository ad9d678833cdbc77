"""Where the leaves of a state lie, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from genlib import nn, train, tree
from tests.train import toy

PARAMS = {
    "embed": jax.ShapeDtypeStruct((1000, 96), jnp.float32),
    "blocks": {
        "kernel": jax.ShapeDtypeStruct((3, 256, 512), jnp.float32),
        "bias": jax.ShapeDtypeStruct((3, 512), jnp.float32),
    },
    "square": jax.ShapeDtypeStruct((512, 512), jnp.float32),
    "odd": jax.ShapeDtypeStruct((1001, 333), jnp.float32),
    "counts": jax.ShapeDtypeStruct((512, 512), jnp.int32),
}


@pytest.fixture
def mesh():
    return train.make_mesh(1, fsdp=4, tensor=2, devices=jax.devices("cpu"))


def specs(shardings):
    return {name: x.spec for name, x in tree.named(shardings).items()}


def test_without_rules_large_leaves_are_split_along_the_longest_axis(mesh):
    assert specs(train.param_shardings(PARAMS, mesh)) == {
        "embed": P("fsdp"),
        "blocks/kernel": P(None, None, "fsdp"),
        "blocks/bias": P(),  # small
        "square": P(None, "fsdp"),
        "odd": P(),  # nothing divides
        "counts": P(),  # not trained
    }


def test_the_first_rule_wins_and_the_word_fsdp_takes_small_leaves(mesh):
    rules = [
        ("^blocks/.*kernel", (None, "tensor", "fsdp")),
        ("blocks", "fsdp"),
        ("embed", P(("tensor", "fsdp"))),
    ]
    found = specs(train.param_shardings(PARAMS, mesh, rules))
    assert found["blocks/kernel"] == P(None, "tensor", "fsdp")
    assert found["blocks/bias"] == P(None, "fsdp")
    assert found["embed"] == P(("tensor", "fsdp"))
    assert found["square"] == P(None, "fsdp")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("kernal", ())], r"'kernal' is of none \(no path has it; paths look like bl"),
        ([("blocks", ()), ("kernel", ())], "blocks/kernel is taken by an earlier rule"),
        ([("embed", ()), ("embed", ())], "embed is taken by an earlier rule"),
        ([("(", ())], r"regular expressions; '\(' is none"),
        ([("embed", ("model",))], r"axes of the mesh \('data', 'fsdp', 'tensor'"),
        ([("embed", ("fsdp", "fsdp"))], "each once"),
        ([("embed", (None, None, "fsdp"))], r"embed \(1000, 96\) is"),
        ([("odd", ("fsdp",))], r"odd \(1001, 333\) has 1001 along \('fsdp',\)"),
        ([("odd", "tensor")], "for odd it is 'tensor'"),
    ],
)
def test_rules_that_cannot_be_meant(mesh, rules, message):
    with pytest.raises(ValueError, match=message):
        train.param_shardings(PARAMS, mesh, rules)


def test_averages_and_optimizer_state_lie_with_their_parameters(key, mesh):
    rules = [("dense/w", (None, "tensor")), ("out", ("fsdp",))]
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    tx = optax.partition({"a": adam, "b": optax.sgd(0.1, momentum=0.9)}, labels)
    state = train.init(key, toy.params(), tx, ema=(0.9, 0.99))
    found = specs(train.state_shardings(state, mesh, rules))
    for name, spec in found.items():
        if name.endswith("dense/w"):
            assert spec == P(None, "tensor")
        elif name.endswith("out"):
            assert spec == P("fsdp")
        else:
            assert spec == P()
    assert sum(name.endswith("dense/w") for name in found) == 5  # params, 2 ema, mu, nu
    assert sum(name.endswith("out") for name in found) == 4  # params, 2 ema, trace


def labels(params):
    return {"dense": {"b": "a", "w": "a"}, "out": "b"}


def test_an_optimizer_for_each_part_lies_with_its_part(key, mesh):
    params = {"first": toy.params(), "second": toy.params()}
    tx = {"first": optax.adam(1e-3), "second": optax.adam(1e-3)}
    rules = [("first/out", ("fsdp",)), ("second/out", ("tensor",))]
    shardings = train.state_shardings(train.init(key, params, tx), mesh, rules)
    assert shardings.opt_state["first"][0].mu["out"].spec == P("fsdp")
    assert shardings.opt_state["second"][0].nu["out"].spec == P("tensor")


def test_factored_statistics_are_split_by_size(key, mesh):
    params = {"kernel": jnp.ones((512, 512))}
    state = jax.eval_shape(lambda: train.init(key, params, optax.adafactor(1e-3)))
    train.state_shardings(state, mesh, [("kernel", ("fsdp", "tensor"))])


def test_a_state_is_made_in_pieces_and_equals_one_that_is_not(key, mesh):
    make = lambda rngs: nn.MLP(8, 64, 1, num_classes=3, rngs=rngs)
    init_params, _apply = nn.lazy(make)
    tx = optax.adam(1e-3)
    rules = [("kernel", "fsdp"), (".*", ())]
    state = train.init_sharded(key, init_params, tx, mesh, rules)
    run, seed = jax.random.split(key)
    params, _ = nn.from_nnx(make(nnx.Rngs(seed)))
    expected = train.init(run, params, tx)
    toy.assert_close(state, expected)
    np.testing.assert_array_equal(
        jax.random.key_data(state.key), jax.random.key_data(run)
    )
    toy.assert_placed(state, train.state_shardings(expected, mesh, rules))


def test_no_device_ever_holds_all_of_a_parameter(key, mesh):
    """The compiled initialisation has no array of a whole kernel's size."""
    init_params = lambda key: {"kernel": jax.random.normal(key, (512, 1024))}

    def make(key):
        return train.init_sharded(key, init_params, optax.adam(1e-3), mesh).params

    text = jax.jit(make).lower(key).compile().as_text()
    assert "f32[512,256]" in text
    assert "f32[512,1024]" not in text.replace("f32[512,1024]{1,0} parameter", "")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 16}, r"number of devices, 8; they are {'data': 16"),
        ({"data": 3}, "To use some of them"),
        ({"data": -1, "fsdp": -1}, "at most one -1"),
        ({"data": -1, "fsdp": 3}, "number of devices, 8"),
        ({"data": 0}, "must be positive"),
        ({"slices": 2}, "slices must be the number of slices, 1, or of hosts, 1"),
    ],
)
def test_meshes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        train.make_mesh(**sizes, devices=jax.devices("cpu"))


def test_a_batch_is_split_along_other_axes_by_rules():
    mesh = train.make_mesh(2, sequence=4, devices=jax.devices("cpu"))
    batch = {"tokens": np.zeros((4, 8), np.int32), "weight": np.zeros(4)}
    rules = [("tokens", (("data", "fsdp"), "sequence"))]
    split = train.shard_batch(batch, mesh, rules)
    assert split["tokens"].addressable_shards[0].data.shape == (2, 2)
    assert split["weight"].addressable_shards[0].data.shape == (2,)
    with pytest.raises(
        ValueError, match=r"batch/tokens must have an axis 1 .* \(4, 6\)"
    ):
        train.shard_batch({"tokens": np.zeros((4, 6))}, mesh, rules)


def test_shard_map_wants_a_mesh_of_rows(mesh):
    with pytest.raises(ValueError, match=r"only the axes \('data', 'fsdp'\)"):
        train.shard_map_step(train.make_step(toy.loss_fn, optax.sgd(0.1)), mesh)


def test_pmap_wants_rows_that_divide(key):
    step = train.pmap_step(train.make_step(toy.loss_fn, optax.sgd(0.1)))
    state = train.init(key, toy.params(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"batch/mask must have a leading axis .* 8"):
        step(state, toy.batch(0, rows=12))


@pytest.mark.parametrize("way", ["jit", "shard_map", "pmap"])
def test_everything_works_under_the_mesh_of_a_user(key, mesh, way):
    """`jax.set_mesh` with explicit axes around the calls changes nothing."""
    tx = optax.adam(1e-2)
    step = train.make_step(toy.loss_fn, tx)
    devices = jax.devices("cpu")
    if way == "shard_map":
        mesh = train.make_mesh(devices=devices)
    with jax.set_mesh(jax.make_mesh((8,), ("mine",), devices=devices)):
        state = train.init_sharded(key, lambda _: toy.params(), tx, mesh)
        shardings = train.state_shardings(state, mesh)
        batch = train.shard_batch(toy.batch(0), mesh)
        if way == "pmap":
            state = train.init(key, toy.params(), tx)
            many, _ = train.pmap_step(step, devices)(state, toy.batch(0))
        elif way == "shard_map":
            many, _ = train.shard_map_step(step, mesh)(state, batch)
        else:
            many, _ = train.jit_step(step, mesh, shardings)(state, batch)
    expected, _ = jax.jit(step)(train.init(key, toy.params(), tx), toy.batch(0))
    toy.assert_close(many.params, expected.params)


def test_moments_lie_with_their_parameters_whatever_these_are_called(key, mesh):
    """Equal ends of paths, indices and the names of optax's own fields."""
    kernel = lambda: jnp.ones((8, 8))
    for params, rules in [
        (
            [{"w": kernel()}, {"w": kernel()}],
            [("^0/w", ("fsdp",)), ("^1/w", (None, "fsdp"))],
        ),
        (
            {"mu": {"w": kernel()}, "w": kernel()},
            [("^mu/w", ("fsdp",)), ("^w", (None, "fsdp"))],
        ),
    ]:
        state = train.init(key, params, optax.adam(1e-3), ema=(0.9, 0.99))
        found = train.state_shardings(state, mesh, rules)
        expected = specs(found.params)
        assert [*expected.values()] == [P("fsdp"), P(None, "fsdp")]
        adam = found.opt_state[0]
        for copy in (*found.ema, adam.mu, adam.nu):
            assert specs(copy) == expected


def test_rules_of_a_batch_name_axes_of_the_mesh(mesh):
    batch = {"x": np.zeros((4, 8))}
    for spec in [("foo",), ("fsdp", "fsdp")]:
        with pytest.raises(ValueError, match="rules must name axes of the mesh"):
            train.shard_batch(batch, mesh, [("x", spec)])
