# %% [markdown]
# # Attention
#
# `attention(q, k, v, mask=...)` is one function: what a query sees is a predicate over
# positions, so that training, packing, decoding over a cache and splitting a sequence
# over devices are the same code. This notebook looks at masks, at how softmax is
# computed without a table of all scores and what that saves, at three answers that
# other implementations get wrong, at attention as a naive Bayes classifier, at what
# encodings of positions do to distances, and at what a cache costs.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.naive_bayes import GaussianNB, MultinomialNB

from genlib import attention as attn
from genlib import train

BLUE, RED, GREEN, GOLD, GREY = "#3b6fb6", "#d1495b", "#3a9d6e", "#e09f3e", "#9aa0a6"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.frameon": False}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


# %% [markdown]
# ## What is seen
#
# Masks are functions of the positions of a query and a key. They combine by `&`, `|`
# and `~`, and any function makes one.

# %%
packed = np.repeat([1, 2, 3, 0], [9, 6, 6, 3])[None]
masks = {
    "causal": attn.causal(),
    "causal & window(6)": attn.causal() & attn.window(6),
    "causal | prefix(8)": attn.causal() | attn.prefix(8),
    "block_causal(6)": attn.block_causal(6),
    "causal & segments": attn.causal() & attn.segments(packed),
    "causal & predicate": attn.causal()
    & attn.predicate(lambda q, k: ((q - k) % 4 == 0) | (q - k < 3)),
}
places = jnp.arange(24)
figure, axes = plt.subplots(1, 6, figsize=(11, 2.1))
for axis, (name, mask) in zip(axes, masks.items(), strict=True):
    axis.imshow(attn.visible(mask, places, places)[0, 0], cmap="Blues", vmax=1.4)
    axis.set(title=name, xticks=[], yticks=[])
axes[0].set(xlabel="key", ylabel="query")
plt.show()

# %% [markdown]
# ## Softmax in one pass
#
# The softmax of a row needs its largest score and a sum over all of them. Both can be
# kept while keys go by in blocks: when a larger score comes, what was summed so far
# shrinks by exp(old - new). `online_softmax` yields the state after each block. The
# last one is exact, and no table of scores was ever there.

# %%
q, k, v = draw(4, 16), 2 * draw(96, 16, seed=1), draw(96, 8, seed=2)
states = list(attn.online_softmax(q, k, v, block=8))
exact = attn.attention(*(x[None, :, None] for x in (q, k, v)))[0, :, 0]
seen = 8 * np.arange(1, len(states) + 1)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.3))
curves = {
    "largest score so far": [state.top for state in states],
    "sum of exp(score - largest)": [state.total for state in states],
    "distance to the exact output": [
        jnp.linalg.norm(state.out - exact, axis=1) for state in states
    ],
}
for axis, (title, curve) in zip(axes, curves.items(), strict=True):
    axis.plot(seen, jnp.stack(curve), ".-")
    axis.set(title=title, xlabel="keys seen")
axes[2].set_yscale("symlog", linthresh=1e-7)
plt.show()
online_error = float(jnp.abs(states[-1].out - exact).max())
print(f"error of the last state: {online_error:.1e}")

# %% [markdown]
# In blocks, memory grows with the length and not with its square, forward and backward,
# and blocks in which a mask lets nothing be seen are not computed. What follows is
# compiled and counted, not run: 8 heads of 64 features, causal, forward and backward.


# %%
def temporaries(length, **options):
    """Return the megabytes that a compiled forward and backward pass needs."""
    x = jax.ShapeDtypeStruct((1, length, 8, 64), jnp.float32)
    loss = lambda *x: attn.attention(*x, mask=attn.causal(), **options).sum()
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    return program.memory_analysis().temp_size_in_bytes / 1e6


def share(mask, length=8192):
    """Return the operations with a mask, over those without."""
    x = jax.ShapeDtypeStruct((1, length, 8, 64), jnp.float32)
    call = lambda mask: train.flops(
        lambda *x: attn.attention(*x, mask=mask, impl="tiled"), x, x, x
    )
    return call(mask) / call(None)


lengths = [1024, 2048, 4096]
memory = {
    impl: [temporaries(n, impl=impl) for n in lengths] for impl in ("naive", "tiled")
}
for impl, row in memory.items():
    print(impl, *(f"{n}: {mb:.0f} MB" for n, mb in zip(lengths, row, strict=True)))
window_share = share(attn.causal() & attn.window(512))
print(f"causal, 8192 tokens: {share(attn.causal()):.3f} of all operations")
print(f"window of 512: {window_share:.3f}")

# %% [markdown]
# ## Three answers to get right
#
# A query that sees nothing has nothing to average: the answer is 0, not the mean of all
# values. What is masked does not matter, not even if it is NaN. And a few queries over
# a longer cache are its last positions, not its first.

