"""Autoencoders in the experiments: with codes or a normal posterior, on images.

A config with an entry `bottleneck` trains an autoencoder. What it has instead of a
diffusion model's path, kind and the rest:

| entry            | what it is                                                       |
|------------------|------------------------------------------------------------------|
| `encoder`        | a network of `genlib.nn`, without its channels                   |
| `decoder`        | the same                                                         |
| `latent`         | channels of the latents                                          |
| `bottleneck`     | a quantizer of `genlib.quantize` and perhaps others around it,   |
|                  | `("ema_vq(64)", "residual(depth=4)")`, or `("normal()",)`, the   |
|                  | posterior of a VAE, which takes `beta` and `free_bits`           |
| `reconstruction` | `squared_error`; of a VAE `gaussian(std)`, `bernoulli` (images   |
|                  | as shades of grey) or `discretized_logistic`, with learned       |
|                  | scales, whose bound counts the bits of pixels                    |
| `estimator`      | of quantizers that take one: `straight_through` or `rotate`; ""  |
|                  | for the usual one                                                |
| `weights`        | of the quantizer's losses by name, () for the usual ones         |
| `init_batch`     | how many training images codebooks are fitted to                 |
| `samples`        | of the posterior for each test image, for its importance-        |
|                  | weighted likelihood                                              |
| `sampling`       | how many images at a time: `batch`                               |

What is measured is in `experiments/autoencoder_report.py`. Images are in [-1, 1],
and so are mean squared errors: they are four times those of images in [0, 1].
"""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build
from experiments._spec import called, part
from experiments.data import Split
from genlib import likelihood, nn, quantize, train
from genlib.types import Array, Key

ENCODERS = ("ConvEncoder", "PatchEncoder")
DECODERS = ("ConvDecoder", "PatchDecoder")
QUANTIZERS = ("vq", "ema_vq", "fsq", "residual_fsq", "lookup_free")
QUANTIZERS += ("binary_spherical", "gumbel", "simvq")
AROUND = ("grouped", "residual", "projected")
LIKELIHOODS = ("gaussian", "bernoulli", "discretized_logistic")


class Likelihood(NamedTuple):
    """Hold what a VAE's decoder says of an image.

    Attributes:
      channels: numbers that it emits for each of the image's.
      log_prob: `(x, raw) -> [B]` in nats, images in [-1, 1].
      image: `raw -> x`, the mean.
      counts: whether nats are those of pixels, not of a density.
    """

    channels: int
    log_prob: Callable[[Array, Array], Array]
    image: Callable[[Array], Array]
    counts: bool = False


class Model(NamedTuple):
    """Hold an autoencoder and what it is for.

    Attributes:
      autoencoder: a `VQVAE` or a `VAE`.
      size: values of an index, 0 of a VAE.
      emission: the likelihood of a VAE's decoder, or None.
      shape: of an image.
      levels: of its pixels.
    """

    autoencoder: Any
    size: int
    emission: Likelihood | None
    shape: tuple[int, ...]
    levels: int

    def encode(self, params: Any, x: Array) -> Array:
        """Return the latents of images: codes, or means of the posterior."""
        made = self.autoencoder.encode(params, x)
        return made if self.emission is not None else made.codes

    def latent_shape(self, params: Any) -> tuple[int, ...]:
        """Return the shape of the latents of one image; parameters may be shapes."""
        image = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        return jax.eval_shape(self.encode, params, image).shape[1:]

    def index_shape(self, params: Any) -> tuple[int, ...]:
        """Return the shape of the indices of one image, for a `VQVAE`."""
        image = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        made = jax.eval_shape(self.autoencoder.encode, params, image)
        return made.indices.shape[1:]

    def decode(self, params: Any, z: Array) -> Array:
        """Return images in about [-1, 1] of latents."""
        raw = self.autoencoder.decode(params, z)
        return raw if self.emission is None else self.emission.image(raw)


def is_autoencoder(config: build.Config) -> bool:
    """Tell whether a config trains an autoencoder."""
    return "bottleneck" in config


