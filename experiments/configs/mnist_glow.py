"""Glow on MNIST, in bits per dimension.

    python -m experiments.train --config=mnist_glow --config.data.directory=DIR

DIR holds the four idx files, plain or gzipped. Meant for one GPU; others
report 1.06 bits per dimension for RealNVP and 1.05 for Glow (arXiv:1810.01367). On a
CPU only the mode `smoke` is sensible, which runs on made-up images of the same shape.
28 divides by 4 and not by 8: two scales.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "mnist_glow"
    config.seed = 0

    config.data = {"name": "mnist", "directory": ""}
    config.flip = False
    config.batch_size = 256

    config.layers = ("shift_and_scale(-0.5)",)
    config.model = "glow(levels=2, depth=32, width=256)"
    config.base = "normal"
    config.conditional = False
    config.init_batch = 256

    config.steps = 30_000
    config.learning_rate = 1e-3
    config.warmup = 1000
    config.weight_decay = 0.0
    config.clip_norm = 100.0
    config.accumulate = 1
    config.ema = 0.999

    config.validation = {"held_out": 5000, "draws": 1}
    config.test = {"draws": 10}
    config.sampling = {"temperatures": (0.7, 1.0), "batch": 1000}
    config.log_every = 100
    config.save_every = 1000
    config.tensorboard = False

    if mode == "smoke":
        config.name = "mnist_glow_smoke"
        config.data["name"] = "synthetic_mnist"
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
