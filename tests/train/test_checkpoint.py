import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genlib import train
from tests.train import toy
from tests.train.toy import assert_identical

TX = optax.adam(1e-2)
STEP = jax.jit(train.make_step(toy.noisy_loss_fn, TX))


@pytest.fixture(scope="module")
def states():
    """A run of ten steps, one state after each."""
    states = [train.init(jax.random.key(0), toy.params(), TX)]
    for index in range(10):
        states.append(STEP(states[-1], toy.batch(index))[0])
    return states


@pytest.fixture
def saved(states, tmp_path):
    """A directory with the checkpoints 3, 6 and 9."""
    with train.Checkpointer(tmp_path / "run", metadata={"net": [1, 2]}) as checkpointer:
        for step in (3, 6, 9):
            checkpointer.save(step, states[step], position={"next_index": step})
    return tmp_path / "run"


def empty(folder, step):
    """Spoil the arrays of a checkpoint; test_damage.py does so in every other way."""
    for file in (folder / str(step) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def test_round_trip_is_exact(states, saved):
    with train.Checkpointer(saved) as checkpointer:
        assert checkpointer.latest == 9
        restored = checkpointer.restore(states[0])
    assert_identical(restored.state, states[9])
    assert restored.step == 9
    assert restored.position == {"next_index": 9}
    assert restored.metadata == {"net": [1, 2]}


def test_keys_and_integers_anywhere_are_exact(key, tmp_path):
    tx = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(3)), optax.adam(1e-2))
    params = {"n": jnp.arange(3), "key": jax.random.key(5), "list": [jnp.ones(2), None]}
    state = train.init(key, params, tx)
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        restored = checkpointer.restore(state._replace(key=jax.random.key(1))).state
    assert_identical(restored, state)


def test_a_resumed_run_is_bit_identical(states, saved):
    shutil.rmtree(saved / "9")
    with train.Checkpointer(saved) as checkpointer:
        state = checkpointer.restore(states[0]).state
    for index in range(6, 10):
        state, _ = STEP(state, toy.batch(index))
    assert_identical(state, states[10])


def test_only_the_last_are_kept(states, tmp_path):
    with train.Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in range(1, 6):
            checkpointer.save(step, states[step])
    assert {x.name for x in tmp_path.iterdir()} == {"4", "5"}


def test_a_donated_state_does_not_spoil_its_checkpoint(states, tmp_path):
    step = jax.jit(train.make_step(toy.noisy_loss_fn, TX), donate_argnums=0)
    state = jax.tree.map(jnp.copy, states[5])
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, state)
        assert checkpointer.latest == 5
        for index in range(5, 10):
            state, _ = step(state, toy.batch(index))
        assert_identical(checkpointer.restore(states[0]).state, states[5])


def test_restore_onto_a_mesh_and_back(states, saved, tmp_path):
    mesh = train.make_mesh(8, devices=jax.devices("cpu"))
    with train.Checkpointer(saved) as checkpointer:
        wide = checkpointer.restore(train.replicate(states[0], mesh)).state
    for leaf in jax.tree.leaves(wide):
        assert leaf.sharding == NamedSharding(mesh, PartitionSpec())
    assert_identical(wide, states[9])
    with train.Checkpointer(tmp_path / "wide") as checkpointer:
        checkpointer.save(9, wide)
        narrow = checkpointer.restore(states[0]).state
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(narrow)} == {1}
    assert_identical(narrow, states[9])


@pytest.mark.parametrize("ema", [True, False])
def test_sampling_needs_neither_optimizer_nor_run(states, saved, ema):
    expected = states[9].ema if ema else states[9].params
    assert_identical(train.restore_params(saved, toy.params(), ema=ema), expected)
    shapes = jax.eval_shape(toy.params)
    assert_identical(train.restore_params(saved, shapes, ema=ema), expected)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.params())
    assert_identical(train.restore_params(saved, half, ema=ema), expected)


def test_metadata_is_read_without_a_model(saved):
    assert train.read_metadata(saved) == {"net": [1, 2]}


