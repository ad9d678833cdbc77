"""What a network is told beside x: the time, and perhaps a class label."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._labels import check_labels
from genlib.nn._sinusoids import timestep_embedding
from genlib.types import Array, Scalar


class TimeEmbedding(nnx.Module):
    """Embed times by sinusoids and a two-layer network.

    `W_2 silu(W_1 timestep_embedding(t))`.

    Args:
        features: size of the embedding.
        frequencies: number of sinusoidal features, even.
        time_scale: factor on `t` inside the sinusoids, see `timestep_embedding`.
        dtype: dtype of the computation and of the result.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes times `[B]` and returns `[B, features]`.

    Source: arXiv:2006.11239 appendix B, arXiv:2212.09748.

    >>> embed = TimeEmbedding(8, rngs=nnx.Rngs(0))
    >>> embed(jnp.array([0.0, 0.5])).shape
    (2, 8)
    """

    def __init__(
        self,
        features: int,
        *,
        frequencies: int = 256,
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
        self.frequencies = frequencies
        self.time_scale = time_scale
        self.hidden = nnx.Linear(frequencies, features, **kwargs)
        self.out = nnx.Linear(features, features, **kwargs)

    def __call__(self, t: Array) -> Array:
        waves = timestep_embedding(t, self.frequencies, time_scale=self.time_scale)
        return self.out(jax.nn.silu(self.hidden(waves)))


class LabelEmbedding(nnx.Module):
    """Look up one vector per class, with one more for the null class.

    Row `num_classes` of the table stands for "no label". A traced label outside
    `0 .. num_classes` gives NaN: it is never clamped or wrapped to another class.

    Args:
        num_classes: number of classes, without the null class.
        features: size of the embedding.
        dtype: dtype of the result.
        param_dtype: dtype of the table.
        rngs: random streams for the parameters.

    Calling it takes labels `[B]` and returns `[B, features]`.

    Raises:
        ValueError: if `num_classes` is not positive, or when called with labels that
            `check_labels` refuses.

    Source: arXiv:2207.12598, arXiv:2212.09748 (std 0.02).

    >>> embed = LabelEmbedding(10, 8, rngs=nnx.Rngs(0))
    >>> embed(jnp.array([3, 10])).shape
    (2, 8)
    """

    def __init__(
        self,
        num_classes: int,
        features: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        shape = (num_classes + 1, features)
        init = nnx.initializers.normal(0.02)
        self.num_classes = num_classes
        self.dtype = dtype
        self.table = nnx.Param(init(rngs.params(), shape, param_dtype))

    def __call__(self, labels: Array) -> Array:
        check_labels(labels, self.num_classes)
        # jnp.take wraps negative indices before it looks for those out of range.
        index = jnp.where(labels < 0, self.num_classes + 1, labels)
        rows = jnp.take(self.table[...], index, axis=0, mode="fill", fill_value=jnp.nan)
        return rows.astype(self.dtype)


class Conditioning(nnx.Module):
    """Embed a time and an optional class label into one vector per example.

    `silu(time_embedding(t) + label_embedding(labels))`: the vector from which every
    block of the networks here computes its scales and shifts.

    Args:
        features: size of the embedding.
        num_classes: number of classes, or None for a network without labels.
        time_scale: factor on `t`, see `timestep_embedding`.
        dtype: dtype of the computation and of the result.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes a time (scalar or `[B]`), labels (`[B]`, or None, which is the null
    class for everyone) and the batch size `B`, and returns `[B, features]`.

    Raises:
        ValueError: when called with a `t` or `labels` of another batch size, with
            labels that `check_labels` refuses, or with labels for a network that has
            none.

    Source: arXiv:2105.05233, arXiv:2212.09748.

    >>> embed = Conditioning(8, num_classes=10, rngs=nnx.Rngs(0))
    >>> embed(0.5, jnp.array([3, 10]), 2).shape
    (2, 8)
    """

    def __init__(
        self,
        features: int,
        num_classes: int | None = None,
        *,
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
        self.num_classes = num_classes
        self.time = TimeEmbedding(features, time_scale=time_scale, **kwargs)
        if num_classes is not None:
            self.label = LabelEmbedding(num_classes, features, **kwargs)

    def __call__(self, t: Array | Scalar, labels: Array | None, batch: int) -> Array:
        t = jnp.asarray(t)
        if t.shape not in ((), (batch,)):
            raise ValueError(
                f"t must be a scalar or have shape ({batch},), got shape {t.shape}"
            )
        embedding = self.time(jnp.broadcast_to(t, (batch,)))
        if self.num_classes is not None:
            if labels is None:
                labels = jnp.full((batch,), self.num_classes)
            labels = jnp.asarray(labels)
            if labels.shape != (batch,):
                raise ValueError(
                    f"labels must have shape ({batch},), got shape {labels.shape}"
                )
            embedding = embedding + self.label(labels)
        elif labels is not None:
            raise ValueError("labels must be None for a network without num_classes")
        return jax.nn.silu(embedding)
