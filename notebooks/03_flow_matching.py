# %% [markdown]
# # Flow matching
#
# A flow carries one distribution to another along a velocity field. Which field it
# learns is decided by two choices: the **coupling** (which source sample goes with
# which data sample) and the **interpolant** (how the two are joined). This notebook
# makes both choices in several ways between eight Gaussians and two moons, and measures
# what they cost: how straight the flow is, how much energy it takes, and what one step
# of it is worth. As everywhere in genlib, data is at $t = 0$ and the source at $t = 1$.

# %%
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from experiments.flows2d import even, gaussians, independent, moons
from genlib import likelihood, losses, metrics, nn, noise, prediction, samplers, train

BLUE, RED, GREEN, GOLD, GREY = "#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e", "#9aa0a6"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.frameon": False}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}

DATA, SOURCE = jax.random.split(jax.random.key(0))
x_0, x_1 = even(moons, DATA, 1024), even(gaussians, SOURCE, 1024)


def bare(axis, *clouds, x=(-7.5, 7.5), y=(-7.5, 7.5), size=2.0):
    """Draw clouds of points, each (points, colour), and nothing else."""
    for points, colour in clouds:
        axis.scatter(*points.T, s=size, c=colour, alpha=0.7, linewidths=0, zorder=2)
    axis.set(xlim=x, ylim=y, xticks=[], yticks=[], aspect=1)
    axis.spines[:].set_visible(False)


near = dict(x=(-5.0, 6.0), y=(-3.5, 4.0))  # where the moons are


# %% [markdown]
# ## Couplings
#
# A coupling pairs a minibatch. At random, every Gaussian sends samples to both moons.
# Optimal transport finds the pairs of least total squared distance; Sinkhorn's entropic
# plan blurs it, and with `reg = 2 sigma²` it is the coupling of a Schrödinger bridge.
# The titles give the mean squared distance of 1024 pairs, which is what a straight flow
# between them costs; 128 of them are drawn.

# %%
couplings = {
    "independent": noise.independent_coupling,
    "optimal": noise.optimal_coupling,
    "Sinkhorn, reg = 1": noise.sinkhorn_coupling(1.0),
    r"bridge, $\sigma = 1.5$": noise.schroedinger_coupling(1.5),
}
figure, axes = plt.subplots(1, 4, figsize=(9.5, 3.0))
for axis, (name, couple) in zip(axes, couplings.items(), strict=True):
    pairs = couple(jax.random.key(1), x_0, x_1)
    lines = jnp.stack([pairs.x_0, pairs.x_1])[:, ::8]
    axis.plot(*lines.transpose(2, 0, 1), c=GOLD, lw=0.6, alpha=0.6, zorder=1)
    bare(axis, (lines[0], BLUE), (lines[1], "0.3"), size=5)
    cost = jnp.square(pairs.x_0 - pairs.x_1).sum(1).mean()
    axis.set_title(f"{name}\n{cost:.1f}")

# %% [markdown]
# ## Interpolants
#
# $x_t = \alpha_t x_0 + \beta_t x_1 + \gamma_t z$. Without $z$ the pairs are joined by
# lines or arcs. With it each pair becomes a tube: the Brownian bridge,
# $\gamma = \sigma \sqrt{t (1 - t)}$, or all the way through pure noise. Whatever the
# marginals look like on the way, all four end at the same two distributions.

