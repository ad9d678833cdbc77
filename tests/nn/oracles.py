"""The networks again, in float64 NumPy and straight from the formulas."""

import math
from typing import Any

import numpy as np

Params = Any


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(p: Params, x):
    return x @ p["kernel"] + p["bias"]


def standardise(x, axis):
    mean = x.mean(axis, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis, keepdims=True) + 1e-6)


def waves(t, features: int, time_scale: float = 1000.0):
    half = features // 2
    phase = [[time_scale * s * 10_000 ** (-k / half) for k in range(half)] for s in t]
    return np.concatenate([np.cos(phase), np.sin(phase)], -1)


def condition(p: Params, t, labels):
    time = linear(p["time"]["out"], silu(linear(p["time"]["hidden"], waves(t, 256))))
    return silu(time + p["label"]["table"][labels])


def attention(p: Params, x, heads: int):
    """Loop over examples, heads and queries."""
    batch, length, features = x.shape
    size = features // heads
    qkv = linear(p["qkv"], x).reshape(batch, length, heads, 3, size)
    q, k, v = (qkv[..., i, :].reshape(batch, length, features) for i in range(3))
    out = np.zeros_like(x)
    for b in range(batch):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(length):
                logits = k[b, :, part] @ q[b, i, part] / math.sqrt(size)
                weight = np.exp(logits - logits.max())
                out[b, i, part] = weight / weight.sum() @ v[b, :, part]
    return linear(p["out"], out)


def mlp(p: Params, x, t, labels):
    embedding = condition(p["condition"], t, labels)
    h = linear(p["input"], x.reshape(len(x), -1))
    for i in range(len(p["blocks"])):
        block = p["blocks"][str(i)]
        scale, shift = np.split(linear(block["modulation"], embedding), 2, -1)
        y = linear(block["hidden"], standardise(h, -1)) * (1 + scale) + shift
        h = h + linear(block["out"], silu(y))
    h = standardise(h, -1) * p["norm"]["scale"] + p["norm"]["bias"]
    return linear(p["output"], h).reshape(x.shape)


def positions(height: int, width: int, features: int):
    half = features // 2
    rows, columns = waves(range(height), half, 1.0), waves(range(width), half, 1.0)
    return np.array([[*r, *c] for r in rows for c in columns])


def dit(p: Params, x, t, labels, *, patch: int = 2, heads: int = 2):
    batch, height, width, channels = x.shape
    embedding = condition(p["condition"], t, labels)[:, None]
    corners = [(i, j) for i in range(0, height, patch) for j in range(0, width, patch)]
    cuts = [x[:, i : i + patch, j : j + patch].reshape(batch, -1) for i, j in corners]
    h = linear(p["input"], np.stack(cuts, 1))
    h = h + positions(height // patch, width // patch, h.shape[-1])
    blocks = p["blocks"]
    for layer in range(len(blocks["modulation"]["bias"])):
        block = _row(blocks, layer)
        a, b, c, d, e, f = np.split(linear(block["modulation"], embedding), 6, -1)
        y = attention(block["attention"], standardise(h, -1) * (1 + a) + b, heads)
        h = h + c * y
        mlp = block["feedforward"]
        y = gelu(linear(mlp["hidden"], standardise(h, -1) * (1 + d) + e))
        h = h + f * linear(mlp["out"], y)
    scale, shift = np.split(linear(p["final"]["modulation"], embedding), 2, -1)
    h = linear(p["final"]["out"], standardise(h, -1) * (1 + scale) + shift)
    image = np.zeros((batch, height, width, channels))
    for n, (i, j) in enumerate(corners):
        image[:, i : i + patch, j : j + patch] = h[:, n].reshape(
            batch, patch, patch, channels
        )
    return image


def _row(tree: Params, index: int) -> Params:
    if isinstance(tree, dict):
        return {name: _row(child, index) for name, child in tree.items()}
    return tree[index]


def conv(p: Params, x):
    kernel = p["kernel"]
    _, height, width, _ = x.shape
    edge = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return p["bias"] + sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


def group_norm(p: Params, x):
    """Groups of four channels: all widths of the tests are multiples of four."""
    grouped = x.reshape(*x.shape[:3], -1, 4)
    return standardise(grouped, (1, 2, 4)).reshape(x.shape) * p["scale"] + p["bias"]


def resample(x, how):
    if how == "up":
        return x.repeat(2, 1).repeat(2, 2)
    if how == "down":
        return (
            x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
        ) / 4
    return x


def unet_block(p: Params, x, embedding, how=None, head_dim: int = 8):
    h = conv(p["conv_1"], resample(silu(group_norm(p["norm_1"], x)), how))
    scale, shift = np.split(linear(p["modulation"], embedding)[:, None, None], 2, -1)
    h = silu(group_norm(p["norm_2"], h) * (1 + scale) + shift)
    x = resample(x, how)
    x = conv(p["skip"], x) if "skip" in p else x
    h = (x + conv(p["conv_2"], h)) / math.sqrt(2)
    if "attention" in p:
        channels = h.shape[-1]
        tokens = group_norm(p["attention"]["norm"], h).reshape(len(h), -1, channels)
        y = attention(p["attention"]["attention"], tokens, max(1, channels // head_dim))
        h = (h + y.reshape(h.shape)) / math.sqrt(2)
    return h


def unet(p: Params, x, t, labels):
    """Two levels with one block each on the way down and two on the way up."""
    embedding = condition(p["condition"], t, labels)
    down, middle, up = p["down"], p["middle"], p["up"]
    h_0 = conv(p["input"], x)
    h_1 = unet_block(down["0"], h_0, embedding)
    h_2 = unet_block(down["1"], h_1, embedding, "down")
    h_3 = unet_block(down["2"], h_2, embedding)
    h = unet_block(middle["0"], h_3, embedding)
    h = unet_block(middle["1"], h, embedding)
    h = unet_block(up["0"], np.concatenate([h, h_3], -1), embedding)
    h = unet_block(up["1"], np.concatenate([h, h_2], -1), embedding)
    h = unet_block(up["2"], h, embedding, "up")
    h = unet_block(up["3"], np.concatenate([h, h_1], -1), embedding)
    h = unet_block(up["4"], np.concatenate([h, h_0], -1), embedding)
    return conv(p["output"], silu(group_norm(p["norm"], h)))
