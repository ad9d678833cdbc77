"""Glow on CIFAR-10, in bits per dimension.

    python -m experiments.train --config=cifar10_glow --config.data.directory=DIR

DIR holds the binary version (`data_batch_1.bin`, ...). Meant for one GPU: three scales
with 32 steps each and networks of 512 channels, as in the paper, whose model takes 3.35
bits per dimension (arXiv:1807.03039). The 90,000 steps here are 256 epochs, fewer than
the paper's. On a CPU only the mode `smoke` is sensible, which runs on made-up images of
the same shape.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "cifar10_glow"
    config.seed = 0

    config.data = {"name": "cifar10", "directory": ""}
    config.flip = True
    config.batch_size = 128

    config.layers = ("shift_and_scale(-0.5)",)
    config.model = "glow(levels=3, depth=32, width=512)"
    config.base = "normal"
    config.conditional = False
    config.init_batch = 256

    config.steps = 90_000
    config.learning_rate = 1e-3
    config.warmup = 1000
    config.weight_decay = 0.0
    config.clip_norm = 100.0
    config.accumulate = 1
    config.ema = 0.9995

    config.validation = {"held_out": 5000, "draws": 1}
    config.test = {"draws": 4}
    config.sampling = {"temperatures": (0.7, 1.0), "batch": 500}
    config.log_every = 100
    config.save_every = 3000
    config.tensorboard = False

    if mode == "smoke":
        config.name = "cifar10_glow_smoke"
        config.data["name"] = "synthetic_cifar10"
        config.batch_size = 8
        config.model = "glow(levels=2, depth=1, width=4)"
        config.init_batch = 32
        config.steps = 4
        config.warmup = 2
        config.validation["held_out"] = 16
        config.test["draws"] = 1
        config.sampling["batch"] = 64
        config.log_every = 2
        config.save_every = 2
    return config
