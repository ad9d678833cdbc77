"""Several losses and optimizers in one step, and frozen parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import train, tree
from tests.train import toy
from tests.train.toy import assert_identical

TX = {"generator": optax.sgd(0.1), "critic": optax.adam(1e-2)}


def params():
    w, v = jnp.ones((1, 2)), jnp.full((1, 2), 3.0)
    return {"generator": {"w": w}, "critic": {"v": v}}


def generator_loss(params, batch, key):
    fake = params["generator"]["w"] * batch["x"]
    return (params["critic"]["v"] * fake).sum(), len(fake), {"fake": (fake.sum(), 1.0)}


def critic_loss(params, batch, key):
    fake = params["generator"]["w"] * batch["x"] + jax.random.normal(key, (1, 1))
    return jnp.square(params["critic"]["v"] - fake).sum(), len(fake), {}


LOSSES = {"generator": generator_loss, "critic": critic_loss}


def batch(index=0):
    return {"x": np.random.default_rng(index).normal(size=(4, 2)).astype(np.float32)}


def test_parts_move_one_after_another_by_their_own_loss(key):
    state = train.init(key, params(), TX)
    new, metrics = jax.jit(train.make_step(LOSSES, TX, ema=0.9))(state, batch())

    step_key = jax.random.fold_in(key, 0)
    first, second = (
        jax.random.fold_in(jax.random.fold_in(step_key, part), 0) for part in range(2)
    )
    expected = params()
    gradient = jax.grad(lambda p: generator_loss(p, batch(), first)[0] / 4)(expected)
    expected["generator"]["w"] -= 0.1 * gradient["generator"]["w"]
    gradient = jax.grad(lambda p: critic_loss(p, batch(), second)[0] / 4)(expected)
    critic, tx = expected["critic"], TX["critic"]
    updates, _ = tx.update(gradient["critic"], tx.init(critic), critic)
    expected["critic"] = optax.apply_updates(critic, updates)

    toy.assert_close(new.params, expected)
    assert metrics.keys() == {
        *(f"generator/{name}" for name in ("loss", "weight", "grad_norm", "fake")),
        *(f"critic/{name}" for name in ("loss", "weight", "grad_norm")),
        "skipped",
    }
    norm = jnp.linalg.norm(gradient["critic"]["v"])
    np.testing.assert_allclose(metrics["critic/grad_norm"], norm, rtol=1e-6)


def test_parts_take_turns(key):
    every = {"generator": 2, "critic": lambda step: step >= 2}
    step = jax.jit(train.make_step(LOSSES, TX, every=every))
    state = train.init(key, params(), TX)
    moved = []
    for index in range(4):
        new, metrics = step(state, batch(index))
        pair = [(new.params[part], state.params[part]) for part in LOSSES]
        moved.append(
            tuple(
                float(abs(a["w"] - b["w"]).max()) > 0
                if "w" in a
                else float(abs(a["v"] - b["v"]).max()) > 0
                for a, b in pair
            )
        )
        known = [np.isfinite(metrics[f"{part}/loss"]) for part in LOSSES]
        assert known == list(moved[-1])
        assert metrics["skipped"] == 0
        state = new
    assert moved == [(True, False), (False, False), (True, True), (False, True)]
    assert state.opt_state["critic"][0].count == 2


def test_one_bad_part_skips_the_whole_step(key):
    step = jax.jit(train.make_step(LOSSES, TX))
    state = train.init(key, params(), TX)
    bad = state._replace(params={**params(), "critic": {"v": jnp.full((1, 2), 1e38)}})
    new, metrics = step(bad, batch())
    assert metrics["skipped"] == 1
    assert_identical(
        (new.params, new.opt_state, new.ema), (bad.params, bad.opt_state, bad.ema)
    )


@pytest.mark.parametrize("way", ["accumulate", "shard_map", "fsdp"])
def test_parts_on_many_devices(key, way):
    """The critic without its noise: draws depend on the cut of the batch."""
    losses = {**LOSSES, "critic": lambda p, b, k: critic_loss(p, b, jax.random.key(0))}
    rows = {"x": np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)}
    state = train.init(key, params(), TX)
    single, _ = jax.jit(train.make_step(losses, TX))(state, rows)
    mesh = train.make_mesh(4, fsdp=2, devices=jax.devices("cpu"))
    step = train.make_step(losses, TX, accumulate=2 if way == "accumulate" else 1)
    if way == "accumulate":
        many, _ = jax.jit(step)(state, rows)
    else:
        step = (
            train.shard_map_step(step, mesh)
            if way == "shard_map"
            else train.jit_step(step, mesh)
        )
        many, _ = step(train.replicate(state, mesh), train.shard_batch(rows, mesh))
    toy.assert_close(many.params, single.params)
    toy.assert_close(many.ema, single.ema)


@pytest.mark.parametrize(
    ("loss_fn", "tx", "every", "message"),
    [
        (LOSSES, optax.sgd(0.1), None, "dicts of equal keys"),
        (generator_loss, TX, None, "dicts of equal keys"),
        (LOSSES, {"generator": optax.sgd(0.1)}, None, "dicts of equal keys"),
        (LOSSES, TX, {"wrong": 2}, "every must give parts"),
        (LOSSES, TX, {"critic": 0}, "every must give parts"),
        (LOSSES, TX, {"critic": np.int64(0)}, "every must give parts"),
        (LOSSES, TX, {"critic": 2.5}, "every must give parts"),
        (generator_loss, optax.sgd(0.1), {"critic": 2}, "every must be None"),
    ],
)
def test_parts_that_do_not_fit(loss_fn, tx, every, message):
    with pytest.raises(ValueError, match=message):
        train.make_step(loss_fn, tx, every=every)


def test_optimizers_must_be_of_the_parts(key):
    with pytest.raises(ValueError, match="tx must have the names of the parts"):
        train.init(key, toy.params(), TX)


SELECTIONS = ["^out", lambda path, leaf: path == "out"]


@pytest.mark.parametrize("trainable", SELECTIONS)
def test_only_what_is_trained_moves_and_has_state(key, trainable):
    tx = optax.adam(1e-2)
    start = {**toy.params(), "table": jnp.arange(3)}
    state = train.init(key, start, tx, trainable=trainable)
    assert [*tree.named(state.opt_state)] == ["0/count", "0/mu/out", "0/nu/out"]
    assert [*tree.named(state.ema)] == ["out", "table"]
    settings = {"ema": 0.9, "ema_warmup": False, "trainable": trainable}
    step = jax.jit(train.make_step(toy.loss_fn, tx, **settings))
    new, metrics = step(state, toy.batch(0))
    assert_identical(new.params["dense"], start["dense"])

    loss = lambda out: toy.loss_fn({**start, "out": out}, toy.batch(0), key)
    gradient = jax.grad(lambda out: loss(out)[0])(start["out"]) / loss(start["out"])[1]
    norm = jnp.linalg.norm(gradient)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    whole = tree.merge(new.ema, new.params)
    assert jax.tree.structure(whole) == jax.tree.structure(start)
    moved = start["out"] + 0.1 * (new.params["out"] - start["out"])
    np.testing.assert_allclose(whole["out"], moved, rtol=1e-5)


def test_what_is_trained_must_be_the_same_in_state_and_step(key):
    tx = optax.sgd(0.1)
    state = train.init(key, toy.params(), tx, trainable="out")
    with pytest.raises(ValueError, match="trainable must be as given to init"):
        train.make_step(toy.loss_fn, tx)(state, toy.batch(0))


@pytest.mark.parametrize("trainable", ["nothing", lambda path, leaf: False])
def test_something_must_be_trained(key, trainable):
    with pytest.raises(ValueError, match="trainable must"):
        train.init(key, toy.params(), optax.sgd(0.1), trainable=trainable)
