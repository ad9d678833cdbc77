"""A VQ-VAE on the 8x8 digits of scikit-learn, with an averaged codebook.

    python -m experiments.train --config=digits_vqvae

Needs no data and no GPU. Measured with jax 0.10.2, seed 0, on the 397 held-out digits:
mean squared error 0.0200 of images in [-1, 1] (23.0 dB; training digits 25.5), all 64
codes in use with perplexity 60.5. With 1000 steps instead of 500 the held-out error is
the same and that of the training digits 0.0042. Took 183 s on two CPU cores that other
work shared.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "digits_vqvae"
    config.seed = 0

    config.data = {"name": "digits", "directory": ""}
    config.flip = False
    config.batch_size = 128

    config.encoder = "ConvEncoder(features=24, multipliers=(1, 2), blocks=1)"
    config.decoder = "ConvDecoder(features=24, multipliers=(1, 2), blocks=1)"
    config.latent = 8
    config.bottleneck = ("ema_vq(64, reset=0.1)",)
    config.estimator = ""
    config.reconstruction = "squared_error"
    config.weights = ()
    config.init_batch = 512

    config.steps = 500
    config.learning_rate = 1e-3
    config.warmup = 50
    config.weight_decay = 1e-4
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.99

    config.sampling = {"batch": 500}
    config.log_every = 50
    config.save_every = 500
    config.tensorboard = False

    if mode == "smoke":
        config.name = "digits_vqvae_smoke"
        config.batch_size = 16
        network = "(features=4, multipliers=(1, 1), blocks=1, middle_attention=False)"
        config.encoder, config.decoder = (
            f"ConvEncoder{network}",
            f"ConvDecoder{network}",
        )
        config.bottleneck = ("ema_vq(8, reset=0.1)",)
        config.steps = 4
        config.warmup = 2
        config.log_every = 2
        config.save_every = 2
    return config
