# %% [markdown]
# # One step, many devices
#
# A train step in genlib is a pure function of a state and a batch. It knows nothing of
# devices: how a run is split is said outside of it, in a mesh and a few rules. This
# notebook plays with eight devices, all of them this machine's CPU; the same lines run
# on eight GPUs or on a TPU pod. It shows where the pieces of a model lie, what each way
# of splitting sends, that all of them compute the same step, and that a checkpoint does
# not care which one wrote it.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)

import collections
import re
import tempfile
from functools import partial

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments import data
from genlib import nn, noise, prediction, train, tree

BLUE, RED, GREEN, GOLD, GREY = "#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e", "#9aa0a6"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.frameon": False}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}

# %% [markdown]
# A small network for the 8x8 digits. `nn.lazy` gives its initialisation
# as a function of a key: nothing is allocated yet. The loss sums over the rows it sees
# and says how much they weigh; some rows weigh nothing, as padding does. Noise comes
# with the batch here, so that any way of cutting it up sees the same noise.

# %%
make = partial(nn.MLP, 64, 128, 2, num_classes=10)
init_params, apply = nn.lazy(lambda rngs: make(rngs=rngs))
path, tx = noise.Cosine(), optax.adam(1e-3, eps=1e-5)
digits = data.batches(data.load("digits"), batch_size=64, seed=0)


def batch(index):
    rng = np.random.default_rng(index)
    rows = digits(index)
    extra = {"eps": rng.normal(size=rows["image"].shape), "t": rng.uniform(size=64)}
    extra["weight"] = rng.uniform(size=64) < np.linspace(0, 1, 64)
    return rows | {name: x.astype(np.float32) for name, x in extra.items()}


def loss_fn(params, batch, key):
    x_0, eps, t = batch["image"], batch["eps"], batch["t"]
    x_t = noise.perturb(path, x_0, eps, t)
    error = apply(params, x_t, t, batch["label"])
    error -= prediction.target(path, x_0, eps, t, prediction.V)
    loss = batch["weight"] * jnp.square(error).mean((1, 2, 3))
    return loss.sum(), batch["weight"].sum(), {}


shapes = jax.eval_shape(init_params, jax.random.key(0))
for name, x in tree.named(shapes).items():
    if "blocks/0" in name:
        print(f"{name:28} {x.shape}")

# %% [markdown]
# ## Where the pieces lie
#
# A mesh always has the axes "data", "fsdp", "tensor" and "sequence"; rows of a batch
# are split over the first two. Rules say how parameters are split: ordered patterns on
# their paths. What no rule names is split over "fsdp" if it is large, and copied if it
# is small. An axis of size 1 splits nothing, so one list of rules serves every mesh.

# %%
rules = [
    (r"blocks/./hidden/kernel", ("fsdp", "tensor")),  # by columns
    (r"blocks/./out/kernel", ("tensor", "fsdp")),  # by rows
    (r".*", "fsdp"),  # small leaves too
]
meshes = {
    "data": train.make_mesh(8),
    "fsdp": train.make_mesh(1, fsdp=8),
    "tensor": train.make_mesh(2, tensor=4),
    "fsdp and tensor": train.make_mesh(1, fsdp=4, tensor=2),
}

figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.6))
shape = shapes["blocks"]["0"]["hidden"]["kernel"].shape
for axis, (name, mesh) in zip(axes, meshes.items(), strict=True):
    shardings = train.param_shardings(shapes, mesh, rules)
    kernel = shardings["blocks"]["0"]["hidden"]["kernel"]
    owners = collections.defaultdict(list)
    for device, index in kernel.devices_indices_map(shape).items():
        box = (part.indices(n)[:2] for part, n in zip(index, shape, strict=True))
        owners[tuple(box)].append(device.id)
    for count, ((rows, columns), devices) in enumerate(sorted(owners.items())):
        box = (columns[0], rows[0]), columns[1] - columns[0], rows[1] - rows[0]
        colour = plt.colormaps["Blues"](0.15 + 0.6 * count / 8)
        axis.add_patch(plt.Rectangle(*box, facecolor=colour, edgecolor="white", lw=2))
        text = ",".join(map(str, devices)) if len(devices) < 8 else "all"
        middle = (sum(columns) / 2, sum(rows) / 2)
        axis.text(*middle, text, ha="center", va="center", fontsize=8)
    axis.set(xlim=(0, shape[1]), ylim=(shape[0], 0), xticks=[], yticks=[], title=name)
