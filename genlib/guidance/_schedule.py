"""When to guide, and how much."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.guidance._combine import check_order, join, lift
from genlib.noise import Path
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    Scalar,
    expand_like,
    float_array,
)


def interval(
    guided: Denoiser,
    conditional: Denoiser,
    path: Path,
    low: Scalar = -jnp.inf,
    high: Scalar = jnp.inf,
) -> Denoiser:
    """Guide only where low <= log-SNR <= high, with the conditional model elsewhere.

    (arXiv:2404.07724, which gives the interval in sigma: there log-SNR is
    -2 log sigma.) For a scalar time only the model in use is run.

    Args:
      guided: the denoiser within the interval.
      conditional: the denoiser outside of it (scale=1).
      path: the path on which both denoise.
      low: log(alpha^2 / sigma^2) in nats, a number or one for each example [B].
      high: the same, from `low` on.

    Returns:
      A denoiser that calls one of the two.

    Raises:
      ValueError: if concrete bounds are not low <= high.

    >>> from genlib import noise
    >>> path, one = noise.Rectified(), jnp.ones(1)
    >>> D = interval(lambda x, t: 7 * x, lambda x, t: x, path, low=-1.0, high=1.0)
    >>> [D(one, t).item() for t in (0.9, 0.5, 0.1)]
    [1.0, 7.0, 1.0]
    """
    check_order(low, high)
    models = (guided, conditional)

    def apply(x_t: Array, t: Array, memories: Any) -> tuple[Array, Any]:
        def run(i: int) -> Callable[[Array, Array, Any], tuple[Array, Any]]:
            def branch(x_t: Array, t: Array, memories: Any) -> tuple[Array, Any]:
                x_0, memory = lift(models[i]).apply(x_t, t, memories[i])
                # Whoever is not called remembers what it did.
                kept = (*memories[:i], memory, *memories[i + 1 :])
                return x_0.astype(x_t.dtype), kept

            return branch

        log_snr = path.log_snr(float_array(t))
        active = (log_snr >= low) & (log_snr <= high)
        if active.ndim == 0:
            return jax.lax.cond(active, run(0), run(1), x_t, t, memories)
        within, memories = run(0)(x_t, t, memories)
        outside, memories = run(1)(x_t, t, memories)
        return jnp.where(expand_like(active, x_t), within, outside), memories

    return join(models, apply)


def linear_scale(path: Path, noisy: Scalar, clean: Scalar) -> Callable[[Array], Array]:
    """Return a scale that goes linearly in time from one end of a path to the other.

    scale(t) = clean + u (noisy - clean), where u is the fraction of the path's time at
    t, 0 at the data. Increasing towards the data does best in arXiv:2404.13040.

    Args:
      path: the forward process.
      noisy: the scale at t_max, a number or one for each example [B].
      clean: the scale at t_min.

    Returns:
      A function of the time, for any guidance that takes a scale.

    >>> from genlib import noise
    >>> linear_scale(noise.Cosine(), noisy=1.0, clean=5.0)(jnp.float32(0.25)).item()
    4.0
    """
    return lambda t: clean + _fraction(path, t) * (noisy - clean)


def cosine_scale(path: Path, noisy: Scalar, clean: Scalar) -> Callable[[Array], Array]:
    """Return a scale that goes along half a cosine from one end to the other.

    scale(t) = clean + (1 - cos(pi u)) / 2 (noisy - clean), with u as in `linear_scale`
    (arXiv:2404.13040).

    Args:
      path: the forward process.
      noisy: the scale at t_max, a number or one for each example [B].
      clean: the scale at t_min.

    Returns:
      A function of the time, for any guidance that takes a scale.

    >>> from genlib import noise
    >>> cosine_scale(noise.Cosine(), noisy=1.0, clean=5.0)(jnp.float32(1.0)).item()
    1.0
    """

    def scale(t: ArrayLike) -> Array:
        return clean + 0.5 * (1 - jnp.cos(jnp.pi * _fraction(path, t))) * (
            noisy - clean
        )

    return scale


def _fraction(path: Path, t: ArrayLike) -> Array:
    return (float_array(t) - path.t_min) / (path.t_max - path.t_min)
