# %% [markdown]
# # Normalizing flows
#
# A flow is an invertible map from data to noise whose volume change is known, so that
# it has an exact density: $\log p(x) = \log p_z(f(x)) + \log|\det \partial f /
# \partial x|$. In genlib a layer is three pure functions, `init`, `forward` and
# `inverse`; a chain of layers is a layer, and a layer and a base distribution are a
# density. This notebook builds one from parts, checks it against the exact answer,
# breaks the formulas of others with large logits, counts what sequential inverses cost,
# and draws digits with Glow.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from genlib import flows, likelihood, metrics, nn, train

BLUE, RED, GREEN, GOLD, GREY = "#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e", "#9aa0a6"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.frameon": False}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}

# %% [markdown]
# ## A flow from its parts
#
# A coupling moves one half of the variables by an increasing function whose parameters
# a network reads off the other half. The function here is a rational-quadratic spline,
# the network a small MLP; both are arguments. Two couplings that take turns make a
# block, and `scan_chain` stacks three blocks under one `lax.scan`: the program that is
# compiled holds one block, however many run.

# %%
spline = flows.spline(bins=8, bound=3.0)
network = nn.mlp_conditioner(64, 2)
block = flows.chain(
    flows.coupling(spline, network),
    flows.coupling(spline, network, swap=True),
)
flow = flows.scan_chain(block, 3)
model = flows.density(flow)

moons = metrics.TwoMoons(0.1)  # its exact density is known
x = moons.sample(jax.random.key(0), 512)
params = jax.jit(model.init)(jax.random.key(1), x)
jax.tree.map(jnp.shape, params)


# %% [markdown]
# Training is the train step of every other model: a loss that is summed, and its
# weight. All steps run in one scan.


# %%
def loss_fn(params, batch, key):
    loss = -model.log_prob(params, batch)
    return loss.sum(), loss.size, {}


STEPS = 1500
tx = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))
step = train.make_step(loss_fn, tx)
batches = moons.sample(jax.random.key(2), STEPS * 256).reshape(STEPS, 256, 2)
state = train.init(jax.random.key(3), params, tx)
start = time.perf_counter()
state, history = jax.jit(lambda state: jax.lax.scan(step, state, batches))(state)
trained = jax.block_until_ready(state.params)
print(f"{STEPS} steps in {time.perf_counter() - start:.0f} s")

test = moons.sample(jax.random.key(4), 20_000)
nll = -jax.jit(model.log_prob)(trained, test)
entropy = -moons.log_density(test)
error = float((nll - entropy).std() / np.sqrt(len(test)))
print(
    f"held-out negative log-likelihood {nll.mean():.4f} nats, the exact density's own "
    f"{entropy.mean():.4f}: {nll.mean() - entropy.mean():.4f} +- {error:.4f} more"
)

# %% [markdown]
# No density can do better than the exact one. A flow that seems to has a wrong
# log-determinant: that is the test which catches what round trips cannot see.

# %%
side = np.linspace(-2, 3, 220), np.linspace(-1.5, 2, 160)
grid = jnp.asarray(np.stack(np.meshgrid(*side), -1), jnp.float32)
points = grid.reshape(-1, 2)
exact = jnp.exp(moons.log_density(points)).reshape(grid.shape[:2])
learned = jnp.exp(jax.jit(model.log_prob)(trained, points)).reshape(grid.shape[:2])
draw = jax.jit(model.sample, static_argnums=2)
samples = draw(jax.random.key(5), trained, (2000, 2))
lines = np.stack(np.meshgrid(np.linspace(-2.4, 2.4, 17), np.linspace(-3, 3, 300)), -1)
lattice = np.stack([lines, lines[..., ::-1]]).astype(np.float32)
curves, _ = jax.jit(flow.inverse)(trained["flow"], lattice.reshape(-1, 2))

figure, axes = plt.subplots(1, 4, figsize=(11, 2.4))
for axis, density, title in zip(
    axes, (exact, learned), ("exact density", "the flow's"), strict=False
):
    axis.pcolormesh(*side, density, cmap="magma", vmin=0, vmax=float(exact.max()))
    axis.set_title(title)
