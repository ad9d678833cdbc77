"""The variational bound of an autoencoder, in nats per example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from genlib.losses._kl import free_bits as limited
from genlib.losses._kl import kl_normal
from genlib.losses._latents import (
    Posterior,
    draw,
    like,
    log_density,
    normal_posterior,
    numbers,
    sample_keys,
    total,
)
from genlib.types import Array, Key, Scalar, concrete


class ELBO(NamedTuple):
    """The negative evidence lower bound and its terms, nats per example.

    Attributes:
      loss: reconstruction + beta kl, the latter with free bits, [B].
      reconstruction: -E_q log p(x|z), [B].
      kl: KL(q(z|x), p(z)) itself, [B].
    """

    loss: Array
    reconstruction: Array
    kl: Array


def elbo(
    key: Key,
    posterior: Posterior,
    log_likelihood: Callable[[Any, Any], Array],
    x: Any,
    *,
    beta: Scalar = 1.0,
    free_bits: Scalar | Callable[[Array], Array] = 0.0,
    samples: int = 1,
    prior: tuple[Any, Any] | Callable[[Any], Array] = (0.0, 0.0),
) -> ELBO:
    """Return the negative evidence lower bound of a variational autoencoder.

        loss = -E_q log p(x|z) + beta KL(q(z|x), p(z)),  q = N(mean, std^2)
                                                            (arXiv:1312.6114, eq. 3),

    with gradients through z = mean + std eps. With beta = 1 and no free bits it is, in
    expectation, at least -log p(x), and equal to it for the exact posterior.

    Args:
      key: typed PRNG key, for the latents.
      posterior: the encoder, `x -> (mean, log_std)`, [B, ...] or pytrees of such.
      log_likelihood: the decoder, `(z, x) -> log p(x|z)`, nats [B], such as
        `lambda z, x: likelihood.bernoulli(x, decode(z))`; z has the dtype of mean.
      x: data, B examples.
      beta: weight of the KL (beta-VAE), such as `cyclical_annealing(step, period)`.
      free_bits: nats of each latent that are free, see the function of this name, or a
        function of the KL of each latent [B, ...] that returns what to minimise.
      samples: how many z are drawn for each example.
      prior: mean and log-std of a normal p(z), each a scalar or like those of q; or a
        function, `z -> log p(z)` [B]: the KL is then estimated by the z that are drawn.

    Returns:
      An `ELBO` (loss, reconstruction, kl), float32 (float64 for float64 means).

    Raises:
      ValueError: if `samples` is less than 1, there are free bits although the prior is
        a function, the posterior's shapes differ, or the decoder or the prior does not
        return one number per example.

    >>> standard = lambda x: (0 * x, 0 * x)  # q(z|x) = p(z)
    >>> log_likelihood = lambda z, x: -x.sum(1)
    >>> x = jax.numpy.ones((1, 3))
    >>> elbo(jax.random.key(0), standard, log_likelihood, x).loss.item()
    3.0
    """
    keys = sample_keys(key, samples)
    if callable(prior) and (callable(free_bits) or concrete(free_bits) != 0):
        raise ValueError(
            "free_bits must be 0 if the prior is a function, for the KL of each latent "
            f"is then not known; it is {free_bits}"
        )
    mean, log_std = normal_posterior(posterior(x))

    def terms(key: Key) -> tuple[Array, Array | None]:
        wide, eps = draw(key, mean, log_std)
        z = like(wide, mean)
        nats = -numbers(log_likelihood(z, x), mean, "log_likelihood")
        if not callable(prior):
            return nats, None
        return nats, log_density(eps, log_std) - numbers(prior(z), mean, "prior")

    reconstruction, kl = jax.tree.map(lambda term: term.mean(0), jax.vmap(terms)(keys))
    if callable(prior):
        return ELBO(reconstruction + beta * kl, reconstruction, kl)
    others = (jax.tree.broadcast(value, mean) for value in prior)
    each = jax.tree.map(kl_normal, mean, log_std, *others)
    limit = free_bits if callable(free_bits) else lambda nats: limited(nats, free_bits)
    loss = reconstruction + beta * total(jax.tree.map(limit, each))
    return ELBO(loss, reconstruction, total(each))
