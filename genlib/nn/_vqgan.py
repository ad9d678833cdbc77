"""Autoencoders that a discriminator judges."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib import losses, tree
from genlib.nn._autoencoder_terms import (
    AutoencoderLoss,
    Make,
    like,
    network,
    over_axes,
    per_example,
)
from genlib.nn._vae import VAE
from genlib.nn._vqvae import VQVAE
from genlib.types import Array, Key, Scalar

Regularizer = Callable[[Key, Callable[[Array], Array], Array, Array], Array]


class VQGAN(NamedTuple):
    """An autoencoder and a discriminator, as pure functions.

    Attributes:
      init: `(key, x) -> params`, a dict of "autoencoder" and "discriminator", as
        `train.make_step` takes it with a loss for each.
      autoencoder_loss: `(key, params, x, adversarial=1.0) -> AutoencoderLoss`, with the
        terms of the autoencoder, "adversarial" and "adversarial_weight". The factor
        `adversarial` is 0 until the discriminator is to be heard.
      discriminator_loss: `(key, params, x) -> AutoencoderLoss`, with the terms
        "real" and "fake", the mean logits, and "penalty" of a regularizer.
      update: `(params, statistics) -> params` for the statistics of the autoencoder,
        the `absorb` of that part.
      autoencoder: the `VQVAE` or `VAE`, which takes `params["autoencoder"]`.
    """

    init: Callable[..., Any]
    autoencoder_loss: Callable[..., AutoencoderLoss]
    discriminator_loss: Callable[..., AutoencoderLoss]
    update: Callable[..., Any]
    autoencoder: VQVAE | VAE


def vqgan(
    autoencoder: VQVAE | VAE,
    discriminator: Make,
    *,
    generator: Callable[[Array], Array] = losses.hinge_generator,
    judge: Callable[[Array, Array], Array] = losses.hinge_discriminator,
    regularizer: Regularizer | None = None,
    weight: Scalar = 0.8,
    adaptive: str | None = "output/kernel",
    maximum: Scalar = 1e4,
) -> VQGAN:
    """Add a discriminator to an autoencoder: VQGAN, or with a `vae` its KL version.

    autoencoder: loss + weight lambda generator(D(x_hat)), lambda = |d loss / d w| / (|d
    generator / d w| + 1e-6) for the last layer w of the decoder; discriminator:
    judge(D(x), D(x_hat)) + regularizer.

    Args:
      autoencoder: from `vqvae` or `vae`, whose decoder returns the shape of x.
      discriminator: `rngs -> module`, x [B, ...] to logits [B, ...], positive for
        real, such as `PatchDiscriminator`. It may take a `key` for dropout.
      generator: of the logits of x_hat, [B].
      judge: of the logits of x and of x_hat, [B].
      regularizer: `(key, discriminate, x, x_hat) -> [B]`, added to the discriminator's
        loss, such as `lambda key, d, x, x_hat: losses.r1(d, x)`.
      weight: of the adversarial term.
      adaptive: path of the decoder's last layer, from whose gradients lambda is
        computed; None for lambda = 1. The gradients are those of the batch that the
        loss sees: microbatches and the devices of `shard_map` have each their own.
      maximum: of lambda.

    Returns:
      A `VQGAN`. In `train.make_step` both parts have a loss and an optimizer, under the
      names of the parameters, with `absorb={"autoencoder": model.update}` for codes.

    Raises:
      ValueError: when called, if `adaptive` is no parameter of the decoder, or a term
        is not one number for each example.

    Source: arXiv:2012.09841 equations 5 to 7; with a `vae` arXiv:2112.10752.

    >>> from flax import nnx
    >>> from genlib import nn, quantize
    >>> make = lambda a, b: lambda rngs: nnx.Linear(a, b, rngs=rngs)
    >>> codes = quantize.fsq((5, 5))
    >>> model = nn.vqgan(
    ...     nn.vqvae(make(6, 2), make(2, 6), codes), make(6, 1), adaptive="kernel"
    ... )
    >>> x, key = jnp.ones((4, 6)), jax.random.key(0)
    >>> params = model.init(key, x)
    >>> model.autoencoder_loss(key, params, x).loss.shape
    (4,)
    """
    init_discriminator, run_discriminator = network(discriminator)

    def init(key: Key, x: Array) -> Any:
        key_autoencoder, key_discriminator = jax.random.split(key)
        return {
            "autoencoder": autoencoder.init(key_autoencoder, x),
            "discriminator": init_discriminator(key_discriminator),
        }

    def fool(params: Any, key: Key, x_hat: Array) -> Array:
        logits = run_discriminator(params["discriminator"], x_hat, key)
        return per_example("generator", generator(logits), x_hat)

    def autoencoder_loss(
        key: Key, params: Any, x: Array, adversarial: Scalar = 1.0
    ) -> AutoencoderLoss:
        key_own, key_fool = jax.random.split(key)
        made = autoencoder.loss(key_own, params["autoencoder"], x)
        fooling = fool(params, key_fool, made.x_hat)
        factor = jnp.ones((), fooling.dtype)
        if adaptive is not None:

            def both(own: Any) -> tuple[Array, Array]:
                made = autoencoder.loss(key_own, own, x)
                return made.loss.sum(), fool(params, key_fool, made.x_hat).sum()

            factor = _balance(both, params["autoencoder"], adaptive, maximum)
        factor = weight * factor
        terms = made.terms | {
            "adversarial": fooling,
            "adversarial_weight": jnp.broadcast_to(factor, fooling.shape),
        }
        loss = made.loss + adversarial * factor * fooling
        return made._replace(loss=loss, terms=terms)

    def discriminator_loss(key: Key, params: Any, x: Array) -> AutoencoderLoss:
        key_own, *keys = jax.random.split(key, 4)
        made = autoencoder.loss(key_own, params["autoencoder"], x)
        fake = like(jax.lax.stop_gradient(made.x_hat), x)
        own = params["discriminator"]
        discriminate = lambda x, key=None: run_discriminator(own, x, key)
        real, unreal = discriminate(x, keys[0]), discriminate(fake, keys[1])
        loss = per_example("judge", judge(real, unreal), x)
        terms = {
            name: over_axes(jnp.mean, y)
            for name, y in (("real", real), ("fake", unreal))
        }
        if regularizer is not None:
            penalty = regularizer(keys[2], discriminate, x, fake)
            terms["penalty"] = per_example("regularizer", penalty, x)
            loss = loss + terms["penalty"]
        return AutoencoderLoss(loss, terms, fake)

    def update(params: Any, statistics: Any) -> Any:
        if isinstance(autoencoder, VAE):
            return params
        changed = autoencoder.update(params["autoencoder"], statistics)
        return {**params, "autoencoder": changed}

    return VQGAN(init, autoencoder_loss, discriminator_loss, update, autoencoder)


def _balance(
    both: Callable[[Any], tuple[Array, Array]],
    params: Any,
    path: str,
    maximum: Scalar,
) -> Array:
    """Return lambda, from the gradients of two sums over the batch."""
    leaves = tree.named(params["decoder"])
    if path not in leaves:
        raise ValueError(
            f"adaptive must be a parameter of the decoder, one of {', '.join(leaves)}; "
            f"it is {path!r}"
        )
    structure = jax.tree.structure(params["decoder"])

    def of_last_layer(w: Array) -> tuple[Array, Array]:
        changed = jax.tree.unflatten(structure, (leaves | {path: w}).values())
        return both({**params, "decoder": changed})

    (loss, fooling), pullback = jax.vjp(of_last_layer, leaves[path])
    (own,) = pullback((jnp.ones_like(loss), jnp.zeros_like(fooling)))
    (adversarial,) = pullback((jnp.zeros_like(loss), jnp.ones_like(fooling)))
    return losses.adaptive_weight(own, adversarial, maximum=maximum)
