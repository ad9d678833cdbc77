"""Distances of images as a network sees them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from genlib.losses._parts import floating_batch
from genlib.types import Array, ArrayLike, compute_dtype


def feature_distance(
    features_x: Sequence[Array],
    features_y: Sequence[Array],
    weights: Sequence[ArrayLike] | None = None,
) -> Array:
    """Return how far apart the features of two batches are, per example.

        sum_l mean_hw sum_c w_lc (x_lhwc / |x_lhw| - y_lhwc / |y_lhw|)^2

    over layers l, places and channels: the formula of LPIPS. Features that are 0 at a
    place stay 0 there, without a gradient. `genlib` has no such network; with your own
    `features`, `lambda x, y: feature_distance(features(x), features(y))` is a
    perceptual loss.

    Args:
      features_x: feature maps [B, ..., C_l], one for each layer.
      features_y: those of the other batch, of the same shapes.
      weights: w_l [C_l] for each layer, of the squares as in LPIPS's released weights;
        None means 1.

    Returns:
      Distances [B], float32 (float64 for float64 features).

    Raises:
      ValueError: if there are no layers, or their numbers or shapes differ, or they are
        not floating.

    Source: arXiv:1801.03924, equation 1.

    >>> x, y = jnp.array([[[3.0, 4.0]]]), jnp.array([[[4.0, 3.0]]])
    >>> feature_distance([x], [y]).round(4)
    Array([0.08], dtype=float32)
    """
    if weights is None:
        weights = [1.0] * len(features_x)
    if not 0 < len(features_x) == len(features_y) == len(weights):
        raise ValueError(
            "features_x, features_y and weights must hold as many layers, at least "
            f"one; they are {len(features_x)}, {len(features_y)} and {len(weights)}"
        )
    distances = jnp.float32(0)
    for x, y, weight in zip(features_x, features_y, weights, strict=True):
        x, y = floating_batch(x, "features_x"), floating_batch(y, "features_y")
        if x.ndim < 2 or x.shape != y.shape:
            raise ValueError(
                f"features_x and features_y must be [B, ..., C] of equal shapes; they "
                f"are {x.shape} and {y.shape}"
            )
        if jnp.shape(weight) not in ((), x.shape[-1:]):
            raise ValueError(
                f"weights must be [C] with C = {x.shape[-1]}; one is "
                f"{jnp.shape(weight)}"
            )
        weight = jnp.broadcast_to(jnp.asarray(weight), x.shape)
        squares = (weight * jnp.square(_unit(x) - _unit(y))).sum(-1)
        distances += squares.mean(tuple(range(1, squares.ndim)))
    return distances


def _unit(x: Array) -> Array:
    """Return vectors of norm 1, and 0 of 0."""
    x = x.astype(compute_dtype(x.dtype))
    # Lengths do not matter to the result, so neither to its gradient.
    largest = jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1.0)
    square = jnp.square(x).sum(-1, keepdims=True)
    present = square > 0
    return x * jnp.where(present, jax.lax.rsqrt(jnp.where(present, square, 1.0)), 0.0)
