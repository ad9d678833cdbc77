"""A transformer over the codes of a VQ-VAE, on the 8x8 digits of scikit-learn.

    python -m experiments.train --config=digits_code_prior

Needs no data and no GPU. Took 407 s, both stages and the measurements, on two CPU cores
that other work shared. Measured with jax 0.10.2, seed 0: 4.19 bits a code on the 397
held-out digits (64 equally likely codes have 6), squared Frechet distance 0.730 of 2000
samples to these digits (training digits 0.351), 88.6 % of the samples in the right
class by a logistic regression (right on 97.7 % of the held-out digits).
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import digits_vqvae


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "digits_code_prior"
    config.seed = 0

    config.autoencoder = digits_vqvae.get_config(mode)
    config.autoencoder_workdir = ""
    config.data = {"name": "digits", "directory": ""}
    config.flip = False
    config.batch_size = 128

    config.prior = "code_prior(features=64, depth=3, num_heads=4, dropout=0.1)"
    config.drop_labels = 0.1

    config.steps = 1000
    config.learning_rate = 1e-3
    config.warmup = 50
    config.weight_decay = 0.01
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.99

    config.sampling = {"temperature": 1.0, "guidance": 1.0, "batch": 500}
    config.evaluation = {"samples": 2000}
    config.log_every = 50
    config.save_every = 500
    config.tensorboard = False

    if mode == "smoke":
        config.name = "digits_code_prior_smoke"
        config.batch_size = 16
        config.prior = "code_prior(features=8, depth=1, num_heads=2)"
        config.steps = 4
        config.warmup = 2
        config.log_every = 2
        config.save_every = 2
        config.evaluation = {"samples": 100}
    return config
