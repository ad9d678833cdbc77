"""One group of latents of a hierarchy: its prior, its posterior, and what it adds."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib import losses
from genlib.nn._layers import ZEROS, check_positive
from genlib.types import Array, Key, Scalar, compute_dtype, example_keys


class LadderBlock(nnx.Module):
    """Add one group of latents to the features of a top-down path.

    Prior `p(z | h) = N(m_p, s_p^2)` and posterior `q(z | h, context) = N(m_q, s_q^2)`,
    one latent vector for each pixel, then, with bottlenecks of four convolutions as
    networks,

        h <- h + f(h),  h <- h + P z,  h <- h + g(h),

    where f is computed together with the prior. Prior, posterior and f start at zero,
    so that q = p = N(0, 1); P and the last layer of g start smaller by `sqrt(depth)`.

    Args:
        features: channels of h.
        latent: channels of z.
        context: channels of the context; None means `features`.
        hidden: channels inside the bottlenecks; None means a quarter of `features`.
        kernel_size: side of the two inner convolutions of a bottleneck.
        depth: number of blocks in the hierarchy.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `h` `[B, H, W, features]`, `context` `[B, H, W, context]`, what the
    data say at this place, or None to draw z from the prior, `key` (one, or one for
    each example, or None for the mean of z) and `temperature`, a factor on the prior's
    standard deviation, and returns the new h and KL(q || p) in nats `[B]`, the sum over
    the group in at least float32, which is 0 without a context.

    Raises:
        ValueError: if a size is not positive, or when called with a context and a
            temperature at once.

    Source: arXiv:1602.02282, arXiv:2011.10650.

    >>> def call(key, h, context):
    ...     return LadderBlock(8, 2, rngs=nnx.Rngs(0))(h, context, key)
    >>> like = jax.ShapeDtypeStruct((3, 4, 4, 8), jnp.float32)
    >>> h, kl = jax.eval_shape(call, jax.random.key(0), like, like)
    >>> h.shape, kl.shape
    ((3, 4, 4, 8), (3,))
    """

    def __init__(
        self,
        features: int,
        latent: int,
        *,
        context: int | None = None,
        hidden: int | None = None,
        kernel_size: int = 3,
        depth: int = 1,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        context = features if context is None else context
        hidden = max(1, features // 4) if hidden is None else hidden
        check_positive(features=features, latent=latent, context=context)
        check_positive(hidden=hidden, kernel_size=kernel_size, depth=depth)
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }

        def bottleneck(inputs: int, outputs: int, last: Any) -> Bottleneck:
            return Bottleneck(inputs, hidden, outputs, kernel_size, last, **kwargs)

        self.latent = latent
        self.prior = bottleneck(features, 2 * latent + features, ZEROS)
        self.posterior = bottleneck(features + context, 2 * latent, ZEROS)
        self.project = nnx.Linear(latent, features, kernel_init=small(depth), **kwargs)
        self.residual = bottleneck(features, features, small(depth))

    def __call__(
        self,
        h: Array,
        context: Array | None = None,
        key: Key | None = None,
        temperature: Scalar | None = None,
    ) -> tuple[Array, Array]:
        wide = compute_dtype(h.dtype)
        # Densities of less than float32 would not be those of the drawn latents.
        split = lambda raw: jnp.split(raw.astype(wide), 2, axis=-1)
        raw = self.prior(h)
        mean, log_std = split(raw[..., : 2 * self.latent])
        if context is None:
            kl = jnp.zeros(h.shape[0], wide)
            scale = 1.0 if temperature is None else temperature
        elif temperature is None:
            prior, scale = (mean, log_std), 1.0
            mean, log_std = split(self.posterior(jnp.concatenate([h, context], -1)))
            kl = losses.kl_normal(mean, log_std, *prior).sum((1, 2, 3))
        else:
            raise ValueError("temperature must be None with a context")
        z = mean
        if key is not None:
            draw = lambda key: jax.random.normal(key, z.shape[1:], wide)
            noise = jax.vmap(draw)(example_keys(key, h))
            z = mean + jnp.asarray(scale, wide) * jnp.exp(log_std) * noise
        h = h + raw[..., 2 * self.latent :] + self.project(z.astype(h.dtype))
        return h + self.residual(h), kl


class Bottleneck(nnx.Module):
    """Four convolutions, each after a GELU, the inner two of `kernel_size`."""

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        kernel_size: int,
        last: Any,
        **kwargs: Any,
    ):
        kernel = (kernel_size, kernel_size)
        self.input = nnx.Linear(in_features, hidden, **kwargs)
        self.conv_1 = nnx.Conv(hidden, hidden, kernel, **kwargs)
        self.conv_2 = nnx.Conv(hidden, hidden, kernel, **kwargs)
        self.output = nnx.Linear(hidden, out_features, kernel_init=last, **kwargs)

    def __call__(self, h: Array) -> Array:
        for layer in (self.input, self.conv_1, self.conv_2, self.output):
            h = layer(jax.nn.gelu(h))
        return h


class ResidualBottleneck(nnx.Module):
    """`h + bottleneck(h)`, one block of the bottom-up path."""

    def __init__(
        self, features: int, hidden: int, kernel_size: int, depth: int, **kwargs: Any
    ):
        self.bottleneck = Bottleneck(
            features, hidden, features, kernel_size, small(depth), **kwargs
        )

    def __call__(self, h: Array) -> Array:
        return h + self.bottleneck(h)


def small(depth: int) -> nnx.Initializer:
    """Start with a standard deviation that is smaller by `sqrt(depth)`."""
    return nnx.initializers.variance_scaling(1 / depth, "fan_in", "truncated_normal")
