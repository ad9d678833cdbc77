# %% [markdown]
# # Vector quantisation
#
# A bottleneck of codes replaces each vector by the nearest of a finite set. In genlib
# one is a `Quantizer`, four pure functions: `init` fits a codebook to a batch,
# `quantize` gives codes, indices, losses and the statistics of a batch, `lookup` turns
# indices back into codes, and `update` moves what is not trained by gradients. This
# notebook compares five ways to keep a codebook in use, checks what estimators of the
# gradient do, stacks codebooks into product and residual ones, and trains an
# autoencoder around one.

# %%
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from genlib import nn, quantize, train

BLUE, RED, GREEN, GOLD, GREY = "#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e", "#9aa0a6"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.frameon": False}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}

# %% [markdown]
# ## Five recipes for one codebook
#
# The vectors are the 4x4 patches of the 8x8 digits of scikit-learn: 7188 of them, with
# 16 numbers in [0, 1]. All recipes have 256 codes and see 300 batches of 1024. What
# counts is how many codes are used at all, how evenly (the perplexity, at most 256),
# and how near they are: scikit-learn's k-means on all patches at once says what is
# possible.

# %%
images = load_digits().images.astype(np.float32) / 16
patches = nn.patchify(jnp.asarray(images)[..., None], 4).reshape(-1, 16)
SIZE, STEPS, BATCH = 256, 300, 1024
best = KMeans(SIZE, n_init=1, random_state=0).fit(np.asarray(patches))
best_error = best.inertia_ / patches.size

recipes = {
    "averages": quantize.ema_vq(SIZE, decay=0.8, init="uniform"),
    "averages, dead codes reset": quantize.ema_vq(
        SIZE, decay=0.8, init="uniform", reset=0.05
    ),
    "averages from k-means": quantize.ema_vq(SIZE, decay=0.8),
    "gradient": quantize.vq(SIZE, init="uniform"),
    "gradient from k-means": quantize.vq(SIZE),
}


@functools.partial(jax.jit, static_argnums=0)
def fit(quantizer, key):
    """Fit a codebook to the patches; return what each batch made of it."""
    key_init, key_steps = jax.random.split(key)
    params = quantizer.init(key_init, patches[:4096])
    tx = optax.adam(3e-3)

    def body(carry, key):
        params, opt_state = carry
        key_rows, key_codes = jax.random.split(key)
        z = jax.random.choice(key_rows, patches, (BATCH,))

        def loss(params):
            made = quantizer.quantize(params, z, key=key_codes)
            own = made.losses.get("codebook", jnp.zeros(()))
            return own.mean(), made

        gradient, made = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        params = quantizer.update(params, made.statistics)
        return (params, opt_state), measure(quantizer, params)

    keys = jax.random.split(key_steps, STEPS)
    (params, _), history = jax.lax.scan(body, (params, tx.init(params)), keys)
    return params, history


def measure(quantizer, params):
    """Return the use, the perplexity and the error over all patches."""
    made = quantizer.quantize(params, patches)
    counts = quantize.histogram(made.indices, quantizer.size)
    error = jnp.square(made.codes - patches).mean()
    return quantize.usage(counts), quantize.perplexity(counts), error


results = {}
for name, quantizer in recipes.items():
    start = time.perf_counter()
    params, history = jax.block_until_ready(fit(quantizer, jax.random.key(0)))
    usage, perplexity, error = results[name] = [np.asarray(h) for h in history]
    print(
        f"{name:26}  usage {usage[-1]:.3f}  perplexity {perplexity[-1]:5.1f}  "
        f"mse {error[-1]:.5f}  {time.perf_counter() - start:4.1f} s"
    )
