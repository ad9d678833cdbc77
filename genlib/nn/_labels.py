"""Class labels for classifier-free guidance: `num_classes` is the null class."""

import jax
import jax.numpy as jnp

from genlib.types import Array, Key, Scalar, concrete


def check_labels(labels: Array, num_classes: int) -> None:
    """Refuse labels that are not `[B]` integers in `0 .. num_classes`.

    The value `num_classes` is allowed: it is the null class. The values of traced
    labels cannot be read, so only their dtype and rank are checked; a traced label
    out of range gives NaN in `LabelEmbedding`, never a neighbouring class.

    Args:
        labels: labels `[B]`.
        num_classes: number of classes, without the null class.

    Raises:
        ValueError: naming what is wrong with the labels.

    Source: arXiv:2207.12598 (the null class).

    >>> check_labels(jnp.array([0, 9, 10]), num_classes=10)
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        raise ValueError(
            f"labels must be integers of shape [B], got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if num_classes > jnp.iinfo(labels.dtype).max:
        raise ValueError(
            f"labels must have a dtype that holds {num_classes}, got {labels.dtype}"
        )
    values = concrete(labels)
    if values is None:
        return
    wrong = values[(values < 0) | (values > num_classes)]
    if wrong.size:
        raise ValueError(
            f"labels must be in 0..{num_classes} ({num_classes} is the null class), "
            f"got {wrong[0]}"
        )


def drop_labels(
    key: Key, labels: Array, probability: Scalar, num_classes: int
) -> Array:
    """Replace each label by the null class with a probability, independently.

    Training on the result teaches one network the conditional and the unconditional
    model that classifier-free guidance needs.

    Args:
        key: random key.
        labels: integer labels `[B]` in `0 .. num_classes`.
        probability: probability in [0, 1] of dropping a label; 0 and 1 are exact.
        num_classes: number of classes; also the index of the null class.

    Returns:
        Labels `[B]` of the same dtype.

    Raises:
        ValueError: if `check_labels` refuses the labels, or `probability` is a number
            outside [0, 1] (a traced one is not checked).

    Source: arXiv:2207.12598 algorithm 1.

    >>> drop_labels(jax.random.key(0), jnp.array([3, 1]), 1.0, num_classes=10).tolist()
    [10, 10]
    """
    check_labels(labels, num_classes)
    if isinstance(probability, int | float) and not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    drop = jax.random.bernoulli(key, probability, labels.shape)
    return jnp.where(drop, jnp.asarray(num_classes, labels.dtype), labels)