def model(config: build.Config, shape: tuple[int, ...], levels: int) -> Model:
    """Build the autoencoder of a config, for images of a shape [H, W, C].

    Raises:
      ValueError: if an entry names no part, or one that cannot be built.
    """
    here, channels = sys.modules[__name__], shape[-1]
    first, *around = config.bottleneck
    is_vae = first.startswith("normal")
    bottleneck, told, emission = None, {}, None
    if is_vae:
        if around:
            raise ValueError(f"bottleneck must be normal() alone, got {around[0]!r}")
        if config.get("samples", 0) < 1:
            raise ValueError("samples must be at least 1 for a VAE, got none")
        told = part("bottleneck", called(first), here, ("normal",))
        emission = part(
            "reconstruction",
            called(config.reconstruction),
            here,
            LIKELIHOODS,
            levels=levels,
        )
    else:
        given = {}
        if config.get("estimator", ""):
            given["estimator"] = part(
                "estimator", config.estimator, quantize, ("straight_through", "rotate")
            )
        if first.startswith(("vq", "ema_vq")):
            given["parts"] = config.accumulate
        bottleneck = part("bottleneck", called(first), quantize, QUANTIZERS, **given)
        for text in around:
            bottleneck = part(
                "bottleneck", called(text), quantize, AROUND, quantizer=bottleneck
            )
        if config.reconstruction != "squared_error":
            raise ValueError(
                'reconstruction must be "squared_error" for codes, got '
                f"{config.reconstruction!r}"
            )

    def encoder(rngs: Any) -> Any:
        sizes = dict(in_channels=channels, out_channels=config.latent * (1 + is_vae))
        return part("encoder", config.encoder, nn, ENCODERS, rngs=rngs, **sizes)

    def decoder(rngs: Any) -> Any:
        out = channels * (emission.channels if emission else 1)
        sizes = dict(in_channels=config.latent, out_channels=out)
        return part("decoder", config.decoder, nn, DECODERS, rngs=rngs, **sizes)

    if emission is not None:
        made: Any = nn.vae(encoder, decoder, emission.log_prob, **told)
    else:
        assert bottleneck is not None
        weights = dict(config.get("weights", ()))
        made = nn.vqvae(encoder, decoder, bottleneck, weights=weights)
    size = 0 if bottleneck is None else bottleneck.size
    return Model(made, size, emission, tuple(shape), levels)


def initial(config: build.Config, model: Model, split: Split) -> Callable[[Key], Any]:
    """Return `key -> params`, with codebooks fitted to images from all over a split."""
    count = len(split.labels)
    rows = np.linspace(0, count - 1, min(config.init_batch, count)).astype(int)
    x = split.images[rows]
    return lambda key: model.autoencoder.init(key, jnp.asarray(x))


def shapes(config: build.Config, model: Model) -> Any:
    """Return the shapes and dtypes of the parameters, without any data."""
    images = np.zeros((config.init_batch, *model.shape), np.float32)
    split = Split(images, np.zeros(config.init_batch, np.int32))
    return jax.eval_shape(initial(config, model, split), jax.random.key(0))


def loss_function(model: Model) -> train.LossFn:
    """Build the loss: its terms are metrics, and codebooks get their statistics."""

    def loss_fn(params: Any, batch: Any, key: Key) -> tuple[Any, ...]:
        made = model.autoencoder.loss(key, params, batch["image"])
        size = made.loss.size
        aux = {name: (term.sum(), size) for name, term in made.terms.items()}
        sums = made.loss.sum(), size, aux
        return sums if model.emission else (*sums, made.statistics)

    return loss_fn


def settings(model: Model) -> dict[str, Any]:
    """Return what `train.make_step` is to be told of codebooks, if there are any."""
    if isinstance(model.autoencoder, nn.VAE):
        return {}
    return {"trainable": quantize.trainable, "absorb": model.autoencoder.update}


def normal(beta: float = 1.0, free_bits: float = 0.0) -> dict[str, float]:
    """Return the settings of a normal posterior."""
    return {"beta": beta, "free_bits": free_bits}


def gaussian(std: float = 0.1, *, levels: int) -> Likelihood:
    """Return N(raw, std^2), a density of images in [-1, 1]."""
    log_std = math.log(std)
    log_prob = lambda x, raw: likelihood.gaussian(x, raw, log_std)
    return Likelihood(1, log_prob, lambda raw: raw)


def bernoulli(*, levels: int) -> Likelihood:
    """Return the likelihood of images as shades between black and white."""
    log_prob = lambda x, raw: likelihood.bernoulli((x + 1) / 2, raw)
    return Likelihood(1, log_prob, lambda raw: 2 * jax.nn.sigmoid(raw) - 1)


def discretized_logistic(*, levels: int) -> Likelihood:
    """Return the likelihood of pixels, each with a mean and a scale of its own."""

    def split(raw: Array) -> tuple[Array, Array]:
        mean, log_scale = jnp.split(raw, 2, axis=-1)
        return mean, log_scale - 1.0

    def log_prob(x: Array, raw: Array) -> Array:
        mean, log_scale = split(raw)
        return likelihood.discretized_logistic(x, mean, log_scale, levels)

    def image(raw: Array) -> Array:
        """Return the mean over the levels: P(x > k) added up over all but the last."""
        mean, log_scale = split(raw)

        def add(k: Any, total: Array) -> Array:
            edge = (2 * k + 1) / (levels - 1) - 1
            return total + jax.nn.sigmoid((mean - edge) * jnp.exp(-log_scale))

        above = jax.lax.fori_loop(0, levels - 1, add, jnp.zeros_like(mean))
        return 2 * above / (levels - 1) - 1

    return Likelihood(2, log_prob, image, counts=True)
