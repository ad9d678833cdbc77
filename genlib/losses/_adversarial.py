"""Objectives of a discriminator and of the generator that it judges."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.losses._parts import floating_batch
from genlib.types import Array, Scalar, compute_dtype


def hinge_discriminator(real: Array, fake: Array) -> Array:
    """Return the hinge loss of a discriminator, per example.

    loss = max(0, 1 - real) + max(0, 1 + fake). VQGAN (arXiv:2012.09841) takes half.

    Args:
      real: its logits of data, [B] or [B, ...] of patches, over which the loss is
        averaged.
      fake: its logits of generated examples, of the same shape.

    Returns:
      Losses [B], float32 (float64 for float64 logits).

    Raises:
      ValueError: if the logits are not floating or their shapes differ.

    Source: arXiv:1705.02894.

    >>> hinge_discriminator(jnp.array([0.5]), jnp.array([-0.2]))
    Array([1.3], dtype=float32)
    """
    real, fake = _pair(real, fake)
    return per_example(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))


def hinge_generator(fake: Array) -> Array:
    """Return the loss of a generator against `hinge_discriminator`, per example.

    loss = -fake, which is also `wasserstein_generator`.

    Args:
      fake: logits of generated examples, [B] or [B, ...] of patches, averaged.

    Returns:
      Losses [B], float32 (float64 for float64 logits).

    Raises:
      ValueError: if the logits are not floating.

    Source: arXiv:1705.02894.

    >>> hinge_generator(jnp.array([-0.5]))
    Array([0.5], dtype=float32)
    """
    return -per_example(_wide(fake, "fake"))


def logistic_discriminator(real: Array, fake: Array) -> Array:
    """Return the cross-entropy of a discriminator, per example.

    loss = softplus(-real) + softplus(fake), in nats. Its minimum is the log-ratio of
    the densities of data and generated examples.

    Args:
      real: its logits of data, [B] or [B, ...] of patches, over which the loss is
        averaged.
      fake: its logits of generated examples, of the same shape.

    Returns:
      Losses [B], float32 (float64 for float64 logits).

    Raises:
      ValueError: if the logits are not floating or their shapes differ.

    Source: arXiv:1406.2661.

    >>> loss = logistic_discriminator(jnp.array([0.5]), jnp.array([-0.2]))
    >>> round(loss.item(), 4)
    1.0722
    """
    real, fake = _pair(real, fake)
    return per_example(jax.nn.softplus(-real) + jax.nn.softplus(fake))


def logistic_generator(fake: Array) -> Array:
    """Return the non-saturating loss of a generator, per example.

    loss = softplus(-fake), in nats.

    Args:
      fake: logits of generated examples, [B] or [B, ...] of patches, over which the
        loss is averaged.

    Returns:
      Losses [B], float32 (float64 for float64 logits).

    Raises:
      ValueError: if the logits are not floating.

    Source: arXiv:1406.2661.

    >>> round(logistic_generator(jnp.array([-0.2])).item(), 4)
    0.7981
    """
    return per_example(jax.nn.softplus(-_wide(fake, "fake")))


def least_squares_discriminator(real: Array, fake: Array) -> Array:
    """Return the squared error of a discriminator from 1 and 0, per example.

    loss = (real - 1)^2 / 2 + fake^2 / 2.

    Args:
      real: its values of data, [B] or [B, ...] of patches, over which the loss is
        averaged.
      fake: its values of generated examples, of the same shape.

    Returns:
      Losses [B], float32 (float64 for float64 values).

    Raises:
      ValueError: if the values are not floating or their shapes differ.

    Source: arXiv:1611.04076.

    >>> least_squares_discriminator(jnp.array([0.5]), jnp.array([1.0]))
    Array([0.625], dtype=float32)
    """
    real, fake = _pair(real, fake)
    return per_example((jnp.square(real - 1) + jnp.square(fake)) / 2)


def least_squares_generator(fake: Array) -> Array:
    """Return the loss of a generator against `least_squares_discriminator`.

    loss = (fake - 1)^2 / 2, per example.

    Args:
      fake: values of generated examples, [B] or [B, ...] of patches, over which the
        loss is averaged.

    Returns:
      Losses [B], float32 (float64 for float64 values).

    Raises:
      ValueError: if the values are not floating.

    Source: arXiv:1611.04076.

    >>> least_squares_generator(jnp.array([0.0]))
    Array([0.5], dtype=float32)
    """
    return per_example(jnp.square(_wide(fake, "fake") - 1) / 2)


def wasserstein_discriminator(real: Array, fake: Array) -> Array:
    """Return the loss of a critic, per example.

    loss = fake - real. Its negative bounds the Wasserstein-1 distance from below for a
    critic of Lipschitz constant 1, which `gradient_penalty` asks for.

    Args:
      real: its values of data, [B] or [B, ...] of patches, averaged.
      fake: its values of generated examples, of the same shape.

    Returns:
      Losses [B], float32 (float64 for float64 values).

    Raises:
      ValueError: if the values are not floating or their shapes differ.

    Source: arXiv:1701.07875.

    >>> wasserstein_discriminator(jnp.array([0.5]), jnp.array([-0.5]))
    Array([-1.], dtype=float32)
    """
    real, fake = _pair(real, fake)
    return per_example(fake - real)


def wasserstein_generator(fake: Array) -> Array:
    """Return the loss of a generator against `wasserstein_discriminator`, per example.

    loss = -fake.

    Args:
      fake: values of generated examples, [B] or [B, ...] of patches, averaged.

    Returns:
      Losses [B], float32 (float64 for float64 values).

    Raises:
      ValueError: if the values are not floating.

    Source: arXiv:1701.07875.

    >>> wasserstein_generator(jnp.array([-0.5]))
    Array([0.5], dtype=float32)
    """
    return -per_example(_wide(fake, "fake"))


def relativistic(better: Array, worse: Array) -> Array:
    """Return the loss of pairs of which one is to have the greater logit, per example.

    loss = softplus(worse - better), in nats: the discriminator's is
    `relativistic(real, fake)`, the generator's `relativistic(fake, real)`. With `r1`
    and `r2` it is R3GAN.

    Args:
      better: logits [B], or [B, ...] of patches, over which the loss is averaged.
      worse: logits of the same shape.

    Returns:
      Losses [B], float32 (float64 for float64 logits).

    Raises:
      ValueError: if the logits are not floating or their shapes differ.

    Source: arXiv:2501.05441.

    >>> round(relativistic(jnp.array([0.5]), jnp.array([-0.2])).item(), 4)
    0.4032
    """
    better, worse = _pair(better, worse, ("better", "worse"))
    return per_example(jax.nn.softplus(worse - better))


def adaptive_weight(
    reconstruction_grad: Any,
    adversarial_grad: Any,
    *,
    maximum: Scalar = 1e4,
    delta: Scalar = 1e-6,
) -> Array:
    """Return the weight that makes an adversarial gradient as long as another.

    min(|g_rec| / (|g_adv| + delta), maximum)

    Args:
      reconstruction_grad: gradient of the reconstruction loss of the whole batch, by
        the decoder's last layer in VQGAN: an array or a pytree.
      adversarial_grad: that of the generator's loss, by the same parameters.
      maximum: of the weight.
      delta: added to the norm that divides.

    Returns:
      The weight [], float32 (float64 for float64 gradients), without a gradient.

    Raises:
      ValueError: if the gradients differ in structure or shapes.

    Source: arXiv:2012.09841, equation 7.

    >>> adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.5])).round(4)
    Array(2., dtype=float32)
    """
    shapes = [
        jax.tree.map(jnp.shape, grad)
        for grad in (reconstruction_grad, adversarial_grad)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "adversarial_grad must have the structure and shapes of "
            f"reconstruction_grad, {shapes[0]}; they are {shapes[1]}"
        )
    ratio = _norm(reconstruction_grad) / (_norm(adversarial_grad) + delta)
    return jax.lax.stop_gradient(jnp.minimum(ratio, maximum))


def per_example(x: Array) -> Array:
    """Return the mean over all axes but the first, [B]."""
    return x.mean(tuple(range(1, x.ndim)))


def _norm(tree: Any) -> Array:
    wide = (leaf.astype(compute_dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree))
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in wide))


def _wide(logits: Array, name: str) -> Array:
    logits = floating_batch(logits, name)
    return logits.astype(compute_dtype(logits.dtype))


def _pair(
    real: Array, fake: Array, names: tuple[str, str] = ("real", "fake")
) -> tuple[Array, Array]:
    real, fake = _wide(real, names[0]), _wide(fake, names[1])
    if real.shape != fake.shape:
        raise ValueError(
            f"{names[1]} must have the shape {real.shape} of {names[0]}; "
            f"it is {fake.shape}"
        )
    return real, fake
