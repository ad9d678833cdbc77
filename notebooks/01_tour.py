# %% [markdown]
# # A tour of genlib
#
# A diffusion or flow model is five choices that do not depend on each other: a **path**
# from data to noise, what the network **predicts**, the **loss**, the **solver**, and
# its time **grid**. In genlib each is one object or one function, and changing one
# changes one line. This notebook makes every choice once, on data in two dimensions,
# where all of it can be seen and checked.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from genlib import losses, metrics, nn, noise, prediction, samplers, train

BLUE, RED, GREEN, GOLD, GREY = "#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e", "#9aa0a6"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.frameon": False}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}

# %% [markdown]
# ## Data
#
# Two moons, written as a mixture of 32 Gaussians. On any path the noisy data is a
# mixture again, so `metrics.GaussianMixture` knows its density, its score and the
# perfect denoiser $E[x_0 \mid x_t]$ in closed form: an exact answer for every check.

# %%
angle = np.linspace(0, np.pi, 16)
moon = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
means = np.concatenate([moon, -moon])
data = metrics.GaussianMixture(np.full(32, 1 / 32), means, np.full(32, 0.1))

x_0 = data.sample(jax.random.key(0), 1500)
which = data.responsibilities(x_0)[:, :16].sum(axis=1) > 0.5  # the upper moon?


def scatter(axis, x, colour, *, size=2.0, width=2.6):
    """Draw points on a bare square."""
    axis.scatter(*x.T, s=size, c=colour, alpha=0.6, linewidths=0)
    axis.set(xlim=(-width, width), ylim=(-width, width), xticks=[], yticks=[], aspect=1)
    axis.spines[:].set_visible(False)


# %% [markdown]
# ## Three paths
#
# A path gives $\alpha_t$ and $\sigma_t$ of $x_t = \alpha_t x_0 + \sigma_t \epsilon$;
# time runs from data at $t = 0$ to noise at $t = 1$. What tells paths apart is how they
# spend that time: `VPLinear` is mostly noise by the middle, `Rectified` goes straight.

# %%
paths = {BLUE: noise.VPLinear(), GREEN: noise.Cosine(), RED: noise.Rectified()}
t = jnp.linspace(0.01, 0.99, 99)  # at the ends the log-SNR is infinite
eps = jax.random.normal(jax.random.key(1), x_0.shape)

figure = plt.figure(figsize=(9.5, 7.4))
above, below = figure.subfigures(2, 1, height_ratios=[1, 2.1])
curves, clouds = above.subplots(1, 3), below.subplots(3, 5)
for (colour, path), row in zip(paths.items(), clouds, strict=True):
    values = [*path(t), noise.log_snr(path, t)]
    for axis, value in zip(curves, values, strict=True):
        axis.plot(t, value, color=colour, label=type(path).__name__)
    for axis, time in zip(row, [0.0, 0.25, 0.5, 0.75, 1.0], strict=True):
        scatter(axis, noise.perturb(path, x_0, eps, time), np.where(which, BLUE, RED))
        axis.set_title(f"t = {time}" if colour == BLUE else "")
    row[0].set_ylabel(type(path).__name__)
curves[0].legend(loc="lower left")
titles = [r"$\alpha_t$", r"$\sigma_t$", r"log-SNR, $\log\,\alpha_t^2 / \sigma_t^2$"]
for axis, title in zip(curves, titles, strict=True):
    axis.set(xlabel="t", title=title, xlim=(0, 1))

# %% [markdown]
# ## Five predictions
#
# A network may predict the data, the noise, or a mixture of both. Each kind is linear
# in $(x_0, \epsilon)$, as $x_t$ is, so any one of them and $x_t$ give all the others:
# `prediction.convert` solves that 2×2 system.
#
# A loss gives one number for each example, and a step is a pure function over plain
# arrays, so all of training is these few lines. The five losses share no parameter:
# their sum trains five networks at once. The weight is one of the error in $x_0$,
# whatever is predicted, so all five networks minimise the same thing.

# %%
path = noise.Cosine()
kinds = {
    name: prediction.KINDS[name] for name in ("x0", "eps", "v", "score", "velocity")
}
params, apply = nn.from_nnx(nn.MLP(2, features=32, depth=2, rngs=nnx.Rngs(0)))


def loss_fn(params, batch, key):
    total, weight = 0.0, losses.min_snr(100.0)
    for name, kind in kinds.items():
        predict = partial(apply, params[name])
        loss = losses.denoising(key, predict, path, batch, kind=kind, weight=weight)
        total += loss.sum()
    return total, len(batch), {}


tx = optax.adam(optax.cosine_decay_schedule(5e-3, 1500))
state = train.init(jax.random.key(2), dict.fromkeys(kinds, params), tx)
step = train.make_step(loss_fn, tx, ema=0.99)
batches = data.sample(jax.random.key(3), 1500 * 128).reshape(1500, 128, 2)
state, history = jax.jit(lambda state: jax.lax.scan(step, state, batches))(state)