# %%
optimal = noise.optimal_coupling(jax.random.key(1), x_0, x_1)
bridge = noise.schroedinger_coupling(1.5)(jax.random.key(1), x_0, x_1)
shuffled = noise.independent_coupling(jax.random.key(1), x_0, x_1)
rows = {
    "lines,\nindependent": (noise.LinearInterpolant(), shuffled),
    "lines,\noptimal": (noise.LinearInterpolant(), optimal),
    "Brownian bridges,\nSchrödinger": (noise.BridgeInterpolant(1.5), bridge),
    "through noise,\nindependent": (noise.EncodingDecodingInterpolant(), shuffled),
}
z = jax.random.normal(jax.random.key(2), x_0.shape)
figure, axes = plt.subplots(4, 6, figsize=(9.5, 6.4))
for row, (name, (interpolant, pairs)) in zip(axes, rows.items(), strict=True):
    for axis, t in zip(row, [0.0, 0.25, 0.5, 0.75, 1.0], strict=False):
        drawn = z if noise.is_stochastic(interpolant) else None
        x_t = noise.interpolate(interpolant, pairs.x_0, pairs.x_1, t, drawn)
        bare(axis, (x_t, RED if 0 < t < 1 else BLUE if t == 0 else "0.3"), size=1.5)
        axis.set_title(
            f"t = {t}" if interpolant is rows["lines,\nindependent"][0] else ""
        )
    row[0].set_ylabel(name)
    t = jnp.linspace(0, 1, 101)
    for value, letter, colour in zip(
        interpolant(t),
        (r"\alpha", r"\beta", r"\gamma"),
        (BLUE, "0.3", RED),
        strict=True,
    ):
        if value is not None:
            row[-1].plot(t, value, color=colour, label=f"${letter}$")
    row[-1].legend(
        ncols=3, handlelength=1, loc="lower center", bbox_to_anchor=(0.5, 0.96)
    )
    row[-1].set(xticks=[0, 1], yticks=[0, 1])

# %% [markdown]
# ## Training
#
# The conditional velocity $dx_t / dt$ is known for each pair, and the mean of it over
# all pairs that pass through a point is the velocity of a flow between the two
# distributions: regression on it is all of the training. Everything that differs from
# one method to the next is the argument `draw`.

# %%
LINE, BATCH, TRAIN_STEPS = noise.LinearInterpolant(), 256, 1500


class Field(nnx.Module):
    """A field over x that also sees some times: three hidden layers of 64."""

    def __init__(self, times: int, rngs: nnx.Rngs):
        sizes = itertools.pairwise((2 + times, 64, 64, 64, 2))
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in sizes])

    def __call__(self, x, *times):
        h = jnp.concatenate([x, *(t[:, None] for t in times)], axis=1)
        for layer in list(self.layers)[:-1]:
            h = jax.nn.silu(layer(h))
        return self.layers[-1](h)


def fit(loss, draw, *, times=1, steps=TRAIN_STEPS, start=None):
    """Train a field on the pairs of `draw(key)`, from parameters or anew."""
    params, apply = nn.from_nnx(Field(times, nnx.Rngs(0)))

    def loss_fn(params, batch, key):
        each = loss(key, lambda *at: apply(params, *at), *batch, interpolant=LINE)
        return each.sum(), each.size, {}

    tx = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    step = train.make_step(loss_fn, tx, ema=0.99)
    state = train.init(jax.random.key(3), params if start is None else start, tx)
    body = lambda state, key: step(state, draw(key))
    keys = jax.random.split(jax.random.key(4), steps)
    state = jax.jit(lambda state: jax.lax.scan(body, state, keys)[0])(state)
    return state.ema, lambda *at: apply(state.ema, *at)


def coupled(couple):
    """Return draws of a minibatch of pairs."""

    def draw(key):
        keys = jax.random.split(key, 3)
        x_0 = independent(moons, keys[0], BATCH)
        x_1 = independent(gaussians, keys[1], BATCH)
        return couple(keys[2], x_0, x_1)[:2]

    return draw


params, velocities = {}, {}
for name, couple in {
    "I-CFM": noise.independent_coupling,
    "OT-CFM": noise.optimal_coupling,
}.items():
    params[name], velocities[name] = fit(losses.flow_matching, coupled(couple))

# %% [markdown]
# ## Re-flow
#
# The trajectories of a flow do not cross. Training a second time on the pairs
# $(x_0, x_1)$ that the first flow itself made, therefore, gives a flow between the same
# ends that is nearly straight. `losses.reflow_pairs` makes the pairs, and the second
# training starts where the first ended.

