"""A residual MLP for points, vectors and small images."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._conditioning import Conditioning
from genlib.nn._layers import (
    ZEROS,
    check_rate,
    drop,
    keep_rows,
    modulate,
    split_key,
)
from genlib.types import Array, Key, Scalar


class MLP(nnx.Module):
    """Map x, time and label to something of the shape of x with a residual MLP.

    `h <- h + W_2 silu((1 + scale) W_1 norm(h) + shift)` in each of `depth` blocks, with
    `scale` and `shift` linear in the embedding of time and label and zero at the
    start. The last layer starts at zero, so a new network returns 0.

    Args:
        in_features: number of entries of one example.
        features: width of the network and of the embedding.
        depth: number of residual blocks; each has about `4 * features**2` parameters.
        num_classes: number of classes, or None for a network without labels.
        dropout: dropout rate inside the blocks, used only in calls that pass a key.
        time_scale: factor on `t`, see `timestep_embedding`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, ...]` with `in_features` entries per example, `t` (scalar
    or `[B]`), `labels` (`[B]` or None, the null class) and `key` (for dropout, or
    None), and returns the shape and dtype of `x`.

    Raises:
        ValueError: if `dropout` is outside [0, 1), or when called with an `x` of
            another size or a `t` or `labels` that `Conditioning` refuses.

    Source: arXiv:1512.03385 and arXiv:1709.07871 (residual blocks, modulation).

    >>> model = MLP(in_features=2, features=16, depth=1, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((3, 2)), 0.5).tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        depth: int,
        *,
        num_classes: int | None = None,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.in_features = in_features
        self.condition = Conditioning(
            features, num_classes, time_scale=time_scale, **kwargs
        )
        self.input = nnx.Linear(in_features, features, **kwargs)
        self.blocks = nnx.List(
            [_Block(features, dropout, **kwargs) for _ in range(depth)]
        )
        self.norm = nnx.LayerNorm(features, use_fast_variance=False, **kwargs)
        self.output = nnx.Linear(features, in_features, kernel_init=ZEROS, **kwargs)

    def __call__(
        self,
        x: Array,
        t: Array | Scalar,
        labels: Array | None = None,
        key: Key | None = None,
    ) -> Array:
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.in_features:
            raise ValueError(
                f"x must be [B, ...] with {self.in_features} entries per example, "
                f"got shape {x.shape}"
            )
        embedding = keep_rows(self.condition(t, labels, x.shape[0]))
        h = self.input(x.reshape(x.shape[0], self.in_features))
        keys = split_key(key, len(self.blocks))
        for block, block_key in zip(self.blocks, keys, strict=True):
            h = block(keep_rows(h), embedding, block_key)
        return self.output(self.norm(h)).reshape(x.shape).astype(x.dtype)


class _Block(nnx.Module):
    def __init__(self, features: int, dropout: float, **kwargs):
        check_rate(dropout)
        self.dropout = dropout
        self.norm = nnx.LayerNorm(
            features, use_scale=False, use_bias=False, use_fast_variance=False, **kwargs
        )
        self.modulation = nnx.Linear(
            features, 2 * features, kernel_init=ZEROS, **kwargs
        )
        self.hidden = nnx.Linear(features, features, **kwargs)
        self.out = nnx.Linear(features, features, **kwargs)

    def __call__(self, h: Array, embedding: Array, key: Key | None) -> Array:
        scale, shift = jnp.split(self.modulation(embedding), 2, axis=-1)
        y = jax.nn.silu(modulate(self.hidden(self.norm(h)), scale, shift))
        return h + self.out(drop(key, y, self.dropout))
