"""Every way to run a step on eight devices equals the step on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import nn, train
from tests.train import toy

TX = optax.adamw(1e-3, eps=1e-6, weight_decay=0.1)
STEPS = 5

NETWORKS = {
    "mlp": lambda rngs: nn.MLP(48, 16, 2, num_classes=3, rngs=rngs),
    "unet": lambda rngs: nn.UNet(
        3, 8, multipliers=(1,), blocks=1, head_dim=8, num_classes=3, rngs=rngs
    ),
    "dit": lambda rngs: nn.DiT(
        3, 16, 2, patch_size=2, num_heads=4, num_classes=3, rngs=rngs
    ),
    "dit over a ring": lambda rngs: nn.DiT(
        3, 16, 2, patch_size=2, num_heads=4, num_classes=3, impl="ring", rngs=rngs
    ),
}
# Split by columns, then by rows; what is left as FSDP has it, small leaves too.
RULES = {
    "mlp": [
        (r"hidden/kernel", ("fsdp", "tensor")),
        (r"blocks.*out/kernel", ("tensor", "fsdp")),
        (r".*", "fsdp"),
    ],
    "unet": [
        (r"conv_1/kernel", (None, None, "fsdp", "tensor")),
        (r"conv_2/kernel", (None, None, "tensor", "fsdp")),
        (r".*", "fsdp"),
    ],
    "dit": [
        (r"blocks/(attention/qkv|feedforward/hidden)/kernel", (None, "fsdp", "tensor")),
        (r"blocks/(attention|feedforward)/out/kernel", (None, "tensor", "fsdp")),
        (r".*", "fsdp"),
    ],
}
MESHES = {
    "dp": {"data": 8},
    "fsdp": {"fsdp": 8, "data": 1},
    "tp": {"data": 4, "tensor": 2},
    "fsdp+tp": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence": {"data": 2, "sequence": 4},
}
WAYS = ["accumulate", *MESHES, "shard_map", "pmap"]
RUNS = [
    (name, way)
    for name in NETWORKS
    for way in WAYS
    if (name != "dit over a ring" if way != "sequence" else "dit" in name)
]


@pytest.fixture(autouse=True)
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def network(name):
    """Return parameters none of which is zero, and the loss: noise is in the batch."""
    init, apply = nn.lazy(NETWORKS[name])
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.1), x.dtype)
    params = jax.tree.map(draw, shapes)

    def loss_fn(params, batch, key):
        x = batch["x"].reshape(-1, 48) if name == "mlp" else batch["x"]
        eps = batch["eps"].reshape(x.shape)
        t = batch["t"].reshape(-1, *[1] * (x.ndim - 1))
        out = apply(params, (1 - t) * x + t * eps, batch["t"], batch["label"])
        loss = jnp.square(out - eps).mean(range(1, x.ndim))
        weight = batch["weight"]
        return (
            (weight * loss).sum(),
            weight.sum(),
            {"half": (0.5 * weight @ loss, weight.sum())},
        )

    return params, loss_fn


def batch(index, rows=32):
    rng = np.random.default_rng(index)
    ragged = rng.uniform(size=rows) * (rng.uniform(size=rows) < 0.6)
    values = {
        "x": rng.normal(size=(rows, 4, 4, 3)),
        "eps": rng.normal(size=(rows, 4, 4, 3)),
        "t": rng.uniform(size=rows),
        "weight": ragged,
    }
    values = {name: value.astype(np.float32) for name, value in values.items()}
    return {**values, "label": rng.integers(0, 4, rows)}


def run(step, state, place=lambda batch: batch):
    norms = []
    for index in range(STEPS):
        state, metrics = step(state, place(batch(index)))
        norms.append((metrics["grad_norm"], metrics["loss"], metrics["half"]))
    return state, np.array(norms)


@functools.cache
def alone(name):
    params, loss_fn = network(name)
    step = train.make_step(loss_fn, TX, ema=0.9, clip_norm=1.0)
    return run(jax.jit(step), train.init(jax.random.key(1), params, TX))


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_equals_one_device(name, way):
    params, loss_fn = network(name)
    step = train.make_step(
        loss_fn,
        TX,
        ema=0.9,
        clip_norm=1.0,
        accumulate={"accumulate": 4, "fsdp": 2}.get(way, 1),
    )
    state = train.init(jax.random.key(1), params, TX)
    place = lambda batch: batch
    mesh = train.make_mesh(**MESHES.get(way, {}), devices=jax.devices("cpu"))
    if way == "accumulate":
        step = jax.jit(step)
    elif way == "pmap":
        step = train.pmap_step(step, jax.devices("cpu"))
    else:
        place = lambda batch: train.shard_batch(batch, mesh)
        if way == "shard_map":
            state, step = train.replicate(state, mesh), train.shard_map_step(step, mesh)
        else:
            rules = RULES[name] if way not in ("dp", "sequence") else ()
            shardings = train.state_shardings(state, mesh, rules)
            state = jax.device_put(toy.on_host(state), shardings)
            step = train.jit_step(step, mesh, shardings)
    state, measured = run(step, state, place)
    single, expected = alone(name)
    toy.assert_close(
        (state.params, state.ema, state.opt_state[0].count),
        (single.params, single.ema, single.opt_state[0].count),
    )
    np.testing.assert_allclose(measured / expected, 1, atol=1e-5)
    if way in MESHES and way not in ("dp", "sequence"):
        split = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)]
        assert np.mean(split) > (0.9 if way != "tp" else 0.1)
        toy.assert_placed(state, shardings)
