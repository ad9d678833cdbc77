"""Inverse problems: guidance by a measurement y = A(x_0) + noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.guidance._classifier import check_alpha, tweedie_gain
from genlib.guidance._combine import (
    Scale,
    at_time,
    check_within,
    inner,
    join,
    lift,
    ratio,
)
from genlib.noise import Path
from genlib.types import (
    Array,
    Denoiser,
    Scalar,
    check_positive,
    compute_dtype,
    expand_like,
    safe_sqrt,
)

Operator = Callable[[Array], Array]
Map = Callable[[Array], Array]


def dps(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    scale: Scale,
    path: Path,
    *,
    noise_std: Scalar | None = None,
) -> Denoiser:
    """Follow the gradient of the misfit of x_0_hat: diffusion posterior sampling.

    D = x_0_hat + scale (sigma^2 / alpha) grad_x log p, with x_0_hat = D(x_t). For a
    `noise_std` s, log p = -|y - A(x_0_hat)|^2 / (2 s^2), which takes x_0_hat for
    certain; scale=1 is then the likelihood as it is. Without, log p = -|y - A(x_0_hat)|
    for the paper's steps of a length that does not depend on the misfit
    (arXiv:2209.14687, alg. 1). scale=0 is the unguided model.

    Args:
      denoise: the unguided denoiser.
      operator: A, from x_0 [B, ...] to measurements [B, ...], example by example; any
        differentiable function.
      y: the measurements.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.
      path: the path on which `denoise` denoises.
      noise_std: standard deviation of the noise in `y`, a number or one for each
        example [B].

    Returns:
      A denoiser that calls `denoise` and its gradient.

    Raises:
      ValueError: if a concrete `noise_std` is not positive; when called, if A does not
        return the shape of `y`, or at a concrete time with alpha = 0.

    >>> from genlib import noise
    >>> y = jnp.array([[3.0]])
    >>> guided = dps(lambda x, t: 0.5 * x, lambda x: x, y, 1.0, noise.EDM())
    >>> guided(jnp.zeros((1, 1)), jnp.float32(2.0))  # sigma^2 times a slope of 1/2
    Array([[2.]], dtype=float32)
    """
    if noise_std is not None:
        check_positive("noise_std", noise_std)

    def dual(x_0: Array, covariance: Map, t: Array) -> Array:
        residual, _, transpose = _measure(operator, y, x_0)
        if noise_std is None:
            norm = safe_sqrt(inner(residual, residual))
            return transpose(residual * ratio(jnp.ones_like(norm), norm, 0.0))
        return transpose(residual / expand_like(noise_std, residual) ** 2)

    return _guide(denoise, dual, scale, path)


def pigdm(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    scale: Scale,
    path: Path,
    *,
    noise_std: Scalar = 0.0,
    data_std: Scalar = 1.0,
    iterations: int = 5,
) -> Denoiser:
    """Guide by a measurement of a Gaussian x_0: pseudoinverse guidance.

    D = x_0_hat + scale (sigma^2 / alpha) J^T A^T (r^2 A A^T + s^2)^-1 (y - A x_0_hat),
    with x_0_hat = D(x_t), its Jacobian J, the noise_std s and the posterior variance
    r^2 = c^2 sigma^2 / (alpha^2 c^2 + sigma^2) of data of variance c^2 (Song et al.,
    ICLR 2023, openreview 9_gsMA8MRKQ). scale=1 is the conditional model, E[x_0 | x_t,
    y], exactly so for data N(m, c^2 I) and linear A; scale=0 is the unguided one. The
    paper, whose c is 1, multiplies by a further r^2: a `scale` that is a function.

    Args:
      denoise: the unguided denoiser.
      operator: A, from x_0 [B, ...] to measurements [B, ...], example by example;
        linear, or else linearised at x_0_hat.
      y: the measurements.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.
      path: the path on which `denoise` denoises.
      noise_std: s, a number or one for each example [B]; 0 is the pseudoinverse.
      data_std: c, a number or one for each example [B].
      iterations: of conjugate gradients, which need no matrix of A, and are exact after
        as many as A A^T has different eigenvalues (1 for masks).

    Returns:
      A denoiser that calls `denoise` and its gradient.

    Raises:
      ValueError: if a concrete `noise_std` is negative or `data_std` not positive, or
        `iterations` is not a positive integer; when called, if A does not return the
        shape of `y`, or at a concrete time with alpha = 0.

    >>> from genlib import noise
    >>> y, see_first = jnp.array([[3.0]]), lambda x: x[:, :1]
    >>> guided = pigdm(lambda x, t: 0.5 * x, see_first, y, 1.0, noise.EDM())
    >>> guided(jnp.ones((1, 2)), jnp.float32(1.0)).round(4)
    Array([[3. , 0.5]], dtype=float32)
    """
    _check_settings(noise_std, iterations)
    check_positive("data_std", data_std)

    def dual(x_0: Array, covariance: Map, t: Array) -> Array:
        alpha, sigma = (expand_like(c, x_0) for c in path(t))
        c = expand_like(data_std, x_0)
        variance = (c * sigma / jnp.hypot(c * alpha, sigma)) ** 2
        isotropic = lambda z: variance * z
        return _solve(operator, y, x_0, isotropic, noise_std, iterations)

    return _guide(denoise, dual, scale, path)


def mmps(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    scale: Scale,
    path: Path,
    *,
    noise_std: Scalar = 0.0,
    iterations: int = 5,
) -> Denoiser:
    """Guide by a measurement of x_0 of the denoiser's own covariance: moment matching.

    D = x_0_hat + scale V A^T (A V A^T + s^2)^-1 (y - A x_0_hat), with x_0_hat = D(x_t),
    the noise_std s and V = (sigma^2 / alpha) J^T, which is Cov[x_0 | x_t] for an exact
    denoiser (arXiv:2310.06721; with conjugate gradients arXiv:2405.13712). scale=1 is
    the conditional model, E[x_0 | x_t, y], exactly so for any Gaussian data and linear
    A; scale=0 is the unguided one.

    Args:
      denoise: the unguided denoiser.
      operator: A, from x_0 [B, ...] to measurements [B, ...], example by example;
        linear, or else linearised at x_0_hat.
      y: the measurements.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.
      path: the path on which `denoise` denoises.
      noise_std: s, a number or one for each example [B].
      iterations: of conjugate gradients, each of which costs a gradient of `denoise`.

    Returns:
      A denoiser that calls `denoise` once and its gradient iterations + 1 times.

    Raises:
      ValueError: if a concrete `noise_std` is negative, or `iterations` is not a
        positive integer; when called, if A does not return the shape of `y`, or at a
        concrete time with alpha = 0.

    >>> from genlib import noise
    >>> y, see_first = jnp.array([[3.0]]), lambda x: x[:, :1]
    >>> guided = mmps(lambda x, t: 0.5 * x, see_first, y, 1.0, noise.EDM())
    >>> guided(jnp.ones((1, 2)), jnp.float32(1.0))
    Array([[3. , 0.5]], dtype=float32)
    """
    _check_settings(noise_std, iterations)

    def dual(x_0: Array, covariance: Map, t: Array) -> Array:
        return _solve(operator, y, x_0, covariance, noise_std, iterations)

    return _guide(denoise, dual, scale, path)


def _guide(
    denoise: Denoiser,
    dual: Callable[[Array, Map, Array], Array],
    scale: Any,
    path: Path,
) -> Denoiser:
    """Return D + scale V z with V = (sigma^2 / alpha) J^T and `z = dual(x_0, V, t)`."""

    def apply(x_t: Array, t: Array, memories: Any) -> tuple[Array, Any]:
        wide = compute_dtype(x_t.dtype)

        def predict(x: Array) -> tuple[Array, Any]:
            x_0, memory = lift(denoise).apply(x.astype(x_t.dtype), t, memories[0])
            return x_0.astype(wide), memory

        x_0, pull, memory = jax.vjp(predict, x_t.astype(wide), has_aux=True)
        gain = tweedie_gain(path, t, x_0)
        covariance = lambda z: gain * pull(z)[0]
        shift = covariance(dual(x_0, covariance, t))
        x_0 = x_0 + at_time(scale, t, x_0) * shift
        return x_0.astype(x_t.dtype), (memory,)

    return join((denoise,), apply, check_alpha(path))


def _measure(operator: Operator, y: Array, x_0: Array) -> tuple[Array, Map, Map]:
    """Return y - A(x_0), and the linear maps A and A^T at x_0."""
    measured, forward = jax.linearize(operator, x_0)
    if measured.shape != jnp.shape(y):
        raise ValueError(
            f"operator must return the shape {jnp.shape(y)} of y; it returned "
            f"{measured.shape}"
        )
    if jnp.iscomplexobj(measured) or jnp.iscomplexobj(y):
        raise ValueError(
            "operator and y must be real: stack the real and the imaginary part"
        )
    transpose = jax.linear_transpose(forward, x_0)
    residual = jnp.asarray(y, measured.dtype) - measured
    return residual, forward, lambda u: transpose(u)[0]


def _solve(
    operator: Operator,
    y: Array,
    x_0: Array,
    covariance: Map,
    noise_std: Scalar,
    iterations: int,
) -> Array:
    """Return A^T (A V A^T + s^2)^-1 (y - A x_0) by conjugate gradients per example."""
    residual, forward, transpose = _measure(operator, y, x_0)
    variance = expand_like(noise_std, residual) ** 2

    # What is left of a residual that is rounding alone has no direction.
    rounding = jnp.finfo(residual.dtype).eps ** 2 * inner(residual, residual)

    def step(_: Any, carry: tuple[Array, Array, Array]):
        solution, residual, direction = carry
        image = forward(covariance(transpose(direction))) + variance * direction
        size = inner(residual, residual)
        size = jnp.where(size > rounding, size, 0.0)
        # In this order because the square of a small number of two may underflow.
        curvature = ratio(inner(direction, image), size, 0.0)
        length = ratio(jnp.ones_like(curvature), curvature, 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        turn = ratio(inner(residual, residual), size, 0.0)
        return solution, residual, residual + turn * direction

    start = (jnp.zeros_like(residual), residual, residual)
    return transpose(jax.lax.fori_loop(0, iterations, step, start)[0])


def _check_settings(noise_std: Scalar, iterations: int) -> None:
    check_within("noise_std", noise_std, 0.0, float("inf"))
    whole = isinstance(iterations, int) and not isinstance(iterations, bool)
    if not whole or iterations < 1:
        raise ValueError(f"iterations must be a positive integer; it is {iterations!r}")
