"""Guidance by the gradient of a log-likelihood."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.guidance._combine import Check, Scale, at_time, combine
from genlib.noise import Path
from genlib.types import Array, ArrayLike, Denoiser, expand_like, is_concrete


def classifier(
    denoise: Denoiser,
    log_likelihood: Callable[[Array, Array], Array],
    scale: Scale,
    path: Path,
) -> Denoiser:
    """Add the gradient of log p(y | x_t); scale=1 is the conditional model of Bayes.

    D = D + scale (sigma^2 / alpha) grad_x log p(y | x_t), which is Tweedie's formula
    for the score of p(x_t | y) (arXiv:2105.05233). scale=0 is the unguided model.

    Args:
      denoise: the unguided denoiser.
      log_likelihood: `(x_t, t) -> [B]`, log p(y | x_t) in nats of a classifier (or of
        anything else) that knows noisy data; each example from its own x_t.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.
      path: the path on which `denoise` denoises.

    Returns:
      A denoiser that calls the denoiser and the gradient.

    Raises:
      ValueError: when called, if `log_likelihood` does not return one number for each
        example, or at a concrete time with alpha = 0, where it says nothing about x_0.

    >>> from genlib import noise
    >>> towards_y = lambda x, t: -0.5 * jnp.sum((x - 3.0) ** 2, axis=-1)
    >>> guided = classifier(lambda x, t: 0 * x, towards_y, 1.0, noise.EDM())
    >>> guided(jnp.ones((1, 2)), jnp.float32(2.0))
    Array([[8., 8.]], dtype=float32)
    """

    def rule(x_t: Array, t: Array, x_0: Array) -> Array:
        slope = gradient(lambda x: log_likelihood(x, t), x_t)
        return x_0 + at_time(scale, t, x_t) * tweedie_gain(path, t, x_t) * slope

    return combine((denoise,), rule, check_alpha(path))


def gradient(function: Callable[[Array], Array], x: Array) -> Array:
    """Return the gradient of `function(x)` [B] for each example."""

    def total(x: Array) -> Any:
        value = function(x)
        if value.shape != x.shape[:1]:
            raise ValueError(
                "log_likelihood must return one number for each example "
                f"{x.shape[:1]}; it returned {value.shape}"
            )
        return value.sum()  # examples are independent: no gradient crosses

    return jax.grad(total)(x)


def tweedie_gain(path: Path, t: ArrayLike, x: Array) -> Array:
    """Return sigma^2 / alpha = d x_0 / d score; 0 at alpha = 0 if t is traced."""
    check_alpha(path)(t)
    alpha, sigma = path(t)
    lost = alpha == 0
    gain = jnp.where(lost, 0.0, sigma**2 / jnp.where(lost, 1.0, alpha))
    return expand_like(gain, x)


def check_alpha(path: Path) -> Check:
    """Return a check that refuses concrete times at which alpha = 0."""

    def check_start(t: ArrayLike) -> None:
        if not is_concrete(path, t):
            return
        with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
            lost = (path(t).alpha == 0).any()
        if lost:
            raise ValueError(
                "a likelihood of x_t says nothing about x_0 where alpha = 0: t must be "
                f"earlier; it is {t}"
            )

    return check_start
