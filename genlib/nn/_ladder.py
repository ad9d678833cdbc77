"""Variational autoencoders with a hierarchy of latents, from coarse to fine."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from genlib import losses
from genlib.nn._adapters import lazy
from genlib.nn._autoencoder_terms import AutoencoderLoss, per_example
from genlib.nn._ladder_network import LadderNetwork
from genlib.types import Array, Key, Scalar, example_keys


class LadderVAE(NamedTuple):
    """A variational autoencoder with a hierarchy of latents, as pure functions.

    Attributes:
      init: `(key, x) -> params`, for images like `x` [B, H, W, C].
      loss: `(key, params, x, annealing=1.0) -> AutoencoderLoss`: minus the evidence
        lower bound in nats, with its terms "reconstruction", "kl" and, of each group of
        latents from the first, "kl/0", "kl/1", ... `annealing` is a factor of beta.
      sample: `(key, params, count, *, temperature=1.0) -> raw`, what the likelihood
        takes, of latents from the prior with their standard deviations times the
        temperature.
      reconstruct: `(params, x, key=None) -> raw`, of latents from the posterior, or
        without a key of its means.
    """

    init: Callable[..., Any]
    loss: Callable[..., AutoencoderLoss]
    sample: Callable[..., Array]
    reconstruct: Callable[..., Array]


def ladder_vae(
    shape: tuple[int, int, int],
    features: int,
    log_likelihood: Callable[[Array, Array], Array],
    *,
    blocks: Sequence[int] = (2, 2, 2),
    latent: int = 16,
    hidden: int | None = None,
    out_channels: int | None = None,
    beta: Scalar = 1.0,
    free_bits: Scalar = 0.0,
    remat: bool | str = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> LadderVAE:
    """Make a very deep VAE: many groups of latents, each given those before it.

        p(x, z) = p(x | z) prod_l p(z_l | z_1 ... z_{l-1})
        q(z | x) = prod_l q(z_l | z_1 ... z_{l-1}, x)
        loss = -ln p(x | z) + beta sum_l max(KL(q_l || p_l), free_bits)

    for z drawn from q, with each KL divergence in closed form for its group given the
    groups before it. With beta 1 and no free bits it is, on average over the key, at
    least -ln p(x).

    A deterministic path goes up, from fine to coarse, halving the resolution between
    levels by means; `LadderBlock`s go down, each with the features of its resolution as
    context, doubling it by copies. Blocks of a level are stacked and run under
    `jax.lax.scan`: compile time grows with the levels only. In a new model posteriors
    and priors are N(0, 1), and `raw` is 0.

    Args:
        shape: `(H, W, C)` of the images, H and W divisible by `2**(len(blocks) - 1)`.
        features: channels of both paths.
        log_likelihood: `(x, raw) -> [B]`, ln p(x | z) in nats, of raw numbers
            `[B, H, W, out_channels]` in at least float32; see `genlib.likelihood`.
        blocks: groups of latents at each level, from the finest to the coarsest; as
            many residual blocks go up.
        latent: channels of a group of latents.
        hidden: channels inside the bottlenecks; None means a quarter of `features`.
        out_channels: raw numbers for each pixel; None means C.
        beta: weight of the KL divergences.
        free_bits: nats of each group that cost nothing, see `losses.free_bits`.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: dtype of the computation; densities are of at least float32.
        param_dtype: dtype of the parameters.

    Returns:
        A `LadderVAE`. It gives no estimate of log p(x) beyond the bound.

    Raises:
        ValueError: if a size is not positive or does not divide, `remat` is no policy,
            or when called with other images or a likelihood that is not one number for
            each example.

    Source: arXiv:1602.02282, arXiv:2011.10650.

    >>> import jax
    >>> from genlib import likelihood
    >>> model = ladder_vae((4, 4, 1), 8, likelihood.gaussian, blocks=(1, 1), latent=2)
    >>> x = jnp.ones((3, 4, 4, 1))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> result = jax.eval_shape(model.loss, jax.random.key(1), params, x)
    >>> result.loss.shape, sorted(result.terms)
    ((3,), ['kl', 'kl/0', 'kl/1', 'reconstruction'])
    """
    sizes = dict(blocks=tuple(blocks), latent=latent, hidden=hidden)
    kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
    out_channels = shape[-1] if out_channels is None else out_channels
    init_network, apply = lazy(
        lambda rngs: LadderNetwork(
            shape, features, out_channels, **sizes, remat=remat, rngs=rngs, **kwargs
        )
    )

    def checked(x: Array) -> Array:
        if x.ndim != 4 or x.shape[1:] != tuple(shape):
            raise ValueError(f"x must be [B, H, W, C] of {shape}, got shape {x.shape}")
        return x

    def init(key: Key, x: Array) -> Any:
        checked(x)
        return init_network(key)

    def loss(
        key: Key, params: Any, x: Array, annealing: Scalar = 1.0
    ) -> AutoencoderLoss:
        raw, kl = apply(params, len(x), checked(x), example_keys(key, x))
        nats = per_example("log_likelihood", log_likelihood(x, raw), x)
        groups = {f"kl/{i}": kl[:, i] for i in range(kl.shape[1])}
        terms = {"reconstruction": -nats, "kl": kl.sum(1), **groups}
        total = losses.free_bits(kl, free_bits).sum(1)
        return AutoencoderLoss(beta * annealing * total - nats, terms, raw)

    def sample(
        key: Key, params: Any, count: int, *, temperature: Scalar = 1.0
    ) -> Array:
        keys = example_keys(key, jnp.zeros(count))
        return apply(params, count, None, keys, temperature)[0]

    def reconstruct(params: Any, x: Array, key: Key | None = None) -> Array:
        keys = None if key is None else example_keys(key, x)
        return apply(params, len(x), checked(x), keys)[0]

    return LadderVAE(init, loss, sample, reconstruct)