# %%
PATH = noise.Rectified()  # on straight lines every velocity makes a denoiser
times = samplers.uniform(PATH, 50)


def transport(velocity, x_1, times=times, save=None):
    """Follow a velocity from the source to the data by Euler's method."""
    denoise = prediction.denoiser(velocity, PATH, prediction.VELOCITY)
    return samplers.sample(samplers.euler(), denoise, PATH, times, x_1, save=save)


@jax.jit
def own_pairs(x_1):
    return losses.reflow_pairs(lambda x: transport(velocities["I-CFM"], x), x_1)


pool = own_pairs(independent(gaussians, jax.random.key(5), 16_384))


def from_pool(key):
    rows = jax.random.randint(key, (BATCH,), 0, len(pool[0]))
    return pool[0][rows], pool[1][rows]


params["re-flow"], velocities["re-flow"] = fit(
    losses.flow_matching, from_pool, start=params["I-CFM"]
)

# %% [markdown]
# ## What the flows cost
#
# Three numbers for each flow, measured on the 1024 samples of the source from above:
#
# - the *normalised path energy*, by how much the flow takes more energy than optimal
#   transport;
# - the *straightness*, the mean squared difference between a trajectory's velocity and
#   its straight line, 0 for straight lines at constant speed;
# - the Wasserstein distance $W_2$ of 1 and of 50 Euler steps to the data.

# %%
truth = even(moons, jax.random.key(6), 1024)
distance = metrics.wasserstein(x_0, x_1)
floor = metrics.wasserstein(truth, x_0).item()


@jax.jit
def follow(x_1):
    return {
        name: (
            transport(velocity, x_1, save=lambda x: x)[1],
            transport(velocity, x_1, samplers.uniform(PATH, 1)),
        )
        for name, velocity in velocities.items()
    }


scores, one_step = {}, {}
figure, axes = plt.subplots(2, 3, figsize=(8.4, 5.0), height_ratios=(3, 2))
axes[0, 0].set_ylabel("50 steps")
axes[1, 0].set_ylabel("1 step")
print(f"W2 of source and data {distance:.2f}; of data and other data {floor:.2f}\n")
print("         energy  straightness  W2, 1 step  W2, 50 steps")
for (top, bottom), (name, (points, one)) in zip(
    axes.T, follow(x_1).items(), strict=True
):
    way = jnp.concatenate([x_1[None], points])
    energy = metrics.path_energy(way, times)
    scores[name] = [
        metrics.normalised_path_energy(energy, distance).item(),
        metrics.straightness(way, times).mean().item(),
        metrics.wasserstein(one, truth).item(),
        metrics.wasserstein(way[-1], truth).item(),
    ]
    one_step[name] = one
    print(f"{name:8}", *(f"{value:9.3f}" for value in scores[name]), sep="  ")
    top.plot(*way[:, ::4].transpose(2, 0, 1), c=GOLD, lw=0.5, alpha=0.5, zorder=1)
    bare(top, (x_1, "0.3"), (way[-1], BLUE))
    bare(bottom, (truth, GREY), (one, RED), **near)
    top.set_title(name)

# %% [markdown]
# The independent flow bends where the conditional lines cross, so that one step of it
# ends between the moons. Optimal pairs make it straight *and* cheap. Re-flow makes it
# straight only: it keeps the pairs, which are not optimal.
#
# ## One step by the mean velocity
#
# MeanFlow learns the *mean* velocity $u(x_t, s, t)$ over a step from $t$ to $s$, by an
# identity between $u$ and its derivative along the flow: another loss, a second time,
# and the same pairs. The argument `velocity` lets it distil a trained flow, here the
# bent one of the crossing pairs; without it the loss trains from the pairs alone.


# %%
def mean_flow(*args, **settings):
    bent = lambda x, t, _: velocities["I-CFM"](x, t)
    steps = losses.random_steps(share=0.75)
    return losses.mean_flow(*args, steps=steps, velocity=bent, power=0.5, **settings)


