# %% [markdown]
# # Samplers
#
# All solvers of genlib on problems whose answer is known: where noise comes from, which
# solver makes the most of a number of network calls, whether each converges as fast as
# its theory says, what noise along the way is good for, how to write a solver of one's
# own, and what guidance does. Every denoiser here is the exact one of a Gaussian
# mixture, so that every error is the sampler's.

# %%
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.benchmarks import orders, quality
from genlib import guidance, losses, metrics, noise, prediction, samplers, tree, types

# For programs that run once: they should compile fast rather than run fast.
jit_once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

BLUE, RED, GREEN, GOLD, GREY = "#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e", "#9aa0a6"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.frameon": False}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}

# %% [markdown]
# ## Where the noise comes from
#
# A walker takes equal steps, left or right with a fair coin. After many small steps the
# place is Gaussian, whatever one step looks like, and its density solves the heat
# equation. Walk away from every point of the data and the variance grows with the time
# while the data stays where it is: that is a path with $\alpha = 1$, `VE` or `EDM`.
# A sampler walks it back, from right to left in the last panel.

# %%
walks = noise.random_walk(jax.random.key(0), jnp.zeros(40), 256)
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(9.5, 2.9), width_ratios=[1, 1, 1.3]
)
left.plot(np.linspace(0, 1, 257), walks, color=BLUE, lw=0.6, alpha=0.4)
left.set(xlabel="time", ylabel="x", ylim=(-3.5, 3.5), title="40 walks of 256 steps")

x, gaps = jnp.linspace(-3.5, 3.5, 300), []
for steps, colour, size in ((4, GOLD, 7), (16, GREEN, 5), (64, RED, 2.5)):
    walk = noise.walk_distribution(steps)
    density = walk.probabilities / (walk.positions[1] - walk.positions[0])
    style = dict(ms=size, color=colour, label=f"{steps} steps")
    middle.plot(walk.positions, density, "o", **style)
    gaps.append(jnp.abs(density - noise.heat_kernel(walk.positions, 1.0)).max().item())
middle.plot(x, noise.heat_kernel(x, 1.0), color=GREY, zorder=0, label="heat kernel")
middle.set(xlabel="x", title="where they are at time 1", xlim=(-5.2, 3.5))
middle.legend(loc="upper left", handlelength=1)

path, line = noise.VE(0.05, 5.0), jnp.linspace(-6, 6, 400)
two = metrics.GaussianMixture(
    np.array([0.4, 0.6]), np.array([[-2.0], [2.0]]), np.ones(2) / 3
)
density = lambda t: jnp.exp(two.log_density(line[:, None], *path(t)))
image = jit_once(jax.vmap(density, out_axes=1))(jnp.linspace(0, 1, 120))
right.imshow(
    image / image.max(0, keepdims=True),
    extent=(0, 1, -6, 6),
    origin="lower",
    aspect="auto",
    cmap="Blues",
)
right.set(xlabel="t", ylabel="x", title="two modes dissolve on the path VE")
print("largest gap to the heat kernel:", [f"{gap:.4f}" for gap in gaps])

# %% [markdown]
# ## Quality for a number of network calls
#
# Three Gaussians in the plane, the cosine path, Karras' noise levels, 4096 samples from
# every solver with 6, 12 and 30 calls of the denoiser. The grey band is the
# distance between two sets of true samples, below which a distance says nothing; thin
# grey lines are all other solvers. (`quality` draws the same for a network, from the
# directory in which it was trained.)

# %%
case = quality.mixture()
found = quality.curves(case, budgets=(6, 12, 30))
quality.figure(found, case, budgets=(6, 12, 30))

# %% [markdown]
# With 6 calls a high order can be worse than none: long steps make wild polynomials.
# With 12 the multistep solvers lead, which remember instead of asking twice; with 30
# everything deterministic has arrived. Samplers with noise need more steps, and they
# end at true samples of their own rather than at images of the same 4096 starting
# points. Langevin corrections scale their step by the norm of the score of each sample,
# which works in many dimensions and not in two.

# %%
twelve = {
    name: max((nfe, value) for nfe, value in zip(*each, strict=True) if nfe <= 12)[1]
    for members in found.values()
    for name, each in members.items()
}
best = sorted(twelve, key=twelve.get)[:8]
print(f"true samples: {case.floor[0]:.3f} to {case.floor[1]:.3f}; with 12 calls:")
print(", ".join(f"{name} {twelve[name]:.3f}" for name in best))

