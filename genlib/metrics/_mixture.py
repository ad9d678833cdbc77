"""The Gaussian mixture, whose denoiser is known exactly at every noise level."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genlib.noise import Path
from genlib.tree import register_dataclass
from genlib.types import Array, ArrayLike, Denoiser, Key, expand_like


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The mixture sum_k w_k N(mu_k, s_k^2 I), perturbed by any (alpha, sigma).

    x_t = alpha x_0 + sigma eps is again a mixture, with means alpha mu_k and variances
    v_k = alpha^2 s_k^2 + sigma^2, so that density, score and E[x_0 | x_t] are closed
    forms. A sampler driven by `denoiser(path)` has no error but its own.

    Attributes:
      weights: [K], positive, summing to 1.
      means: [K, D].
      stds: [K], positive.

    >>> mixture = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(1))
    >>> mixture.denoise(jnp.ones((1, 2)), alpha=0.6, sigma=0.8)  # E = alpha x_t
    Array([[0.6, 0.6]], dtype=float32)
    """

    weights: ArrayLike
    means: ArrayLike
    stds: ArrayLike

    def log_density(
        self, x: Array, alpha: ArrayLike = 1.0, sigma: ArrayLike = 0.0
    ) -> Array:
        """Return log q(x_t) in nats.

        Args:
          x: [B, D].
          alpha: a scalar or [B].
          sigma: a scalar or [B].

        Returns:
          [B].
        """
        return jax.nn.logsumexp(self._log_joint(x, alpha, sigma)[0], axis=-1)

    def score(self, x: Array, alpha: ArrayLike = 1.0, sigma: ArrayLike = 0.0) -> Array:
        """Return the score grad_x log q(x_t).

        Args:
          x: [B, D].
          alpha: a scalar or [B].
          sigma: a scalar or [B].

        Returns:
          [B, D].
        """
        log_joint, offset, variance, _ = self._log_joint(x, alpha, sigma)
        share = jax.nn.softmax(log_joint, axis=-1)
        return -jnp.sum((share / variance)[..., None] * offset, axis=1)

    def denoise(self, x: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
        """Return E[x_0 | x_t], finite at alpha = 0 and at sigma = 0.

        Args:
          x: x_t, [B, D].
          alpha: a scalar or [B].
          sigma: a scalar or [B].

        Returns:
          [B, D].
        """
        log_joint, offset, variance, alpha = self._log_joint(x, alpha, sigma)
        share = jax.nn.softmax(log_joint, axis=-1)
        gain = alpha * jnp.square(jnp.asarray(self.stds, x.dtype))[None] / variance
        component = jnp.asarray(self.means, x.dtype)[None] + gain[..., None] * offset
        return jnp.sum(share[..., None] * component, axis=1)

    def denoiser(self, path: Path) -> Denoiser:
        """Return the exact denoiser (x_t, t) -> E[x_0 | x_t] on a path.

        `prediction.convert(path, denoise(x, t), x, t, prediction.X0, kind)` makes it
        the exact network of any kind.
        """

        def denoise(x_t: Array, t: ArrayLike) -> Array:
            dtype = jnp.promote_types(x_t.dtype, jnp.float32)
            return self.denoise(x_t.astype(dtype), *path(t)).astype(x_t.dtype)

        return denoise

    def sample(self, key: Key, n: int, dtype: Any = jnp.float32) -> Array:
        """Draw n samples [n, D]."""
        key_component, key_noise = jax.random.split(key)
        means, stds = jnp.asarray(self.means, dtype), jnp.asarray(self.stds, dtype)
        logits = jnp.log(jnp.asarray(self.weights, dtype))
        k = jax.random.categorical(key_component, logits, shape=(n,))
        eps = jax.random.normal(key_noise, (n, means.shape[1]), dtype)
        return means[k] + stds[k, None] * eps

    def responsibilities(
        self, x: Array, alpha: ArrayLike = 1.0, sigma: ArrayLike = 0.0
    ) -> Array:
        """Return p(k | x_t) [B, K]: how likely x came from each component."""
        return jax.nn.softmax(self._log_joint(x, alpha, sigma)[0], axis=-1)

    def _log_joint(self, x: Array, alpha: ArrayLike, sigma: ArrayLike):
        """Return log q(k, x_t) [B, K], x_t - alpha mu_k, v_k and alpha [B or 1, 1]."""
        alpha = jnp.atleast_2d(expand_like(alpha, x)).astype(x.dtype)
        sigma = jnp.atleast_2d(expand_like(sigma, x)).astype(x.dtype)
        means, stds = jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)
        variance = jnp.square(alpha * stds[None]) + jnp.square(sigma)
        offset = x[:, None, :] - alpha[..., None] * means[None]
        dimension = x.shape[-1]
        log_joint = (
            jnp.log(jnp.asarray(self.weights, x.dtype))[None]
            - 0.5 * dimension * jnp.log(2 * jnp.pi * variance)
            - 0.5 * jnp.sum(jnp.square(offset), axis=-1) / variance
        )
        return log_joint, offset, variance, alpha