def test_a_damaged_checkpoint_is_passed_over_and_kept(states, saved):
    empty(saved, 9)
    with train.Checkpointer(saved) as checkpointer:
        with pytest.warns(UserWarning, match=r"/9 cannot be read and step 6 is used"):
            restored = checkpointer.restore(states[0])
        assert_identical(restored.state, states[6])
        assert checkpointer.latest == 6
        checkpointer.save(9, states[9])
        assert_identical(checkpointer.restore(states[0]).state, states[9])
    names = {x.name for x in saved.iterdir()}
    assert names == {"3", "6", "9", "9.unreadable"}


def test_sampling_passes_over_a_damaged_checkpoint_and_moves_nothing(states, saved):
    empty(saved, 9)
    with pytest.warns(UserWarning, match=r"/9 cannot be read and step 6 is used"):
        params = train.restore_params(saved, toy.params(), ema=False)
    assert_identical(params, states[6].params)
    assert {x.name for x in saved.iterdir()} == {"3", "6", "9"}


def test_when_none_can_be_read_nothing_is_moved(states, saved):
    for step in (3, 6, 9):
        empty(saved, step)
    unreadable = pytest.raises(ValueError, match=r"none of the steps \[3, 6, 9\] can")
    with train.Checkpointer(saved) as checkpointer, unreadable:
        checkpointer.restore(states[0])
    assert {x.name for x in saved.iterdir()} == {"3", "6", "9"}


def test_what_a_killed_save_leaves_is_ignored(states, saved):
    left = saved / "12.orbax-checkpoint-tmp-1"
    shutil.copytree(saved / "9", left)
    with train.Checkpointer(saved) as checkpointer:
        assert checkpointer.latest == 9
        assert_identical(checkpointer.restore(states[0]).state, states[9])


def wider(params):
    return {**params, "dense": {**params["dense"], "w": jnp.ones((3, 16))}}