# %% [markdown]
# ## Do they converge as fast as they should?
#
# A method of order $p$ has an error that falls with the $p$-th power of the step. The
# error against a converged solution, in float64, for 64 and for 128 steps: the
# logarithm of the ratio is the measured order. 3M with published coefficients
# (`compat`) is of second order, the true third-order method is the default. (All
# solvers: `python -m experiments.benchmarks.orders`.)

# %%
with jax.enable_x64(True):
    solution = orders.reference()


def order_of(solver):
    """Return errors for two numbers of steps, and the order of convergence."""
    with jax.enable_x64(True):
        few, many = orders.errors(solver, noise.EDM(), solution, [64, 128])
    return few, many, np.log2(few / many)


shown = """
    ddim() heun() adams_bashforth(2) dpmpp_2s() dpmpp_2m()
    dpmpp_3m(compat=True) dpmpp_3m() dpm_solver(3) deis(3) lms(3) unipc(2) unipc(3)
"""
theory = {name: orders.SOLVERS[name][1] for name in shown.split()}
with ThreadPoolExecutor(2) as pool:
    solvers = [orders.SOLVERS[name][0] for name in theory]
    measured = dict(zip(theory, pool.map(order_of, solvers), strict=True))

names = sorted(theory, key=lambda name: (theory[name], -measured[name][1]))
colours = {1: GOLD, 2: GREEN, 3: BLUE, 4: RED}
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
for row, name in enumerate(names):
    few, many, order = measured[name]
    colour = colours[theory[name]]
    left.plot([order], [row], "o", color=colour)
    right.plot([few, many], [row, row], "-", color=colour, lw=1, alpha=0.6)
    right.plot([many], [row], "o", color=colour)
left.vlines([1, 2, 3, 4], -1, len(names), color=GREY, lw=0.8, zorder=0)
left.set_yticks(range(len(names)), names, family="monospace", size=7.5)
left.set(title="order, measured", xlim=(0.5, 4.5), ylim=(-0.7, len(names) - 0.3))
left.set_xticks([1, 2, 3, 4])
right.set(title="error, from 64 to 128 steps", xscale="log")
for order, colour in colours.items():
    left.plot([], [], "o", color=colour, label=f"theory: {order}")
left.legend(loc="lower right")
off = {name: abs(measured[name][2] - theory[name]) for name in names}
print(f"furthest from theory: {max(off, key=off.get)}, by {max(off.values()):.2f}")

# %% [markdown]
# ## What noise is good for
#
# Deterministic solvers keep what they are given. Here samplers start too late, at
# $\sigma = 1$, and from pure noise, though data with noise is wider than that. The
# probability-flow ODE carries the mistake to the end: the shares of the three modes are
# 0.50, 0.30 and 0.20 in truth. Noise on the way forgets it: EDM's churn adds some at
# every step and removes it again. A few steps have no room for much of it.
#
# On the right, one sample of an SDE with more and more steps. With noise from a key
# every grid gives another sample. `samplers.brownian(key)` is the same Brownian path
# for every grid, and the sample settles: here against the one of 1280 steps.

# %%
path, mixture = noise.EDM(), orders.MIXTURE
denoise, key = mixture.denoiser(path), jax.random.key(1)
truth = mixture.sample(jax.random.key(2), 4096)
late = jax.random.normal(jax.random.key(3), (4096, 2))


@jax.jit
def distance(x):
    return metrics.sliced_wasserstein(jax.random.key(4), x, truth, projections=32)


def from_late(solver, steps):
    """Sample from sigma = 1 and the wrong distribution."""
    times = samplers.karras(path, steps, sigma_min=0.02, sigma_max=1.0)
    drawn = key if solver.stochastic else None
    return samplers.sample(solver, denoise, path, times, late, drawn)