figure.suptitle("which devices hold which part of blocks/0/hidden/kernel")
figure.show()

# %% [markdown]
# ## The same step
#
# `init_sharded` makes each piece where it will live (given `init_params`, it would not
# even make the parameters elsewhere first); averages and optimizer state lie
# with their parameters. Five steps on each mesh, five with explicit sums (`shard_map`,
# `pmap`) and five in four microbatches, against five on one device. The gradient's norm
# tells what Adam would hide: a sum taken twice scales the gradient, and Adam divides it
# away.


# %%
def run(step, state, place=lambda batch: batch):
    norms = []
    for index in range(5):
        state, metrics = step(state, place(batch(index)))
        norms.append(float(metrics["grad_norm"]))
    return jax.device_get(state.params), np.array(norms)


step = train.make_step(loss_fn, tx, clip_norm=1.0)
key = jax.random.key(0)
key_run, key_params = jax.random.split(key)  # as init_sharded does
initial = jax.jit(init_params)(key_params)
start = partial(train.init, key_run, initial, tx)
params, norms = run(jax.jit(step), start())

runs = {}
states, programs = {}, {}
for name, mesh in meshes.items():
    state = train.init_sharded(key, lambda _: initial, tx, mesh, rules)
    states[name] = state
    shardings = train.state_shardings(state, mesh, rules)
    place = partial(train.shard_batch, mesh=mesh)
    compiled = train.jit_step(step, mesh, shardings, donate=False)
    programs[name] = compiled.lower(state, place(batch(0))).compile()
    runs[f"jit, {name}"] = run(programs[name], state, place)
data_mesh = meshes["data"]
runs["shard_map"] = run(
    train.shard_map_step(step, data_mesh),
    train.replicate(start(), data_mesh),
    partial(train.shard_batch, mesh=data_mesh),
)
runs["pmap"] = run(train.pmap_step(step), start())
parts = train.make_step(loss_fn, tx, clip_norm=1.0, accumulate=4)
runs["4 microbatches"] = run(jax.jit(parts), start())

difference = {}
print(f"{'':24} parameters  gradient norm")
for name, (other, other_norms) in runs.items():
    gaps = jax.tree.map(lambda a, b: abs(a - b).max(), other, params)
    difference[name] = max(jax.tree.leaves(gaps)), abs(other_norms / norms - 1).max()
    print(f"{name:24} {difference[name][0]:10.1e} {difference[name][1]:14.1e}")

# %% [markdown]
# ## What it costs
#
# Left, the bytes that one device holds of parameters, average and optimizer: splitting
# by eight leaves an eighth. Right, what the compiler put into one step: splitting rows
# needs one kind of sum; splitting parameters must also gather them, and splitting
# inside the matrix products adds sums of activations.

# %%
kinds = {"all-reduce": RED, "all-gather": BLUE, "all-to-all": GREEN}
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 2.8))
held, colours = {}, {"params": BLUE, "ema": GREEN, "opt_state": GOLD}
for row, (name, state) in enumerate(states.items()):
    first = 0
    for part, colour in colours.items():
        leaves = jax.tree.leaves(getattr(state, part))
        size = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / 2**20
        label = part if row == 0 else None
        left.barh(row, size, left=first, color=colour, label=label)
        first += size
    held[name] = first
    text = programs[name].as_text()
    counts = [len(re.findall(rf"= .*\b{kind}(?:-start)?\(", text)) for kind in kinds]
    first = 0
    for kind, count in zip(kinds, counts, strict=True):
        label = kind if row == 0 else None
        right.barh(row, count, left=first, color=kinds[kind], label=label)
        first += count
