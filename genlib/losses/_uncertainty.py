"""Losses weighed by an uncertainty that the network learns."""

import jax.numpy as jnp

from genlib.types import Array


def uncertainty(loss: Array, log_variance: Array) -> Array:
    """Return loss / exp(u) + u, with a learned log-variance u of each example's loss.

    At its best u = ln E[loss] at every noise level, and gradients of all levels have
    one scale (arXiv:2312.02696; arXiv:1705.07115). In EDM2, u is a linear layer
    on Fourier features of c_noise, trained with the network and thrown away.

    Args:
      loss: weighted losses [B], as `denoising` returns them.
      log_variance: u, [B].

    Returns:
      Losses [B] with the dtype of `loss`; they may be negative.

    Raises:
      ValueError: if shapes differ.

    >>> round(uncertainty(jnp.array([2.0]), jnp.log(jnp.array([2.0]))).item(), 4)
    1.6931
    """
    if log_variance.shape != loss.shape:
        raise ValueError(
            f"log_variance must have the shape {loss.shape} of loss; "
            f"it is {log_variance.shape}"
        )
    u = log_variance.astype(loss.dtype)
    return loss * jnp.exp(-u) + u