OTHERS = {
    "params/dense/w is float32[3,8] in the checkpoint and float32[3,16] here": wider,
    "params/extra is absent in the checkpoint and float32[2] here": lambda params: {
        **params,
        "extra": jnp.ones(2),
    },
    "params/out is float32[8,2] in the checkpoint and absent here": lambda params: {
        "dense": params["dense"]
    },
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_checkpoint_of_another_model_names_the_parameter(saved, message):
    other = train.init(jax.random.key(0), OTHERS[message](toy.params()), TX)
    refused = pytest.raises(ValueError, match="must be one of this model")
    with train.Checkpointer(saved) as checkpointer, refused as error:
        checkpointer.restore(other)
    assert f"{saved}/9" in str(error.value)
    assert f": {message}" in str(error.value)
    assert {x.name for x in saved.iterdir()} == {"3", "6", "9"}
    with pytest.raises(ValueError, match="must be one of this model") as error:
        train.restore_params(saved, other.params, ema=False)
    assert message in str(error.value)


def test_another_optimizer_or_ema_setting_is_named_too(saved):
    sgd = train.init(jax.random.key(0), toy.params(), optax.sgd(0.1))
    bare = train.init(jax.random.key(0), toy.params(), TX, ema=False)
    with train.Checkpointer(saved) as checkpointer:
        with pytest.raises(ValueError, match=r": opt_state/.*and absent here"):
            checkpointer.restore(sgd)
        with pytest.raises(ValueError, match=r": ema/dense/b is .* and absent here"):
            checkpointer.restore(bare)


def test_an_average_that_is_not_there(tmp_path):
    state = train.init(jax.random.key(0), toy.params(), TX, ema=False)
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        assert_identical(checkpointer.restore(state).state, state)
    with pytest.raises(ValueError, match="ema must be False"):
        train.restore_params(tmp_path, toy.params())


@pytest.mark.parametrize("step", [8, 9])
def test_nothing_is_overwritten(states, saved, step):
    refused = pytest.raises(
        ValueError, match=rf"newest checkpoint of .* 9; it is {step}"
    )
    with train.Checkpointer(saved) as checkpointer, refused:
        checkpointer.save(step, states[step])


@pytest.mark.parametrize("where", ["", "missing"])
def test_a_directory_without_checkpoints(tmp_path, where):
    message = r"directory must hold a checkpoint; .* holds none"
    with pytest.raises(ValueError, match=message):
        train.read_metadata(tmp_path / where)
    with train.Checkpointer(tmp_path / where) as checkpointer:
        assert checkpointer.latest is None
        with pytest.raises(ValueError, match=message):
            checkpointer.restore(train.init(jax.random.key(0), toy.params(), TX))


def test_settings(states, tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1; it is 0"):
        train.Checkpointer(tmp_path, keep=0)
    with pytest.raises(ValueError, match=r'best_mode must be "min" or "max"; it is 1'):
        train.Checkpointer(tmp_path, best="loss", best_mode=1)
    with pytest.raises(ValueError, match="metadata must be JSON"):
        train.Checkpointer(tmp_path, metadata={"lr": np.float32(1)})
    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ValueError, match="position must be JSON"):
            checkpointer.save(1, states[1], position=object())
        assert checkpointer.latest is None


def test_metadata_on_disk_is_plain_json(saved):
    meta = json.loads((saved / "9" / "meta" / "metadata").read_text())
    assert meta["metadata"] == {"net": [1, 2]}
    assert meta["leaves"]["key"] == "key<fry>[]"


LOSSES = [9.0, 1.0, 4.0, float("nan"), 0.5, None, 1.0, 3.0, 2.0]
KEPT = {
    "keep=2": (dict(keep=2), {8, 9}, None),
    "min": (dict(keep=1, best="loss"), {5, 9}, 5),
    "max": (dict(keep=1, best="loss", best_mode="max", keep_best=2), {1, 3, 9}, 1),
    "ties": (dict(keep=1, best="loss", keep_best=2), {5, 7, 9}, 5),
    "every": (dict(keep=1, keep_every=4, best="loss"), {4, 5, 8, 9}, 5),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_last_the_best_and_every_few_are_kept(tmp_path, name):
    """The metrics of a run that was stopped and started again count, too."""
    settings, kept, best = KEPT[name]
    state = {"step": jnp.zeros((), jnp.int32)}
    for steps in (range(1, 6), range(6, 10)):
        with train.Checkpointer(tmp_path, **settings) as checkpointer:
            for step in steps:
                loss = LOSSES[step - 1]
                metrics = {} if loss is None else {"loss": jnp.float32(loss), "n": 1}
                checkpointer.save(step, state, metrics=metrics)
            assert checkpointer.latest == steps[-1]
            assert checkpointer.best == best
    assert {int(x.name) for x in tmp_path.iterdir()} == kept


def test_sampling_from_the_best_and_from_any_step(states, tmp_path):
    scores = {1: 3.0, 2: 1.0, 3: 2.0}
    with train.Checkpointer(tmp_path, best="fid") as checkpointer:
        for step, fid in scores.items():
            checkpointer.save(step, states[step], metrics={"fid": fid})
    read = lambda step: train.restore_params(tmp_path, toy.params(), step=step)
    assert_identical(read(None), states[3].ema)
    assert_identical(read("best"), states[2].ema)
    assert_identical(read(1), states[1].ema)
    with pytest.raises(ValueError, match=r'"best" or one of \[1, 2, 3\]; it is 7'):
        read(7)
    empty(tmp_path, 2)
    with pytest.warns(UserWarning, match=r"/2 cannot be read and step 3 is used"):
        assert_identical(read("best"), states[3].ema)
    with pytest.raises(ValueError, match=r"none of the steps \[2\] can"):
        read(2)


def test_the_best_needs_its_metric(states, saved, tmp_path):
    with train.Checkpointer(tmp_path / "other", best="fid") as checkpointer:
        with pytest.raises(ValueError, match=r"must hold 'fid'.* \['loss'\]"):
            checkpointer.save(1, states[1], metrics={"loss": 1.0})
        assert checkpointer.best is None
    with pytest.raises(ValueError, match="step must be a number or None"):
        train.restore_params(saved, toy.params(), step="best")


def test_frozen_parameters_have_no_average_and_are_read_all_the_same(key, tmp_path):
    state = train.init(key, toy.params(), TX, trainable="dense/w", ema=(0.9, 0.99))
    single = train.init(key, toy.params(), TX, trainable="dense/w")
    assert single.ema["out"] is None
    for name, saved in dict(several=state, single=single).items():
        with train.Checkpointer(tmp_path / name) as checkpointer:
            checkpointer.save(1, saved)
            assert_identical(checkpointer.restore(saved).state, saved)
    params = toy.params()
    assert_identical(train.restore_params(tmp_path / "single", params), params)
    both = train.restore_params(tmp_path / "several", (params, params))
    assert_identical(both, (params, params))