# %%
q, k, v = draw(1, 3, 2, 8), draw(1, 6, 2, 8, seed=1), draw(1, 6, 2, 8, seed=2)
nothing = jnp.zeros((1, 1, 3, 6), bool)
hole = v.at[:, 5].set(jnp.nan)
last = jnp.arange(6)[None, None, None, :] < 5
whole = attn.attention(jnp.concatenate([k[:, :3], q], 1), k, v, mask=attn.causal())
rows = {
    "sees nothing": (
        attn.attention(q, k, v, mask=nothing),
        jax.nn.dot_product_attention(q, k, v, mask=nothing),
        jnp.zeros(()),
    ),
    "NaN in a masked value": (
        attn.attention(q, k, hole, mask=jnp.broadcast_to(last, nothing.shape)),
        jax.nn.dot_product_attention(
            q, k, hole, mask=jnp.broadcast_to(last, nothing.shape)
        ),
        attn.attention(q, k[:, :5], v[:, :5]),
    ),
    "3 queries, 6 keys, causal": (
        attn.attention(q, k, v, mask=attn.causal()),
        jax.nn.dot_product_attention(q, k, v, is_causal=True),
        whole[:, 3:],
    ),
}
print(f"{'largest error':28} genlib   jax.nn")
for name, (ours, theirs, right) in rows.items():
    errors = (float(jnp.abs(x - right).max()) for x in (ours, theirs))
    print(f"{name:28} " + "  ".join(f"{error:7.1e}" for error in errors))

# %% [markdown]
# ## Attention is a naive Bayes classifier
#
# Let each key be a class j. A naive Bayes classifier takes the features of a query for
# independent given the class, so that the log-posterior is linear in them:
# `log p(j | q) = log prior_j + sum_d q_d log theta_jd + const` where q counts words
# (multinomial). That is attention with keys `k_jd = log theta_jd`, scale 1 and the
# prior as bias; its output is the posterior mean of the values. With real features it
# is the Gaussian classifier with means k_j and variance sqrt(H), whose prior of a key
# grows with its length: `log prior_j = |k_j|^2 / (2 sqrt(H)) + const`. Attention learns
# such parameters end to end, from what the mean of the values is good for. Scikit-learn
# computes the same posteriors.

# %%
rng = np.random.default_rng(0)
classes, features = 7, 12
counts, labels = rng.poisson(3.0, (200, features)), rng.integers(0, classes, 200)
bayes = MultinomialNB().fit(counts, labels)
one_hot = jnp.eye(classes)[None, :, None]  # so that the output is the weights
posterior = attn.attention(
    jnp.asarray(counts, jnp.float32)[None, :, None],
    jnp.asarray(bayes.feature_log_prob_, jnp.float32)[None, :, None],
    one_hot,
    bias=jnp.asarray(bayes.class_log_prior_, jnp.float32)[None, None, None],
    scale=1.0,
)[0, :, 0]
multinomial_error = np.abs(posterior - bayes.predict_proba(counts)).max()

queries, keys = rng.normal(size=(200, features)), rng.normal(size=(classes, features))
gaussian = GaussianNB().fit(queries, np.arange(200) % classes)
width = np.sqrt(features)
prior = np.exp((keys**2).sum(1) / (2 * width))
gaussian.theta_, gaussian.var_ = keys, np.full((classes, features), width)
gaussian.class_prior_ = prior / prior.sum()
sides = (jnp.asarray(x, jnp.float32)[None, :, None] for x in (queries, keys))
posterior = attn.attention(*sides, one_hot)[0, :, 0]
gaussian_error = np.abs(posterior - gaussian.predict_proba(queries)).max()
print(f"multinomial: {multinomial_error:.1e}, Gaussian: {gaussian_error:.1e}")

# %% [markdown]
# ## What positions do to distances
#
# A rotary score of equal contents is a sum of cosines of the distance, one for each
# frequency. Read 8 times beyond the training length, plain RoPE meets angles that it
# has never seen; NTK and YaRN slow the low frequencies and keep the high ones; ReRoPE
# lets no distance grow beyond its window.

