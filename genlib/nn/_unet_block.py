"""One residual block of the UNet, with resampling and attention where asked for."""

import math
from typing import Literal

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from genlib.nn._attention import Attention
from genlib.nn._layers import ZEROS, drop, modulate
from genlib.types import Array, Key


class UNetBlock(nnx.Module):
    """Residual block `[B, H, W, in] -> [B, H', W', out]`, perhaps with attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding: int,
        dropout: float,
        head_dim: int,
        resample: Literal["down", "up"] | None = None,
        attention: bool = False,
        **kwargs,
    ):
        self.dropout = dropout
        self.resample = resample
        self.norm_1 = group_norm(in_channels, **kwargs)
        self.conv_1 = nnx.Conv(in_channels, out_channels, (3, 3), **kwargs)
        self.modulation = nnx.Linear(embedding, 2 * out_channels, **kwargs)
        self.norm_2 = group_norm(out_channels, **kwargs)
        self.conv_2 = nnx.Conv(
            out_channels, out_channels, (3, 3), kernel_init=ZEROS, **kwargs
        )
        self.skip = (
            nnx.Conv(in_channels, out_channels, (1, 1), **kwargs)
            if in_channels != out_channels
            else None
        )
        self.attention = (
            ImageAttention(out_channels, head_dim, **kwargs) if attention else None
        )

    def __call__(self, x: Array, embedding: Array, key: Key | None) -> Array:
        h = self.conv_1(resample(jax.nn.silu(self.norm_1(x)), self.resample))
        scale, shift = jnp.split(self.modulation(embedding)[:, None, None], 2, axis=-1)
        h = jax.nn.silu(modulate(self.norm_2(h), scale, shift))
        h = self.conv_2(drop(key, h, self.dropout))
        x = resample(x, self.resample)
        h = _scaled_sum(x if self.skip is None else self.skip(x), h)
        if self.attention is None:
            return h
        return _scaled_sum(h, self.attention(h))


class ImageAttention(nnx.Module):
    """Let the pixels of normalised `[B, H, W, channels]` look at all others."""

    def __init__(self, channels: int, head_dim: int, **kwargs):
        heads = max(1, channels // head_dim)
        self.norm = group_norm(channels, **kwargs)
        self.attention = Attention(channels, heads, out_init=ZEROS, **kwargs)

    def __call__(self, x: Array) -> Array:
        tokens = einops.rearrange(self.norm(x), "b h w c -> b (h w) c")
        return self.attention(tokens).reshape(x.shape)


def group_norm(channels: int, **kwargs) -> nnx.GroupNorm:
    """Normalise at most 32 groups of at least 4 channels, where the channels divide."""
    most = max(1, min(32, channels // 4))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return nnx.GroupNorm(channels, groups, use_fast_variance=False, **kwargs)


def _scaled_sum(x: Array, y: Array) -> Array:
    # Two terms of unit variance sum to unit variance, at any depth.
    return (x + y) * math.sqrt(0.5)


def resample(x: Array, how: str | None) -> Array:
    """Halve an image by means ("down"), double it by copies ("up"), or keep it."""
    if how == "down":
        return einops.reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)
    if how == "up":
        return einops.repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)
    return x
