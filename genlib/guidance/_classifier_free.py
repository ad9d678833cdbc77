"""Classifier-free guidance."""

from genlib.types import Array, ArrayLike, Denoiser, Scalar, expand_like


def classifier_free(
    conditional: Denoiser, unconditional: Denoiser, scale: Scalar
) -> Denoiser:
    """Extrapolate to the conditional model, which is scale=1, and beyond it.

    D = D_unconditional + scale (D_conditional - D_unconditional). scale=0 is the
    unconditional model and scale > 1 guides (arXiv:2207.12598, where w = scale - 1). As
    all kinds of prediction are linear, guiding x_0 is the same as guiding eps or v.

    Args:
      conditional: denoiser that knows the condition.
      unconditional: denoiser that does not.
      scale: a number, or one for each example [B]; may be traced.

    Returns:
      A denoiser that calls both.

    >>> import jax.numpy as jnp
    >>> guided = classifier_free(lambda x, t: x + 1, lambda x, t: x, 3.0)
    >>> guided(jnp.zeros(1), jnp.float32(0.5))
    Array([3.], dtype=float32)
    """

    def denoise(x_t: Array, t: Array) -> Array:
        without = unconditional(x_t, t)
        difference = conditional(x_t, t) - without
        return (without + expand_like(scale, x_t) * difference).astype(x_t.dtype)

    def check_start(t: ArrayLike) -> None:
        for model in (conditional, unconditional):
            getattr(model, "check_start", lambda t: None)(t)

    denoise.check_start = check_start
    return denoise