amounts = jnp.array([0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def churned(steps):
    """Return the distance for each amount of churn, a setting that may be traced."""
    run = lambda amount: from_late(samplers.heun(samplers.Churn(amount)), steps)
    return jit_once(
        lambda: jax.lax.map(lambda amount: distance(run(amount)), amounts)
    )()


heun, churn = samplers.heun(), samplers.heun(samplers.Churn(32.0))
figure, (one, two, three, four) = plt.subplots(1, 4, figsize=(9.5, 2.9))
for axis, solver, title in ((one, heun, "Heun"), (two, churn, "Heun, s_churn=32")):
    x = jit_once(from_late, static_argnums=(0, 1))(solver, 80)
    shares = mixture.responsibilities(x).mean(0)
    axis.scatter(*truth[:1500].T, s=1, color=GREY, alpha=0.5, linewidths=0)
    axis.scatter(*x[:1500].T, s=1, color=RED, alpha=0.6, linewidths=0)
    for share, mean in zip(shares, mixture.means, strict=True):
        axis.annotate(f"{share:.2f}", mean + np.array([0.45, 0.3]), size=9)
    axis.set(xlim=(-2, 2), ylim=(-2, 2.2), xticks=[], yticks=[], aspect=1, title=title)
    axis.spines[:].set_visible(False)
for steps, colour in ((20, GOLD), (80, BLUE)):
    three.plot(
        amounts, churned(steps), "o-", ms=3, color=colour, label=f"{steps} steps"
    )
three.set(xlabel="s_churn", title="distance to the truth", ylim=(0, None))
three.set_xscale("symlog")
three.set_xticks([0, 1, 10], ["0", "1", "10"])
three.set_xlim(-0.15, 45)
three.legend(loc="lower left")

start = 20.0 * jax.random.normal(jax.random.key(5), (128, 2))
counts, apart = (20, 80, 320), {}


def sde_sample(steps, given):
    """Return samples of the reverse SDE, in a number of steps."""
    times = samplers.uniform_log_snr(path, steps, sigma_min=0.05, sigma_max=20.0)
    solver = samplers.dpmpp_2m_sde()
    return jit_once(
        lambda x: samplers.sample(solver, denoise, path, times, x, **given)
    )(start)


kinds = {
    "noise from a key": {"key": key},
    "Brownian": {"noise": samplers.brownian(key)},
}
for (name, given), colour in zip(kinds.items(), (GREY, RED), strict=True):
    with ThreadPoolExecutor(2) as pool:
        *few, settled = pool.map(lambda n, g=given: sde_sample(n, g), (*counts, 1280))
    apart[name] = [jnp.median(jnp.abs(x - settled)).item() for x in few]
    four.loglog(counts, apart[name], "o-", ms=3, color=colour, label=name)
four.set(xlabel="steps", title="sample, from its limit")
four.set_xticks(counts, [str(n) for n in counts])
four.legend(loc="lower left")
four.minorticks_off()

# %% [markdown]
# ## A solver, a path and a weight of one's own
#
# Each is a few lines in one place. A **solver** makes a table of coefficients before
# anything is traced and a step that adds arrays up: this one is Heun's method for
# $x_0$ in log-SNR, the mean of the predictions at both ends of DDIM's step. A **path**
# gives $\alpha_t$ and $\sigma_t$; everything else follows. A **weight** is a function
# of the log-SNR and weighs the error of $x_0$, whatever the network predicts.


# %%
def exponential_heun():
    """x_s = keep x_t + add (x_0 + x_0') / 2, with x_0' from where DDIM leads."""

    def plan(path, times):
        t, alpha, sigma = samplers.tabulate(path, times)[:3]
        keep = sigma[1:] / sigma[:-1]
        add = alpha[1:] - keep * alpha[:-1]
        return {"t": np.stack([t[:-1], t[1:]], axis=1), "keep": keep, "add": add}

    def step(denoise, x, state, row):
        x_0 = denoise(x, row["t"][0])
        ahead = denoise(row["keep"] * x + row["add"] * x_0, row["t"][1])
        return row["keep"] * x + row["add"] * 0.5 * (x_0 + ahead), state

    return samplers.Solver(plan, step)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperbolic(noise.Path):
    """alpha = 1 / cosh(rate t), sigma = tanh(rate t): their squares add up to 1."""

    rate: types.Scalar = 5.0

    def __call__(self, t):
        t = types.float_array(t)
        return noise.Marginal(1 / jnp.cosh(self.rate * t), jnp.tanh(self.rate * t))


bump = losses.on_x0(lambda log_snr: jnp.exp(log_snr - 0.1 * (log_snr - 1.0) ** 2))

# %% [markdown]
# They work with all the rest at once. The new solver is of second order on the new path
# as on EDM's, with the same error: it lives in log-SNR and does not see the path. The
# new weight is one weight in three guises, and the loss of the exact denoiser is the
# same number whatever it is said to predict.

# %%
mine = Hyperbolic()
t = jnp.linspace(0.001, 0.999, 300)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 2.8))
alpha, sigma = mine(t)
left.plot(t, alpha, color=BLUE, label=r"$\alpha_t$")
left.plot(t, sigma, color=RED, label=r"$\sigma_t$")
left.set(title="a path", xlabel="t")
left.legend(loc="center right")