# %%
TRAIN, FACTOR, SIZE = 128, 8.0, 32
near, far = np.arange(TRAIN), np.arange(int(FACTOR) * TRAIN)
rope = attn.rope_frequencies(SIZE)
score = lambda inverse, r: np.cos(r[:, None] * inverse).mean(1)
shapes = {
    "rotary": (rope.inverse, far),
    "ntk": (attn.ntk_frequencies(SIZE, FACTOR).inverse, far),
    "yarn": (attn.yarn_frequencies(SIZE, FACTOR, TRAIN).inverse, far),
    "rerope": (rope.inverse, np.minimum(far, TRAIN // 2)),
    "leaky rerope": (
        rope.inverse,
        np.where(far < 64, far, 64 + (far - 64) / FACTOR),
    ),
}
figure, axes = plt.subplots(1, 5, figsize=(11, 2.1), sharey=True)
for axis, (name, (inverse, distances)) in zip(axes, shapes.items(), strict=True):
    axis.plot(far, score(inverse, distances), color=BLUE, linewidth=0.8)
    axis.plot(near, score(rope.inverse, near), color=RED, linewidth=0.8)
    axis.set(title=name, xlabel="distance")
axes[0].set_ylabel("score (red: as trained)")
plt.show()

# %% [markdown]
# `python -m experiments.extrapolation` trains small models on 128 bytes of Python's own
# sources and reads 1024 with each encoding; its docstring has the table.
#
# ## Decoding
#
# A cache keeps what was computed of the tokens before. One token at a time over any of
# them gives what the whole sequence gives; what they differ in is how much they keep.

# %%
BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 24, 4, 2, 16
q = draw(BATCH, LENGTH, HEADS, WIDTH)
k, v = (draw(BATCH, LENGTH, KV_HEADS, WIDTH, seed=i) for i in (1, 2))
sizes = dict(num_kv_heads=KV_HEADS, features=WIDTH)
window = attn.causal() & attn.window(8)
caches = {
    "contiguous": (attn.kv_cache(BATCH, LENGTH, **sizes), attn.causal()),
    "eight bits": (attn.quantized_cache(BATCH, LENGTH, **sizes), attn.causal()),
    "rolling": (attn.rolling_cache(BATCH, 8, **sizes), window),
    "paged": (attn.paged_cache(12, 4, BATCH, 6, **sizes), attn.causal()),
}


def decode(cache, mask):
    """Return the outputs of one token after another."""

    def body(cache, row):
        row = (x[:, None] for x in row)
        out, cache = attn.cached_attention(*row, cache, mask=mask)
        return cache, out[:, 0]

    rows = tuple(x.swapaxes(0, 1) for x in (q, k, v))
    return jax.lax.scan(body, cache, rows)[1].swapaxes(0, 1)


decode_errors = {}
for name, (cache, mask) in caches.items():
    stored = sum(x.nbytes for x in jax.tree.leaves(cache)) / 1024
    full = attn.attention(q, k, v, mask=mask)
    error = float(jnp.abs(jax.jit(decode, static_argnums=1)(cache, mask) - full).max())
    decode_errors[name] = error
    print(f"{name:12} {stored:5.1f} KB, error {error:.1e}")

# %% [markdown]
# Multi-head latent attention keeps one latent for all heads, from which keys and values
# are made. In decoding the matrices that make them are moved to the other side of the
# products (absorbed), so that a token attends to the latents themselves.

# %%
per_token = {
    "MHA, 128 heads": attn.kv_cache_bytes(128, 128),
    "GQA, 8": attn.kv_cache_bytes(8, 128),
    "MQA": attn.kv_cache_bytes(1, 128),
    "MLA": attn.latent_cache_bytes(512, 64),
}
print({name: f"{n:,.0f} bytes" for name, n in per_token.items()})
headline = 1 - attn.latent_cache_bytes(512, 64, layers=60, bits=6) / (
    attn.kv_cache_bytes(8, 128, layers=95)
)
print(f"DeepSeek-V2 (60 layers, 6 bits) over 67B (95 layers, GQA 8): -{headline:.2%}")


def step_flops(absorb, keys=1024, heads=16):
    shapes = ((1, 1, heads, 128), (1, 1, heads, 64), (1, keys, 512), (1, keys, 64))
    shapes += ((512, heads, 128), (512, heads, 128))
    call = lambda *x: attn.latent_attention(*x, absorb=absorb, mask=attn.causal())
    return train.flops(call, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


saving = step_flops(False) / step_flops(True)
print(f"one token over 1024: {saving:.0f} times fewer operations absorbed")

# %%
assert online_error < 1e-5
assert memory["tiled"][2] < memory["tiled"][1] * 2.2 < memory["naive"][2] / 10
assert window_share < 1 / 8
for name, (ours, theirs, right) in rows.items():
    assert jnp.abs(ours - right).max() < 1e-6, name
    assert not jnp.abs(theirs - right).max() < 1e-2, name
assert max(multinomial_error, gaussian_error) < 1e-5
assert decode_errors["eight bits"] < 0.05
assert all(e < 1e-5 for name, e in decode_errors.items() if name != "eight bits")
assert round(headline, 4) == 0.9334
assert saving > 50
