"""Guidance along a part of the difference between two models."""

import jax.numpy as jnp

from genlib.guidance._combine import (
    Scale,
    at_time,
    check_space,
    combine,
    in_space,
    inner,
    ratio,
)
from genlib.noise import Path
from genlib.prediction import EPS, VELOCITY, X0, Prediction
from genlib.types import (
    Array,
    Denoiser,
    Scalar,
    compute_dtype,
    concrete,
    expand_like,
    float_array,
    safe_sqrt,
)


def adaptive_projected(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scale,
    *,
    eta: Scalar = 0.0,
    norm_threshold: Scalar = jnp.inf,
    momentum: Scalar = 0.0,
    path: Path | None = None,
    kind: Prediction = X0,
) -> Denoiser:
    """Guide across the conditional prediction c, which is scale=1, less than along it.

    D = c + (scale - 1) (d_across + eta d_along), where d is the running sum of c - u
    (the last one times `momentum`, plus the new one), shortened to `norm_threshold`,
    and split into its parts along and across c (arXiv:2410.02416). eta=1
    without the other two is `classifier_free`.

    Not invariant to the kind of prediction: the paper and the default use x_0.

    Args:
      conditional: denoiser that knows the condition.
      unconditional: denoiser that does not.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.
      eta: what is left of the part along c, which saturates images.
      norm_threshold: the largest norm of d, over all of an example.
      momentum: negative values push away from earlier differences.
      path: the path on which both denoise; needed unless `kind` is X0.
      kind: the space in which to project and measure.

    Returns:
      A denoiser that calls both; with momentum a `types.StatefulDenoiser`, whose
      running sum `samplers.sample` carries from call to call.

    Raises:
      ValueError: if `kind` is not a `Prediction`, or needs a path and there is none.

    >>> c, u = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 1.0]])
    >>> guided = adaptive_projected(lambda x, t: c, lambda x, t: u, scale=3.0)
    >>> guided(jnp.zeros((1, 2)), jnp.float32(0.5))
    Array([[ 2., -2.]], dtype=float32)
    """
    check = check_space(path, kind)
    models = (conditional, unconditional)

    def shorten(difference: Array, c: Array) -> Array:
        norm = safe_sqrt(inner(difference, difference))
        limit = expand_like(norm_threshold, c)
        return difference * jnp.minimum(1.0, ratio(limit, norm, 1.0))

    def guide(x_t: Array, t: Array, running: Array | float, *x_0s: Array):
        def rule(c: Array, u: Array) -> Array:
            nonlocal running
            running = c - u + expand_like(momentum, c) * running
            update = shorten(running, c)
            along = ratio(inner(update, c), inner(c, c), 0.0) * c
            update = update + (expand_like(eta, c) - 1.0) * along
            return c + (at_time(scale, t, c) - 1.0) * update

        return in_space(path, kind, x_t, t, rule, *x_0s), running

    still = concrete(momentum)
    if still is not None and (still == 0).all():
        once = lambda x_t, t, *x_0s: guide(x_t, t, 0.0, *x_0s)[0]
        return combine(models, once, check)
    init = lambda x: jnp.zeros_like(x, compute_dtype(x.dtype))
    return combine(models, guide, check, init=init)


def cfg_zero_star(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scale,
    path: Path,
    *,
    zero_below: Scalar = -jnp.inf,
    kind: Prediction = VELOCITY,
) -> Denoiser:
    """Extrapolate from the unconditional prediction fitted to the conditional one.

    D = a u + scale (c - a u) with a = <c, u> / <u, u> for each example, and 0 where
    log-SNR < zero_below (arXiv:2503.18886). scale=1 is the conditional model c.

    Not invariant to the kind of prediction: the paper and the default use the velocity,
    in which 0 leaves x_t where it is.

    Args:
      conditional: denoiser that knows the condition.
      unconditional: denoiser that does not.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.
      path: the path on which both denoise.
      zero_below: log(alpha^2 / sigma^2) in nats below which the prediction is 0. The
        paper zeroes the first few steps; by default there are none.
      kind: the space in which to project.

    Returns:
      A denoiser that calls both.

    Raises:
      ValueError: if `kind` is not a `Prediction`.

    >>> from genlib import noise
    >>> c, u = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 1.0]])
    >>> models = lambda x, t: c, lambda x, t: u
    >>> guided = cfg_zero_star(*models, scale=3.0, path=noise.EDM(), kind=X0)
    >>> guided(jnp.zeros((1, 2)), jnp.float32(0.5))  # a = 1
    Array([[ 4., -2.]], dtype=float32)
    """
    check = check_space(path, kind)

    def rule(x_t: Array, t: Array, *x_0s: Array) -> Array:
        zero = path.log_snr(float_array(t)) < zero_below

        def guide(c: Array, u: Array) -> Array:
            # a may be negative; <u, u> is not.
            u = ratio(inner(c, u), inner(u, u), 0.0) * u
            guided = u + at_time(scale, t, c) * (c - u)
            return jnp.where(expand_like(zero, c), 0.0, guided)

        return in_space(path, kind, x_t, t, guide, *x_0s)

    return combine((conditional, unconditional), rule, check)


def tangential(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scale,
    path: Path,
    *,
    kind: Prediction = EPS,
) -> Denoiser:
    """Extrapolate from what the unconditional prediction shares with the other.

    D = p + scale (c - p), where p is the projection of u on the direction that c and u
    have in common, the first right singular vector of the matrix [c; u] of each example
    (arXiv:2503.18137). scale=1 is the conditional model c.

    Not invariant to the kind of prediction: the default is eps, which gives the same as
    the score of the paper.

    Args:
      conditional: denoiser that knows the condition.
      unconditional: denoiser that does not.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.
      path: the path on which both denoise.
      kind: the space in which to project.

    Returns:
      A denoiser that calls both.

    Raises:
      ValueError: if `kind` is not a `Prediction`.

    >>> from genlib import noise
    >>> c, u = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> models = lambda x, t: c, lambda x, t: u
    >>> guided = tangential(*models, scale=3.0, path=noise.EDM(), kind=X0)
    >>> guided(jnp.zeros((1, 2)), jnp.float32(0.5))  # nothing in common: p = 0
    Array([[6., 0.]], dtype=float32)
    """
    check = check_space(path, kind)

    def rule(x_t: Array, t: Array, *x_0s: Array) -> Array:
        def guide(c: Array, u: Array) -> Array:
            # The 2x2 matrix of inner products has the same first direction.
            cc, cu, uu = inner(c, c), inner(c, u), inner(u, u)
            degenerate = (cu == 0) & (cc == uu)
            angle = 0.5 * jnp.arctan2(2 * cu, jnp.where(degenerate, 1.0, cc - uu))
            shared = jnp.cos(angle) * c + jnp.sin(angle) * u
            p = ratio(inner(shared, u), inner(shared, shared), 0.0) * shared
            return p + at_time(scale, t, c) * (c - p)

        return in_space(path, kind, x_t, t, guide, *x_0s)

    return combine((conditional, unconditional), rule, check)