left.set(title="MiB on a device", yticks=range(4), yticklabels=states)
right.set(title="collectives in a step's program", yticks=[])
left.invert_yaxis(), right.invert_yaxis()
left.legend(), right.legend()
figure.show()

# %% [markdown]
# ## Numbers of three widths
#
# Parameters stay float32; `precision` says what the loss sees of them. bfloat16 has the
# range of float32. float16 has not: its gradients vanish below $6 \cdot 10^{-8}$ and
# overflow at 65504, so the loss is scaled, by as much as goes. The scale grows every
# few finite steps and is halved when a step overflows; that step changes nothing.

# %%
half = partial(make, dtype=jnp.float16)
_, apply_half = nn.lazy(lambda rngs: half(rngs=rngs))


def half_loss_fn(params, batch, key):
    x_0, eps, t = batch["image"], batch["eps"], batch["t"]
    target = prediction.target(path, x_0, eps, t, prediction.V)
    v = apply_half(params, noise.perturb(path, x_0, eps, t), t, batch["label"])
    loss = batch["weight"] * jnp.square(v - target).mean((1, 2, 3))
    return loss.sum(), batch["weight"].sum(), {}


scaling = train.LossScale(initial=2.0**16, interval=5)
settings = {"precision": "float16", "loss_scale": scaling}
step_16 = jax.jit(train.make_step(half_loss_fn, tx, **settings))
state_16, scales, skipped, losses_16 = start(loss_scale=scaling), [], [], []
step_32, state_32, losses_32 = jax.jit(train.make_step(loss_fn, tx)), start(), []
for index in range(80):
    state_16, metrics = step_16(state_16, batch(index))
    scales.append(float(metrics["loss_scale"]))
    skipped.append(bool(metrics["skipped"]))
    losses_16.append(float(metrics["loss"]))
    state_32, metrics = step_32(state_32, batch(index))
    losses_32.append(float(metrics["loss"]))

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 2.6))
left.step(range(80), np.log2(scales), c=BLUE, where="post")
where = np.flatnonzero(skipped)
left.plot(where, np.log2(scales)[where], "x", c=RED, label="overflow, skipped")
left.set(title="log2 of the scale", xlabel="step")
left.legend()
right.plot(losses_32, c=GREY, label="float32")
right.plot(losses_16, c=RED, lw=1, label="float16")
right.set(title="loss", xlabel="step")
right.legend()
figure.show()

# %% [markdown]
# ## A checkpoint of no mesh
#
# A run saved on one mesh goes on on another, or on one device: the bits are the same,
# only their places differ.

# %%
trained = states["fsdp"]
with tempfile.TemporaryDirectory() as folder:
    train.save(f"{folder}/state", trained)
    restored = {
        name: train.restore(f"{folder}/state", state) for name, state in states.items()
    }
    restored["one device"] = train.restore(f"{folder}/state", start())
same = {
    name: all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(trained.params), strict=True
        )
    )
    for name, state in restored.items()
}
print(same)

# %% [markdown]
# What the notebook rests on: every way is the same step, a device holds its share, half
# precision trains as single precision does, and checkpoints do not know meshes.

# %%
assert max(gap for gap, _ in difference.values()) < 2e-6, difference
assert max(norm for _, norm in difference.values()) < 1e-5, difference
assert held["fsdp"] < 1.1 * held["data"] / 8, held
assert any(skipped)
assert not all(skipped)
assert abs(np.mean(losses_16[-20:]) / np.mean(losses_32[-20:]) - 1) < 0.05
assert all(same.values()), same