_, mean_velocity = fit(
    mean_flow, coupled(noise.independent_coupling), times=2, steps=2500
)
zero, one = jnp.zeros(len(x_1)), jnp.ones(len(x_1))
one_step["MeanFlow"] = x_1 - mean_velocity(x_1, zero, one)
miss = {name: metrics.wasserstein(x, truth).item() for name, x in one_step.items()}

figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.4))
for axis, name in zip(axes, ("I-CFM", "MeanFlow"), strict=True):
    bare(axis, (truth, GREY), (one_step[name], RED), **near)
    axis.set_title(f"{name}, 1 step: W2 {miss[name]:.2f}")

# %% [markdown]
# ## Likelihood
#
# A flow carries densities as well as samples: integrating the divergence of the
# velocity along the way gives $\log p(x)$. `likelihood.log_prob` does so for any
# denoiser. The source is not normal here, so its density is the argument `prior`; as a
# mixture of Gaussians it is known. Left: the density that OT-CFM has learned, with
# samples of the data, and how much of it there is in all, which must be 1; the fine
# cuts are where the shares of two Gaussians meet.
#
# Can the number be trusted? Where the answer is known, yes: the exact denoiser of the
# eight Gaussians, on the path from them to normal noise, must give back their density.
# Right: by how many nats it does not, for a classical Runge-Kutta grid of more and more
# steps.

# %%
angle = np.pi / 4 * np.arange(8)
centres = 5.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
eight = metrics.GaussianMixture(np.full(8, 1 / 8), centres, np.full(8, 0.1**0.25))

denoise = prediction.denoiser(velocities["OT-CFM"], PATH, prediction.VELOCITY)
x, y = np.linspace(-5.0, 6.0, 111), np.linspace(-3.5, 4.0, 76)
points = jnp.asarray(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), jnp.float32)
log_p = jax.jit(
    lambda x: likelihood.log_prob(
        denoise, PATH, x, prior=eight.log_density, times=np.linspace(1.0, 1e-3, 25)
    )
)(points)
density = np.exp(np.asarray(log_p).reshape(len(y), len(x)))
total = density.sum() * (x[1] - x[0]) * (y[1] - y[0])

path, worst = noise.VPLinear(), {}
with jax.enable_x64(True):  # rounding to float32 would hide the last errors
    at = eight.sample(jax.random.key(7), 200, jnp.float64)
    exact = eight.log_density(at)
    for count in (32, 64, 128, 256):
        grid = samplers.uniform_log_snr(path, count, sigma_min=1e-4, to_zero=False)
        a, b = path(grid[0])
        settings = dict(prior=partial(eight.log_density, alpha=a, sigma=b), times=grid)
        value = likelihood.log_prob(eight.denoiser(path), path, at, **settings)
        worst[count] = jnp.abs(value - exact).max().item()

figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.1))
extent = (x[0], x[-1], y[0], y[-1])
look = dict(cmap="Blues", vmax=density.max() / 2, interpolation="bilinear")
left.imshow(density, origin="lower", extent=extent, **look)
bare(left, (truth[::4], RED), **near, size=1.5)
left.set_title(f"density of OT-CFM, in all {total:.3f}")
right.loglog(worst.keys(), worst.values(), "o-", c=BLUE)
right.set(xlabel="steps", title="worst error of log p, nats", xticks=list(worst))
right.set_xticklabels(worst)
right.minorticks_off()

# %% [markdown]
# What the notebook rests on: optimal pairs bring the energy of the flow down to that of
# optimal transport, re-flow straightens it and MeanFlow jumps along it, and likelihoods
# are exact.

# %%
energies, straightness = ({k: v[i] for k, v in scores.items()} for i in (0, 1))
assert energies["OT-CFM"] < 0.05 < 1.0 < energies["I-CFM"], energies
assert straightness["re-flow"] < 0.02 * straightness["I-CFM"], straightness
assert max(miss["re-flow"], miss["MeanFlow"]) < 0.4 * miss["I-CFM"], miss
assert abs(total - 1) < 0.02, total
assert worst[256] < 1e-5, worst
