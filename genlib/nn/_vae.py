"""Variational autoencoders with a normal posterior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib import losses
from genlib.nn._autoencoder_terms import (
    AutoencoderLoss,
    Distance,
    Make,
    distance,
    like,
    network,
    over_axes,
    per_example,
)
from genlib.types import Array, Key, Scalar, check_typed_key, compute_dtype


class VAE(NamedTuple):
    """A variational autoencoder, as pure functions.

    Attributes:
      init: `(key, x) -> params`, a dict of "encoder" and "decoder".
      posterior: `(params, x, key=None) -> (mean, log_std)` of q(z | x), [B, ..., D] in
        at least float32. The key is for dropout.
      encode: `(params, x, key=None) -> z`: a draw of the posterior, without a key its
        mean; in the dtype of x, of bits and other integers in float32.
      decode: `(params, z, key=None) -> raw`, what the likelihood takes of the decoder.
      loss: `(key, params, x, annealing=1.0) -> AutoencoderLoss`: minus the evidence
        lower bound in nats, and its terms "reconstruction" and "kl". `annealing` is a
        factor of beta, such as `losses.cyclical_annealing` gives.
      log_joint: `(params, z, x) -> ln p(x | z) + ln p(z)` [B] in nats, which
        `losses.iwae` and `likelihood.importance_weighted` take.
    """

    init: Callable[..., Any]
    posterior: Callable[..., tuple[Array, Array]]
    encode: Callable[..., Array]
    decode: Callable[..., Array]
    loss: Callable[..., AutoencoderLoss]
    log_joint: Callable[..., Array]


def vae(
    encoder: Make,
    decoder: Make,
    log_likelihood: Callable[[Array, Array], Array],
    *,
    beta: Scalar = 1.0,
    free_bits: Scalar = 0.0,
    perceptual: Distance | None = None,
    perceptual_weight: Scalar = 1.0,
) -> VAE:
    """Make a VAE with the prior N(0, I) of an encoder and a decoder.

    loss = -ln p(x | z) + beta KL(q(z | x), N(0, I)) with z drawn from q, and the KL
    divergence in closed form: minus the evidence lower bound for beta = 1.

    Args:
      encoder: `rngs -> module`, x [B, ...] to [B, ..., 2 D]: the means of the latents,
        and the logs of their standard deviations. Modules may take a `key` for dropout.
      decoder: `rngs -> module`, latents [B, ..., D] to whatever the likelihood takes.
      log_likelihood: `(x, raw) -> [B]`, ln p(x | z) in nats, of what the decoder made
        of z: `likelihood.bernoulli`, or another of the table of `genlib.likelihood`.
      beta: weight of the KL divergence (arXiv:1804.03599 is its view as a bottleneck).
      free_bits: nats of each latent variable that cost nothing, see
        `losses.free_bits`.
      perceptual: `(raw, x) -> [B]`, such as a distance of the features of a network;
        the decoder then returns the shape of x. Or None.
      perceptual_weight: of that.

    Returns:
      A `VAE`.

    Raises:
      ValueError: when called, if the encoder returns an odd number of channels, or a
        term is not one number for each example.

    Source: arXiv:1312.6114; beta: Higgins et al., ICLR 2017.

    >>> from flax import nnx
    >>> from genlib import likelihood, nn
    >>> model = nn.vae(
    ...     lambda rngs: nnx.Linear(6, 4, rngs=rngs),
    ...     lambda rngs: nnx.Linear(2, 6, rngs=rngs),
    ...     lambda x, raw: likelihood.gaussian(x, raw, -1.0),
    ... )
    >>> x = jnp.ones((4, 6))
    >>> params = model.init(jax.random.key(0), x)
    >>> loss = model.loss(jax.random.key(1), params, x).loss
    >>> model.encode(params, x).shape, loss.shape
    ((4, 2), (4,))
    """
    init_encoder, run_encoder = network(encoder)
    init_decoder, run_decoder = network(decoder)

    def init(key: Key, x: Array) -> Any:
        key_encoder, key_decoder = jax.random.split(key)
        encoder, decoder = init_encoder(key_encoder), init_decoder(key_decoder)
        return {"encoder": encoder, "decoder": decoder}

    def posterior(params: Any, x: Array, key: Key | None = None) -> tuple[Array, Array]:
        raw = run_encoder(params["encoder"], x, key)
        if raw.shape[-1] % 2:
            raise ValueError(
                "encoder must return [B, ..., 2 D], means and logs of standard "
                f"deviations; it returned {raw.shape}"
            )
        mean, log_std = jnp.split(raw.astype(compute_dtype(raw.dtype)), 2, axis=-1)
        return mean, log_std

    def encode(params: Any, x: Array, key: Key | None = None) -> Array:
        mean, log_std = posterior(params, x)
        z = mean if key is None else losses.reparameterize(key, mean, log_std)
        return like(z, x)

    def decode(params: Any, z: Array, key: Key | None = None) -> Array:
        return run_decoder(params["decoder"], z, key)

    def loss(
        key: Key, params: Any, x: Array, annealing: Scalar = 1.0
    ) -> AutoencoderLoss:
        check_typed_key(key)
        key_encoder, key_z, key_decoder = jax.random.split(key, 3)
        moments = posterior(params, x, key_encoder)
        kl = losses.kl_normal(*moments)
        z = like(losses.reparameterize(key_z, *moments), x)
        raw = decode(params, z, key_decoder)
        nats = per_example("log_likelihood", log_likelihood(x, raw), x)
        total = over_axes(jnp.sum, losses.free_bits(kl, free_bits))
        total = beta * annealing * total - nats
        terms = {"reconstruction": -nats, "kl": over_axes(jnp.sum, kl)}
        if perceptual is not None:
            terms["perceptual"] = distance("perceptual", perceptual, raw, x)
            total = total + perceptual_weight * terms["perceptual"]
        return AutoencoderLoss(total, terms, raw)

    def log_joint(params: Any, z: Array, x: Array) -> Array:
        raw = decode(params, like(z, x))
        nats = per_example("log_likelihood", log_likelihood(x, raw), x)
        squares = jnp.square(z) + jnp.log(2 * jnp.pi)
        return nats - 0.5 * over_axes(jnp.sum, squares)

    return VAE(init, posterior, encode, decode, loss, log_joint)