axes[2].scatter(*samples.T, s=1, c=BLUE, alpha=0.6)
axes[2].set(xlim=(-2, 3), ylim=(-1.5, 2), title="its samples")
for family, colour in zip(curves.reshape(lattice.shape), (GREEN, RED), strict=True):
    axes[3].plot(*np.moveaxis(family, 2, 0), color=colour, lw=0.6)
axes[3].set(xlim=(-2, 3), ylim=(-1.5, 2), title="a square lattice of the latents")
for axis in axes:
    axis.set(xticks=[], yticks=[], aspect="equal")

# %% [markdown]
# ## Is the log-determinant right?
#
# The exact answer is the log-determinant of the Jacobian, one example at a time, in
# float64. This one line is the law that every layer of `genlib.flows` passes in the
# test suite, in every configuration.

# %%
with jax.enable_x64(True):
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), trained["flow"])
    rows = jnp.asarray(np.asarray(test[:200]), jnp.float64)
    jacobian = jax.vmap(jax.jacfwd(lambda x: flow.forward(own, x[None])[0][0]))(rows)
    wrong = flow.forward(own, rows)[1] - jnp.linalg.slogdet(jacobian)[1]
    law = float(jnp.abs(wrong).max())
print(f"largest difference to slogdet(jacfwd): {law:.1e}")

# %% [markdown]
# ## Splines under stress
#
# A spline's bins can become steep without bound when the logits of the network grow,
# and then its inverse loses all digits, or becomes NaN. Here the logits are clipped
# softly, so that no slope leaves a fixed range. Round-trip errors in float32 of
# 8 bins on [-5, 5], with logits drawn from N(0, scale²):

# %%
bounded, plain = flows.spline(8, bound=5.0), flows.spline(8, bound=5.0, limit=None)


@jax.jit
def round_trip(scale, key):
    key_raw, key_x = jax.random.split(key)
    raw = scale * jax.random.normal(key_raw, (20_000, bounded.size))
    x = jax.random.uniform(key_x, (20_000,), minval=-5.0, maxval=5.0)
    errors = []
    for univariate in (bounded, plain):
        back, _ = univariate.inverse(raw, univariate.forward(raw, x)[0])
        errors.append(jnp.abs(back - x))
    return errors


scales = np.geomspace(0.5, 100, 12)
errors = [round_trip(scale, jax.random.key(6)) for scale in scales]
figure, axis = plt.subplots(figsize=(4.6, 2.8))
for index, (name, colour) in enumerate((("softly clipped", BLUE), ("plain", RED))):
    p99 = [np.percentile(np.nan_to_num(e[index], nan=10.0), 99) for e in errors]
    axis.loglog(scales, p99, marker="o", ms=3, color=colour, label=name)
axis.set(xlabel="scale of the logits", ylabel="99th percentile of the error")
axis.legend()
stress = float(np.percentile(errors[-1][0], 99))

# %% [markdown]
# ## What an inverse costs
#
# Couplings cost the same in both directions. A masked autoregressive flow evaluates
# a density with one call of its network and draws a sample with one call for each
# variable; its inverse, an inverse autoregressive flow, is the other way round.

# %%
dimensions = (4, 8, 16, 32, 64)
seconds = {"coupling": [], "autoregressive": [], "its inverse": []}


def clock(function, *args):
    jax.block_until_ready(function(*args))
    start = time.perf_counter()
    for _ in range(5):
        jax.block_until_ready(function(*args))
    return (time.perf_counter() - start) / 5


for dimension in dimensions:
    rows = jax.random.normal(jax.random.key(7), (256, dimension))
    masked = flows.autoregressive(flows.affine(), nn.masked_conditioner(64, 2))
    for name, layer, direction in (
        ("coupling", flows.coupling(flows.affine(), network), "inverse"),
        ("autoregressive", masked, "forward"),
        ("its inverse", masked, "inverse"),
    ):
        own = layer.init(jax.random.key(8), rows)
        seconds[name].append(clock(jax.jit(getattr(layer, direction)), own, rows))
figure, axis = plt.subplots(figsize=(4.6, 2.8))
for (name, values), colour in zip(seconds.items(), (BLUE, GREEN, RED), strict=True):
    axis.loglog(dimensions, 1e3 * np.array(values), ".-", color=colour, label=name)
axis.set(xlabel="variables", ylabel="ms for 256 examples")
axis.set_xticks(dimensions, labels=dimensions)
axis.tick_params("x", which="minor", length=0, labelbottom=False)
axis.legend()

