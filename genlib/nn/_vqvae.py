"""Autoencoders around a bottleneck of codes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.nn._autoencoder_terms import (
    AutoencoderLoss,
    Distance,
    Make,
    distance,
    mean_squared_error,
    network,
    over_axes,
)
from genlib.quantize import Quantized, Quantizer
from genlib.types import Array, Key, Scalar

# What the losses of quantizers count for, unless they are given other weights.
WEIGHTS = {"commitment": 0.25, "codebook": 1.0, "entropy": 0.1, "kl": 5e-4}


class VQVAE(NamedTuple):
    """An autoencoder with a bottleneck of codes, as pure functions.

    Attributes:
      init: `(key, x) -> params`, a dict of "encoder", "decoder" and "quantizer", whose
        codebooks are fitted to the latents of the batch `x` [B, ...].
      encode: `(params, x, key=None) -> Quantized`, of latents [B, ..., D]. With a key
        it is the encoding of training: dropout, Gumbel noise and the like.
      decode: `(params, codes, key=None) -> x_hat`, of codes [B, ..., D].
      lookup: `(params, indices) -> x_hat`: indices, decoded.
      loss: `(key, params, x) -> AutoencoderLoss`, whose terms hold the "perplexity" of
        the batch too, the mean over codebooks if there are several. `key` may be None,
        for held-out data.
      update: `(params, statistics) -> params`, the `absorb` of `train.make_step`.
    """

    init: Callable[..., Any]
    encode: Callable[..., Quantized]
    decode: Callable[..., Array]
    lookup: Callable[..., Array]
    loss: Callable[..., AutoencoderLoss]
    update: Callable[..., Any]


def vqvae(
    encoder: Make,
    decoder: Make,
    quantizer: Quantizer,
    *,
    reconstruction: Distance = mean_squared_error,
    perceptual: Distance | None = None,
    perceptual_weight: Scalar = 1.0,
    weights: Mapping[str, Scalar] | None = None,
) -> VQVAE:
    """Make a VQ-VAE of an encoder, a decoder and a bottleneck.

    loss = reconstruction(x_hat, x) + perceptual_weight perceptual(x_hat, x)
    + sum_i weight_i (quantizer loss i), for each example, where x_hat is the decoded
    codes of the encoded x and a quantizer loss is its mean over the latents.

    Args:
      encoder: `rngs -> module`, x [B, ...] to latents [B, ..., D]. Modules may take a
        `key` for dropout.
      decoder: `rngs -> module`, codes [B, ..., D] to the shape of x.
      quantizer: any of `genlib.quantize`.
      reconstruction: `(x_hat, x) -> [B]`; by default the mean squared error.
      perceptual: the same, such as a distance of the features of a network; or None.
      perceptual_weight: of that.
      weights: of the quantizer's losses by name, instead of commitment 0.25, codebook
        1, entropy 0.1, kl 0.0005.

    Returns:
      A `VQVAE`. Give `quantize.trainable` to `train.init` and `train.make_step`, and
      `update` to the latter as `absorb`: without it averaged codebooks stay where
      `init` put them. With a `precision`, leave codebooks wide: `[("quantizer",
      "float32"), (".*", "bfloat16")]`. It takes no masks: for padded sequences call
      encoder, quantizer (with `mask`) and decoder yourself.

    Raises:
      ValueError: when called, if x_hat does not have the shape of x, a term is not one
        number for each example, or a loss of the quantizer has no weight.

    Source: arXiv:1711.00937 equation 3.

    >>> from flax import nnx
    >>> from genlib import nn, quantize
    >>> model = nn.vqvae(
    ...     lambda rngs: nnx.Linear(6, 2, rngs=rngs),
    ...     lambda rngs: nnx.Linear(2, 6, rngs=rngs),
    ...     quantize.fsq((5, 5)),
    ... )
    >>> x = jnp.ones((4, 3, 6))
    >>> params = model.init(jax.random.key(0), x)
    >>> model.encode(params, x).indices.shape, model.loss(None, params, x).loss.shape
    ((4, 3), (4,))
    """
    init_encoder, run_encoder = network(encoder)
    init_decoder, decode_codes = network(decoder)
    factors = {**WEIGHTS, **(weights or {})}

    def init(key: Key, x: Array) -> Any:
        key_encoder, key_decoder, key_codes = jax.random.split(key, 3)
        params = {"encoder": init_encoder(key_encoder)}
        z = run_encoder(params["encoder"], x)
        params["decoder"] = init_decoder(key_decoder)
        codebooks = quantizer.init(key_codes, z)
        return {**params, "quantizer": codebooks} if codebooks else params

    def encode(params: Any, x: Array, key: Key | None = None) -> Quantized:
        key_network, key_codes = (None, None) if key is None else jax.random.split(key)
        z = run_encoder(params["encoder"], x, key_network)
        return quantizer.quantize(params.get("quantizer", {}), z, key=key_codes)

    def decode(params: Any, codes: Array, key: Key | None = None) -> Array:
        return decode_codes(params["decoder"], codes, key)

    def lookup(params: Any, indices: Array) -> Array:
        return decode(params, quantizer.lookup(params.get("quantizer", {}), indices))

    def loss(key: Key | None, params: Any, x: Array) -> AutoencoderLoss:
        keys = (None, None) if key is None else jax.random.split(key)
        quantized = encode(params, x, keys[0])
        x_hat = decode(params, quantized.codes, keys[1])
        terms = {"reconstruction": distance("reconstruction", reconstruction, x_hat, x)}
        total = terms["reconstruction"]
        if perceptual is not None:
            terms["perceptual"] = distance("perceptual", perceptual, x_hat, x)
            total = total + perceptual_weight * terms["perceptual"]
        for name, value in quantized.losses.items():
            if name not in factors:
                raise ValueError(f"weights must have an entry {name!r}; they have none")
            terms[name] = over_axes(jnp.mean, value)
            total = total + factors[name] * terms[name]
        perplexity = jnp.broadcast_to(quantized.perplexity.mean(), total.shape)
        terms["perplexity"] = perplexity
        return AutoencoderLoss(total, terms, x_hat, quantized.statistics)

    def update(params: Any, statistics: Any) -> Any:
        if "quantizer" not in params:
            return params
        changed = quantizer.update(params["quantizer"], statistics)
        return {**params, "quantizer": changed}

    return VQVAE(init, encode, decode, lookup, loss, update)
