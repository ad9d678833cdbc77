"""A VQ-VAE on CIFAR-10 with finite scalar quantisation: 8x8 codes of 1000.

    python -m experiments.train --config=cifar10_vqvae --config.data.directory=DIR

DIR holds the six files of the binary version of CIFAR-10, see `experiments/data.py`.
Only the mode `smoke` was run: no number of it is known.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "cifar10_vqvae"
    config.seed = 0

    config.data = {"name": "cifar10", "directory": ""}
    config.flip = True
    config.batch_size = 128

    config.encoder = "ConvEncoder(features=64, multipliers=(1, 2, 2), blocks=2)"
    config.decoder = "ConvDecoder(features=64, multipliers=(1, 2, 2), blocks=2)"
    config.latent = 4
    config.bottleneck = ("fsq((8, 5, 5, 5))",)
    config.estimator = ""
    config.reconstruction = "squared_error"
    config.weights = ()
    config.init_batch = 256

    config.steps = 50_000
    config.learning_rate = 4e-4
    config.warmup = 500
    config.weight_decay = 1e-4
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.999

    config.sampling = {"batch": 200}
    config.log_every = 50
    config.save_every = 5000
    config.tensorboard = False

    if mode == "smoke":
        config.name = "cifar10_vqvae_smoke"
        config.data["name"] = "synthetic_cifar10"
        config.batch_size = 8
        config.encoder = "ConvEncoder(features=8, multipliers=(1, 1, 1), blocks=1)"
        config.decoder = "ConvDecoder(features=8, multipliers=(1, 1, 1), blocks=1)"
        config.init_batch = 8
        config.steps = 4
        config.warmup = 2
        config.log_every = 2
        config.save_every = 2
        config.sampling["batch"] = 64
    return config