# %% [markdown]
# ## Glow
#
# Images are integers. The first layer spreads them over their bins (a stochastic layer:
# it takes a key), and its contribution makes the log-likelihood that of the integers.
# Then come squeezes, steps of actnorm, invertible 1x1 convolution and coupling, and
# splits that send half of the channels to the latents early. `init` sees a batch, so
# that actnorm starts from its statistics. Every network is given the class, `cond`.

# %%
digits = load_digits()
shuffled = np.random.default_rng(0).permutation(len(digits.target))
images = digits.images.astype(np.int32)[shuffled, ..., None]
classes = np.eye(10, dtype=np.float32)[digits.target[shuffled]]
flow = flows.chain(
    flows.uniform_dequantization(levels=17, low=-0.5, high=0.5),
    nn.glow(levels=2, depth=4, width=64),
)
glow = flows.density(flow)


def glow_loss(params, rows, key):
    x, cond = jnp.asarray(images)[rows], jnp.asarray(classes)[rows]
    loss = -glow.log_prob(params, x, cond, key)
    return loss.sum(), loss.size, {}


GLOW_STEPS = 350
tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-3, 20, GLOW_STEPS))
step = train.make_step(glow_loss, tx, ema=0.98, clip_norm=100.0)
params = jax.jit(glow.init)(jax.random.key(9), images[:256], classes[:256])
state = train.init(jax.random.key(10), params, tx)
rows = np.random.default_rng(1).integers(0, 1437, (GLOW_STEPS, 128))
start = time.perf_counter()
state, history = jax.jit(lambda state: jax.lax.scan(step, state, rows))(state)
trained = jax.block_until_ready(state.ema)
key = jax.random.key(11)
nats = jax.jit(glow.log_prob)(trained, images[1437:], classes[1437:], key)
bits = likelihood.bits_per_dim(nats, (8, 8, 1))
print(
    f"{GLOW_STEPS} steps in {time.perf_counter() - start:.0f} s; held-out digits "
    f"{bits.mean():.3f} bits/dim (uniform over 17 levels: {np.log2(17):.3f})"
)

# %% [markdown]
# Samples at three temperatures, a row for each class, and what lies between two
# held-out digits of each class in the latent space.

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 3.6))


def mosaic(axis, rows, title):
    """Draw images [rows, columns, 8, 8, 1] with gaps between them."""
    padded = np.pad(np.asarray(rows)[..., 0], ((0, 0), (0, 0), (1, 1), (1, 1)))
    lines = [np.concatenate(list(row), 1) for row in padded]
    axis.imshow(np.concatenate(lines), cmap="gray_r", vmin=0, vmax=16)
    axis.set(xticks=[], yticks=[], title=title)


cond = np.eye(10, dtype=np.float32).repeat(8, 0)
draw = jax.jit(
    lambda key, temperature: glow.sample(
        key, trained, (80, 8, 8, 1), cond, dtype=jnp.int32, temperature=temperature
    )
)
for axis, temperature in zip(axes, (0.5, 0.75, 1.0), strict=False):
    drawn = draw(jax.random.key(12), temperature)
    mosaic(axis, drawn.reshape(10, 8, 8, 8, 1), f"temperature {temperature}")

held_out = 1437 + np.array([np.flatnonzero(row)[:2] for row in classes[1437:].T])
pairs, own = images[held_out.T.ravel()], classes[held_out.T.ravel()]
z, _ = jax.jit(flow.forward)(trained["flow"], pairs, own, key=key)
between = [
    jax.tree.map(lambda z, w=w: (1 - w) * z[:10] + w * z[10:], z)
    for w in np.linspace(0, 1, 8)
]
inverse = jax.jit(lambda z: flow.inverse(trained["flow"], z, own[:10], key=key)[0])
mosaic(axes[3], np.stack([inverse(z) for z in between], 1), "between held-out digits")

# %%
assert nll.mean() - entropy.mean() < 0.04, "the flow has not learned the moons"
assert nll.mean() > entropy.mean() - 3 * error, "no density beats the exact one"
assert law < 1e-9, "the log-determinant is not that of the Jacobian"
assert stress < 0.1, "the spline does not survive large logits"
assert bits.mean() < 2.5, "Glow has not learned the digits"
