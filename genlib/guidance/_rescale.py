"""Against the saturation that strong guidance brings."""

import jax.numpy as jnp

from genlib.guidance._combine import (
    check_order,
    check_space,
    check_within,
    combine,
    in_space,
    ratio,
)
from genlib.noise import Path
from genlib.prediction import X0, Prediction
from genlib.types import (
    Array,
    Denoiser,
    Scalar,
    concrete,
    expand_like,
    safe_sqrt,
)


def rescale(
    guided: Denoiser,
    conditional: Denoiser,
    phi: Scalar = 0.7,
    *,
    path: Path | None = None,
    kind: Prediction = X0,
) -> Denoiser:
    """Give a guided prediction the contrast of the conditional one, which is scale=1.

    D = (phi std(conditional) / std(guided) + 1 - phi) guided, with the standard
    deviation over each example (arXiv:2305.08891, sec. 3.4). Under jit a conditional
    model that `guided` calls too is run once.

    Not invariant to the kind of prediction: the default rescales x_0; diffusers and
    others rescale what the network puts out, often eps or v.

    Args:
      guided: the denoiser with guidance.
      conditional: the denoiser without.
      phi: 0 leaves `guided` as it is, 1 rescales fully; a number or one for each
        example [B].
      path: the path on which both denoise; needed unless `kind` is X0.
      kind: the space in which to rescale.

    Returns:
      A denoiser that calls both.

    Raises:
      ValueError: if a concrete `phi` is outside [0, 1], or `kind` is not a
        `Prediction`, or needs a path and there is none.

    >>> x = jnp.array([[-1.0, 1.0]])
    >>> rescaled = rescale(lambda x, t: 4 * x, lambda x, t: x, phi=0.5)
    >>> rescaled(x, jnp.float32(0.5))
    Array([[-2.5,  2.5]], dtype=float32)
    """
    check_within("phi", phi, 0.0, 1.0)
    check = check_space(path, kind)

    def rule(x_t: Array, t: Array, *x_0s: Array) -> Array:
        def shrink(strong: Array, plain: Array) -> Array:
            factor = ratio(_std(plain), _std(strong), 1.0)
            return (1.0 + expand_like(phi, strong) * (factor - 1.0)) * strong

        return in_space(path, kind, x_t, t, shrink, *x_0s)

    return combine((guided, conditional), rule, check)


def static_threshold(
    denoise: Denoiser, low: Scalar = -1.0, high: Scalar = 1.0
) -> Denoiser:
    """Clip x_0 to the range of the data (arXiv:2205.11487, sec. 2.3).

    D = clip(D, low, high). Data have bounds in the space of x_0 only, so that this is
    not invariant to the kind of prediction, and always acts on x_0.

    Args:
      denoise: a denoiser, guided or not.
      low: smallest value of the data, a number or one for each example [B].
      high: largest value.

    Returns:
      A denoiser within [low, high].

    Raises:
      ValueError: if concrete bounds are not low <= high.

    >>> static_threshold(lambda x, t: 2 * x)(jnp.array([0.2, 3.0]), jnp.float32(0.5))
    Array([0.4, 1. ], dtype=float32)
    """
    check_order(low, high)

    def rule(x_t: Array, t: Array, x_0: Array) -> Array:
        return jnp.clip(x_0, expand_like(low, x_0), expand_like(high, x_0))

    return combine((denoise,), rule)


def dynamic_threshold(
    denoise: Denoiser, quantile: Scalar = 0.995, limit: Scalar = 1.0
) -> Denoiser:
    """Shrink the x_0 of an example into the range of the data, outliers clipped.

    D = clip(D, -s, s) limit / s, where s is the larger of `limit` and a quantile of |D|
    over the example (arXiv:2205.11487, sec. 2.3). It acts on x_0, as
    `static_threshold` does.

    Args:
      denoise: a denoiser, guided or not.
      quantile: within [0, 1]; 1 clips nothing.
      limit: largest absolute value of the data, a number or one for each example [B].

    Returns:
      A denoiser within [-limit, limit].

    Raises:
      ValueError: if a concrete `quantile` is outside [0, 1], or `limit` not positive.

    >>> halve = dynamic_threshold(lambda x, t: x, quantile=1.0)
    >>> halve(jnp.array([[2.0, -1.0]]), jnp.float32(0.5))
    Array([[ 1. , -0.5]], dtype=float32)
    """
    check_within("quantile", quantile, 0.0, 1.0)
    value = concrete(limit)
    if value is not None and not (value > 0).all():
        raise ValueError(f"limit must be positive; it is {limit}")

    def rule(x_t: Array, t: Array, x_0: Array) -> Array:
        bound = expand_like(limit, x_0)
        axes = tuple(range(1, x_0.ndim))
        size = jnp.quantile(jnp.abs(x_0), quantile, axis=axes, keepdims=True)
        s = jnp.maximum(size, bound)
        return jnp.clip(x_0, -s, s) * (bound / s)

    return combine((denoise,), rule)


def _std(x: Array) -> Array:
    return safe_sqrt(jnp.var(x, axis=tuple(range(1, x.ndim)), keepdims=True))