own_orders, counts = {}, (16, 32, 64)
choices = {"EDM()": (noise.EDM(), BLUE), "Hyperbolic()": (mine, RED)}
with jax.enable_x64(True):
    for name, (path_, colour) in choices.items():
        error = orders.errors(exponential_heun(), path_, solution, list(counts))
        own_orders[name] = float(np.log2(error[-2] / error[-1]))
        style = "o-" if colour == BLUE else "x--"
        label = f"on {name}: order {own_orders[name]:.2f}"
        middle.loglog(counts, error, style, ms=4, color=colour, label=label)
middle.set(title="a solver: its error", xlabel="steps")
middle.set_xticks(counts, [str(n) for n in counts])
middle.minorticks_off()
middle.legend(loc="lower left")

styles = {"X0": BLUE, "EPS": RED, "V": GREEN}
x_0, perfect = mixture.sample(jax.random.key(6), 512), mixture.denoiser(mine)


@jit_once
def weighted_losses(key):
    """Return the mean loss of the exact denoiser as one of three predictions."""
    found = {}
    for name in styles:
        kind = getattr(prediction, name)
        predict = lambda x, t, kind=kind: prediction.convert(
            mine, perfect(x, t), x, t, prediction.X0, kind
        )
        loss = losses.denoising(key, predict, mine, x_0, kind=kind, weight=bump)
        found[name] = loss.mean()
    return found


values = {name: loss.item() for name, loss in weighted_losses(key).items()}
for name, colour in styles.items():
    weight = bump(mine, getattr(prediction, name), t)
    right.semilogy(t, weight, color=colour, label=name)
right.set(title="a weight, of three predictions", xlabel="t", ylim=(1e-4, 1e2))
right.legend(loc="upper right")
print("loss:", {name: round(value, 5) for name, value in values.items()})

# %% [markdown]
# ## Guidance
#
# The data is two moons, the condition is "the upper one". Guidance pushes away from
# what the condition excludes. With a scale of 3 the samples avoid the other moon, and
# are squeezed out of the half of their own that comes near it. Guiding only in an
# **interval** of lower noise, where the place is settled and the class is not yet,
# leaves them where they are; **APG** guides across the prediction and not along it. A
# guided denoiser is a denoiser, so every solver takes it.

# %%
angle = np.linspace(0, np.pi, 16)
moon = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
both = metrics.GaussianMixture(
    np.full(32, 1 / 32), np.concatenate([moon, -moon]), np.full(32, 0.15)
)
upper = metrics.GaussianMixture(np.full(16, 1 / 16), moon, np.full(16, 0.15))
path = noise.EDM(20.0)
models = upper.denoiser(path), both.denoiser(path)
free = guidance.classifier_free(*models, 3.0)
guided = {
    "no guidance": models[0],
    "scale 3": free,
    "scale 3, interval": guidance.interval(free, models[0], path, low=1.0, high=4.0),
    "scale 3, APG": guidance.adaptive_projected(
        *models, 3.0, eta=0.0, norm_threshold=0.5, momentum=-0.5
    ),
}
times = samplers.karras(path, 40, sigma_min=0.02)
start = noise.prior(jax.random.key(8), path, (2000, 2))
there = upper.sample(jax.random.key(9), 2000)
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.2))
scores = {}
for axis, (name, denoise) in zip(axes, guided.items(), strict=True):
    x = samplers.sample(samplers.dpmpp_2m(), denoise, path, times, start)
    right_class = both.responsibilities(x)[:, :16].sum(1).mean().item()
    gap = metrics.sliced_wasserstein(jax.random.key(10), x, there, projections=32)
    scores[name] = right_class, gap.item()
    axis.scatter(*both.sample(jax.random.key(11), 2000).T, s=1, color=GREY, alpha=0.5)
    axis.scatter(*x[:2000].T, s=1, color=RED, alpha=0.5)
    axis.set(xlim=(-2.1, 2.1), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect=1)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{name}\nclass {right_class:.3f}, distance {gap:.2f}", size=9)

# %% [markdown]
# This is what the notebook rests on: every solver has its order, the new one too; the
# Brownian sample settles and the other does not; a weight weighs the same whatever is
# predicted; and a walk has become Gaussian.

# %%
wide = {name: 0.6 if theory[name] == 4 else 0.25 for name in names}  # 4 at 64 steps
assert all(off[name] < wide[name] for name in names), off
assert all(abs(order - 2) < 0.1 for order in own_orders.values()), own_orders
assert apart["Brownian"][-1] < 0.02 < 0.2 < apart["noise from a key"][-1], apart
assert max(values.values()) - min(values.values()) < 1e-4, values
assert gaps[-1] < 0.002, gaps
