"""Penalties on the gradient of a discriminator in its input."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genlib.losses._adversarial import per_example
from genlib.losses._parts import floating_batch
from genlib.types import (
    Array,
    Key,
    Scalar,
    check_typed_key,
    compute_dtype,
    expand_like,
    safe_sqrt,
)

Discriminate = Callable[[Array], Array]


def gradient_penalty(
    key: Key,
    discriminate: Discriminate,
    real: Array,
    fake: Array,
    *,
    weight: Scalar = 10.0,
    target: Scalar = 1.0,
) -> Array:
    """Return WGAN-GP's penalty of a critic between data and generated examples.

    loss = weight (|grad D(x)| - target)^2 at x = u real + (1 - u) fake with one
    u ~ U(0, 1) for each pair; the norm is over all of an example. D(x) is the mean of
    its values where there are several, as of patches.

    The gradients of a batch are taken at once, so no example may see another: no batch
    norm. Where the gradient is 0 the penalty has the derivative 0.

    Args:
      key: typed PRNG key, for u.
      discriminate: D, `x [B, ...] -> [B]` or [B, ...].
      real: data [B, ...].
      fake: generated examples of the same shape; no gradient flows to them.
      weight: lambda of the paper.
      target: the norm that is asked for; 0 is the zero-centred penalty.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `key` is not a typed key, the examples are not floating or their
        shapes differ, or D does not return a value for each.

    Source: arXiv:1704.00028, equation 3.

    >>> critic = lambda x: x @ jnp.array([3.0, 4.0])
    >>> gradient_penalty(jax.random.key(0), critic, jnp.ones((2, 2)), jnp.zeros((2, 2)))
    Array([160., 160.], dtype=float32)
    """
    check_typed_key(key)
    real, fake = floating_batch(real, "real"), floating_batch(fake, "fake")
    if real.shape != fake.shape:
        raise ValueError(
            f"fake must have the shape {real.shape} of real; it is {fake.shape}"
        )
    u = jax.random.uniform(key, real.shape[:1], compute_dtype(real.dtype))
    u = expand_like(u, real)
    x = (u * real + (1 - u) * fake).astype(real.dtype)
    norms = safe_sqrt(_squared_norms(discriminate, x))
    return weight * jnp.square(norms - target)


def r1(discriminate: Discriminate, real: Array, *, gamma: Scalar = 10.0) -> Array:
    """Return the penalty of a discriminator's gradient at data, per example.

    loss = gamma / 2 |grad D(x)|^2, the norm over all of an example. D(x) is the logit,
    not a probability, and the mean of them where there are several, as of patches.

    No example may see another: no batch norm. StyleGAN2 takes it every 16th step only,
    with 16 times the gamma.

    Args:
      discriminate: D, `x [B, ...] -> [B]` or [B, ...].
      real: data [B, ...].
      gamma: weight; good ones depend on the data.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if the data is not floating or D does not return a value for each.

    Source: arXiv:1801.04406.

    >>> r1(lambda x: x @ jnp.array([3.0, 4.0]), jnp.ones((2, 2)))
    Array([125., 125.], dtype=float32)
    """
    return gamma / 2 * _squared_norms(discriminate, floating_batch(real, "real"))


def r2(discriminate: Discriminate, fake: Array, *, gamma: Scalar = 10.0) -> Array:
    """Return the penalty of a discriminator's gradient at generated examples.

    The same as `r1`, per example; no gradient flows to the examples.

    Args:
      discriminate: D, `x [B, ...] -> [B]` or [B, ...].
      fake: generated examples [B, ...].
      gamma: weight; good ones depend on the data.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if the examples are not floating or D does not return a value for
        each.

    Source: arXiv:1801.04406, arXiv:2501.05441.

    >>> r2(lambda x: x @ jnp.array([3.0, 4.0]), jnp.ones((2, 2)), gamma=1.0)
    Array([12.5, 12.5], dtype=float32)
    """
    return gamma / 2 * _squared_norms(discriminate, floating_batch(fake, "fake"))


def _squared_norms(discriminate: Discriminate, x: Array) -> Array:
    """Return |grad D(x)|^2 of each example, [B]."""

    def total(wide: Array) -> Array:
        values = discriminate(wide.astype(x.dtype))
        if values.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"discriminate must return a value for each of {x.shape[0]} examples; "
                f"it returned the shape {values.shape}"
            )
        return per_example(values.astype(wide.dtype)).sum()

    wide = jax.lax.stop_gradient(x.astype(compute_dtype(x.dtype)))
    return jnp.square(jax.grad(total)(wide)).sum(tuple(range(1, x.ndim)))
