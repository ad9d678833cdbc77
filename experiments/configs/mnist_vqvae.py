"""A VQ-VAE on MNIST, with an averaged codebook: 7x7 codes of 256.

    python -m experiments.train --config=mnist_vqvae --config.data.directory=DIR

DIR holds the four idx files of MNIST, see `experiments/data.py`. Only the
mode `smoke` was run: no number of it is known.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "mnist_vqvae"
    config.seed = 0

    config.data = {"name": "mnist", "directory": ""}
    config.flip = False
    config.batch_size = 128

    config.encoder = "ConvEncoder(features=16, multipliers=(1, 2, 2), blocks=1)"
    config.decoder = "ConvDecoder(features=16, multipliers=(1, 2, 2), blocks=1)"
    config.latent = 16
    config.bottleneck = ("ema_vq(256, reset=0.1)",)
    config.estimator = ""
    config.reconstruction = "squared_error"
    config.weights = ()
    config.init_batch = 256

    config.steps = 2000
    config.learning_rate = 1e-3
    config.warmup = 50
    config.weight_decay = 1e-4
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.99

    config.sampling = {"batch": 200}
    config.log_every = 50
    config.save_every = 500
    config.tensorboard = False

    if mode == "smoke":
        config.name = "mnist_vqvae_smoke"
        config.data["name"] = "synthetic_mnist"
        config.batch_size = 8
        config.encoder = "ConvEncoder(features=8, multipliers=(1, 1, 1), blocks=1)"
        config.decoder = "ConvDecoder(features=8, multipliers=(1, 1, 1), blocks=1)"
        config.bottleneck = ("ema_vq(8, reset=0.1)",)
        config.init_batch = 8
        config.steps = 4
        config.warmup = 2
        config.log_every = 2
        config.save_every = 2
        config.sampling["batch"] = 64
    return config