# %% [markdown]
# A network and its kind make a denoiser, and a solver carries noise to data with it,
# here in 20 steps of DPM-Solver++(2M). The grid starts at $\sigma = 5\,\alpha$, where
# almost nothing of the data is left to see: nearer to pure noise, $\epsilon$ and the
# score say next to nothing about $x_0$.
#
# Above, the exact predictions at $t = 0.5$, as fields over $x_t$ (on this path velocity
# is $\pi/2$ times $v$). Below, samples of the five networks.

# %%
times = samplers.uniform_log_snr(path, 20, sigma_max=5.0)
noises = noise.prior(jax.random.key(4), path, (2000, 2), t=times[0])
x_t = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1.8, 1.8, 13)] * 2), -1).reshape(-1, 2)
perfect = data.denoiser(path)(x_t, 0.5)

samples = {}
figure, columns = plt.subplots(2, 5, figsize=(9.5, 4.1))
columns[0, 0].set_ylabel("exact, t = 0.5")
columns[1, 0].set_ylabel("samples")
for (top, bottom), (name, kind) in zip(columns.T, kinds.items(), strict=True):
    denoise = prediction.denoiser(partial(apply, state.ema[name]), path, kind)
    x = samplers.sample(samplers.dpmpp_2m(), denoise, path, times, noises)
    samples[name] = x
    arrows = prediction.convert(path, perfect, x_t, 0.5, prediction.X0, kind)
    scatter(top, x_0, GREY, size=1.0, width=2.0)
    top.quiver(*x_t.T, *arrows.T, color=BLUE, width=0.009, pivot="mid")
    top.set_title(name)
    scatter(bottom, x, RED, size=1.5, width=2.0)

# %% [markdown]
# How good are they? Two sets of true samples are not at distance 0 either: how far
# apart such sets are is the floor, below which a distance says nothing.

# %%
truth, *others = (data.sample(jax.random.key(seed), 2000) for seed in range(10, 15))
distance = lambda x: metrics.sliced_wasserstein(jax.random.key(5), x, truth).item()
floor = [distance(other) for other in others]
trained = {name: distance(x) for name, x in samples.items()}
print(f"true samples: {min(floor):.3f} to {max(floor):.3f}")
print("networks:", *(f"{name} {value:.3f}" for name, value in trained.items()))

# %% [markdown]
# ## Four solvers
#
# A solver is one argument of `samplers.sample`, and any solver serves any denoiser. On
# the exact denoiser the only error is the solver's. Left: twelve solutions of the
# ordinary differential equation (blue) and one random walk of DDPM (red), from noise to
# data. Middle: the error against the exact solution, the median over samples; a
# straight line of slope $-p$ is order $p$. Right: the distance to true samples.

# %%
solvers = {
    "ddim": (samplers.ddim(), GREEN),
    "heun": (samplers.heun(), GOLD),
    "dpmpp_2m": (samplers.dpmpp_2m(), BLUE),
    "ddpm": (samplers.ddpm(), RED),
}
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 3.3))
orders, key = {}, jax.random.key(6)


def run(solver, steps):
    """Return samples, the way of the first twelve, and the calls of the denoiser."""
    span = dict(sigma_min=0.02, sigma_max=20.0, to_zero=False)
    times = samplers.uniform_log_snr(path, steps, **span)
    x_t = noise.prior(key, path, (2000, 2), jnp.float64, t=times[0])
    denoise, keep = data.denoiser(path), lambda x: x[:12]
    x, way = samplers.sample(solver, denoise, path, times, x_t, key, save=keep)
    return x, way, samplers.nfe(solver, path, times)


with jax.enable_x64(True):  # rounding to float32 would hide the last errors
    solution, *_ = run(samplers.heun(), 800)
    for name, (solver, colour) in solvers.items():
        x, ways, calls = zip(*(run(solver, n) for n in (8, 20, 50, 125)), strict=True)
        right.loglog(calls, [distance(y) for y in x], "o-", ms=3, c=colour, label=name)
        if name in ("ddpm", "dpmpp_2m"):
            way = ways[2][:, : 1 if solver.stochastic else 12]
            left.plot(*way.transpose(2, 0, 1), ".-", color=colour, lw=0.8, ms=1.5)
        if not solver.stochastic:
            error = [jnp.median(jnp.abs(y - solution)).item() for y in x]
            orders[name] = np.log(error[-2] / error[-1]) / np.log(2.5)
            label = f"{name}: order {orders[name]:.2f}"
            middle.loglog(calls, error, "o-", ms=3, c=colour, label=label)

right.axhspan(min(floor), max(floor), color=GREY, alpha=0.3, lw=0, label="true samples")
left.set_title("from noise to data")
middle.set(xlabel="denoiser calls", title="error of the solution")
right.set(xlabel="denoiser calls", title="sliced Wasserstein distance")
middle.legend(loc="lower left")
right.legend()
scatter(left, truth, GREY, size=1.0, width=2.4)

# %% [markdown]
# The orders are those that the papers claim, and no network's samples are further from
# the truth than twice what true samples are. This is what the tour rests on:

# %%
off = [abs(orders[name] - p) for name, p in dict(ddim=1, heun=2, dpmpp_2m=2).items()]
assert max(off) < 0.1, orders
assert max(trained.values()) < 2 * max(floor), trained
