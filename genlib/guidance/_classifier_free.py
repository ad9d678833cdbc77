"""Classifier-free guidance, and what shares its formula."""

from collections.abc import Sequence

from genlib.guidance._combine import Scale, at_time, combine
from genlib.types import Array, Denoiser


def classifier_free(
    conditional: Denoiser, unconditional: Denoiser, scale: Scale
) -> Denoiser:
    """Extrapolate to the conditional model, which is scale=1, and beyond it.

    D = D_unconditional + scale (D_conditional - D_unconditional). scale=0 is the
    unconditional model and scale > 1 guides (arXiv:2207.12598, where w = scale - 1). As
    all kinds of prediction are linear, guiding x_0 is the same as guiding eps or v.

    Args:
      conditional: denoiser that knows the condition.
      unconditional: denoiser that does not.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.

    Returns:
      A denoiser that calls both.

    >>> import jax.numpy as jnp
    >>> guided = classifier_free(lambda x, t: x + 1, lambda x, t: x, 3.0)
    >>> guided(jnp.zeros(1), jnp.float32(0.5))
    Array([3.], dtype=float32)
    """

    def rule(x_t: Array, t: Array, with_it: Array, without: Array) -> Array:
        return without + at_time(scale, t, x_t) * (with_it - without)

    return combine((conditional, unconditional), rule)


def autoguidance(model: Denoiser, weakened: Denoiser, scale: Scale) -> Denoiser:
    """Extrapolate from a weakened model to the model, which is scale=1, and beyond it.

    D = D_weakened + scale (D_model - D_weakened) (arXiv:2406.02507). The weakened one
    is smaller, or trained for less long. With perturbed attention (arXiv:2403.17377) or
    skipped layers it is the same network run in another way; those methods write
    D = D_model + s (D_model - D_weakened), so that their s is scale - 1.

    Args:
      model: the denoiser to be guided.
      weakened: a worse one for the same condition, whose errors are alike but larger.
      scale: a number, or one for each example [B], or a function of the time that
        returns either; may be traced.

    Returns:
      A denoiser that calls both.

    >>> import jax.numpy as jnp
    >>> guided = autoguidance(lambda x, t: x + 1, lambda x, t: x + 3, 2.0)
    >>> guided(jnp.zeros(1), jnp.float32(0.5))
    Array([-1.], dtype=float32)
    """
    return classifier_free(model, weakened, scale)


def compose(
    base: Denoiser, models: Sequence[Denoiser], scales: Sequence[Scale]
) -> Denoiser:
    """Add the differences of several models to a base, which is all scales=0.

    D = D_base + sum_i scale_i (D_i - D_base). With an unconditional base and one model
    for each condition that is the conjunction of conditions (arXiv:2206.01714); one
    condition with scale=1 is its conditional model. Negative scales push away: with a
    conditional base, unconditional and perturbed models and the scales 1 - w and -s it
    is classifier-free and perturbed-attention guidance at once.

    Args:
      base: the denoiser that differences are taken from.
      models: any number of denoisers.
      scales: as many scales, each a number, or one for each example [B], or a function
        of the time that returns either; may be traced.

    Returns:
      A denoiser that calls all of them.

    Raises:
      ValueError: if there are not as many scales as models.

    >>> import jax.numpy as jnp
    >>> up, down = lambda x, t: x + 1, lambda x, t: x - 1
    >>> compose(lambda x, t: x, [up, down], [3.0, 0.5])(jnp.zeros(1), jnp.float32(0.5))
    Array([2.5], dtype=float32)
    """
    models, scales = tuple(models), tuple(scales)
    if len(scales) != len(models):
        raise ValueError(
            f"scales must be one for each of {len(models)} models; there are "
            f"{len(scales)}"
        )

    def rule(x_t: Array, t: Array, x_0: Array, *others: Array) -> Array:
        differences = (
            at_time(scale, t, x_t) * (other - x_0)
            for scale, other in zip(scales, others, strict=True)
        )
        return sum(differences, start=x_0)

    return combine((base, *models), rule)