print(f"{'k-means on all patches':26}  mse {best_error:.5f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
titles = ("share of codes in use", "perplexity", "mean squared error")
for (name, history), color in zip(
    results.items(), (GREY, BLUE, GREEN, RED, GOLD), strict=True
):
    for axis, values, title in zip(axes, history, titles, strict=True):
        axis.plot(np.arange(1, STEPS + 1), values, color=color, label=name)
        axis.set(xlabel="batch", title=title)
axes[2].axhline(best_error, color="black", linewidth=0.8, linestyle=":")
axes[2].set(yscale="log")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# Averages that start anywhere near zero leave most codes where no patch ever comes;
# a reset puts them to patches, and k-means starts there. The rest is detail. All of
# this is one argument: `init` and `reset`.
#
# ## Many small codebooks
#
# One codebook of $2^b$ codes spends $b$ bits. `residual` quantises what is left over,
# again and again, with 16 codes each time, and `grouped` gives each quarter of a vector
# a codebook of its own. At the same number of bits one codebook is nearest, but it
# doubles with every bit: at 24 it would have 16 million codes, where six stages have
# 96. Stages of a residual quantiser are cut off by the index -1, "no code": one fit
# serves every rate.


# %%
def bits_and_error(quantizer, params, bits, keep=None):
    indices = quantizer.quantize(params, patches).indices
    if keep is not None:
        indices = jnp.where(jnp.arange(indices.shape[-1]) < keep, indices, -1)
    error = jnp.square(quantizer.lookup(params, indices) - patches).mean()
    return bits, float(error)


curves = {
    "one codebook": [],
    "residual, 16 codes each": [],
    "grouped, 16 codes each": [],
}
for bits in (2, 4, 6, 8):
    quantizer = quantize.ema_vq(2**bits)
    params, _ = fit(quantizer, jax.random.key(1))
    curves["one codebook"].append(bits_and_error(quantizer, params, bits))
residual = quantize.residual(quantize.ema_vq(16), 6)
params, _ = fit(residual, jax.random.key(1))
for stages in range(1, 7):
    point = bits_and_error(residual, params, 4 * stages, stages)
    curves["residual, 16 codes each"].append(point)
for groups in (2, 4):
    quantizer = quantize.grouped(quantize.ema_vq(16), groups)
    params, _ = fit(quantizer, jax.random.key(1))
    point = bits_and_error(quantizer, params, 4 * groups)
    curves["grouped, 16 codes each"].append(point)

figure, axis = plt.subplots(figsize=(5, 3))
for (name, points), color in zip(curves.items(), (BLUE, RED, GREEN), strict=True):
    axis.plot(*np.array(points).T, "o-", color=color, label=name)
axis.set(xlabel="bits for a patch", ylabel="mean squared error", yscale="log")
axis.legend()
plt.show()

# %% [markdown]
# ## The gradient of a choice
#
# A nearest code does not change with the vector, so its gradient is zero. The
# straight-through estimator hands the gradient of the code to the vector as it is;
# `rotate` turns and scales it as the vector would have to be turned and scaled to
# become the code. Both return the codes to the last bit. Arrows: the gradient that
# vectors of one cell get, where the code itself gets the one in black.

# %%
code, push = jnp.array([1.0, 0.4]), jnp.array([0.0, 0.5])
angles = np.linspace(0, 2 * np.pi, 13)[:-1]
vectors = code + 0.6 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
figure, axes = plt.subplots(1, 2, figsize=(6, 3), sharex=True, sharey=True)
for axis, estimator in zip(
    axes, (quantize.straight_through, quantize.rotate), strict=True
):
    out = lambda z, estimator=estimator: (estimator(z, code) * push).sum()
    arrows = jax.vmap(jax.grad(out))(vectors)
    axis.quiver(
        *vectors.T, *arrows.T, color=BLUE, angles="xy", scale_units="xy", scale=1
    )
    axis.quiver(*code, *push, color="black", angles="xy", scale_units="xy", scale=1)
    axis.plot(0, 0, "+", color=GREY)
    axis.set(title=estimator.__name__, aspect="equal", xlim=(-0.3, 2), ylim=(-0.6, 1.7))
plt.show()

# %% [markdown]
# ## An autoencoder
#
# `nn.vqvae` puts a quantiser between an encoder and a decoder. Its statistics are sums
# over the batch, and so the train step adds them up over microbatches and devices as
# it does with gradients: `absorb` is the only word about them. `trainable` keeps the
# weight decay of the optimizer away from the averages.

# %%
model = nn.vqvae(
    lambda rngs: nn.ConvEncoder(1, 16, 4, multipliers=(1, 2), blocks=1, rngs=rngs),
    lambda rngs: nn.ConvDecoder(4, 16, 1, multipliers=(1, 2), blocks=1, rngs=rngs),
    quantize.ema_vq(64, reset=0.1),
)
x = 2 * jnp.asarray(images)[..., None] - 1
training, held_out = x[:1400], x[1400:]


def loss_fn(params, batch, key):
    made = model.loss(key, params, batch)
    aux = {name: (term.sum(), term.size) for name, term in made.terms.items()}
    return made.loss.sum(), made.loss.size, aux, made.statistics


tx = optax.adamw(3e-3, weight_decay=1e-4)
step = train.make_step(
    loss_fn, tx, ema=None, trainable=quantize.trainable, absorb=model.update
)
params = jax.jit(model.init)(jax.random.key(2), training[:256])
state = train.init(
    jax.random.key(3), params, tx, ema=False, trainable=quantize.trainable
)
rows = jax.random.randint(jax.random.key(4), (200, 64), 0, len(training))
step = jax.jit(step, donate_argnums=0)
for index in rows:
    state, metrics = step(state, training[index])
print({name: round(float(value), 4) for name, value in metrics.items()})


# %%
@jax.jit
def there_and_back(params, x):
    made = model.encode(params, x)
    return made.indices, model.decode(params, made.codes)


indices, back = there_and_back(state.params, held_out)
error = float(jnp.square(back - held_out).mean())
counts = quantize.histogram(indices, 64)
print(
    f"held out: mse {error:.4f}, perplexity {quantize.perplexity(counts):.1f} of 64, "
    f"usage {quantize.usage(counts):.2f}"
)

figure, axes = plt.subplots(3, 12, figsize=(9, 2.4))
for column in range(12):
    shown = held_out[column, ..., 0], indices[column], back[column, ..., 0]
    for axis, image, colors in zip(
        axes[:, column], shown, ("gray_r", "turbo", "gray_r"), strict=True
    ):
        axis.imshow(image, cmap=colors)
        axis.set(xticks=[], yticks=[])
for axis, label in zip(axes[:, 0], ("digit", "codes", "back"), strict=True):
    axis.set_ylabel(label)
plt.show()

# %%
for name in ("averages, dead codes reset", "averages from k-means"):
    usage, perplexity, mse = (history[-1] for history in results[name])
    assert usage >= 0.99, f"{name}: {usage:.3f} of the codes are in use"
    assert perplexity >= 225, f"{name}: perplexity {perplexity:.1f}"
    assert mse <= 0.0110, f"{name}: mean squared error {mse:.5f}"
assert results["averages"][0][-1] < 0.5, "a collapse that there should be"
again = model.lookup(state.params, indices)
assert jnp.abs(again - back).max() < 1e-5, "indices do not decode as codes do"
assert error < 0.15, "the autoencoder has not learned the digits"
