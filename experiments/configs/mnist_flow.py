"""Flow matching on MNIST, with a small UNet.

    python -m experiments.train --config=mnist_flow --config.data.directory=DIR

DIR holds the four idx files, plain or gzipped. Meant for one GPU; nothing has been
measured on one yet. On a CPU only the mode `smoke` is sensible, which runs on made-up
images of the same shape.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "mnist_flow"
    config.seed = 0

    config.data = {"name": "mnist", "directory": ""}
    config.flip = False
    config.batch_size = 256

    config.model = "UNet(features=64, multipliers=(1, 2, 2), blocks=2, dropout=0.1)"
    config.path = "Rectified()"
    config.kind = "VELOCITY"
    config.weight = "unit"
    config.times = "logit_normal(mean=0.0, std=1.0)"
    config.drop_labels = 0.1

    config.steps = 20_000
    config.learning_rate = 5e-4
    config.warmup = 500
    config.weight_decay = 0.0
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.999

    config.sampling = {
        "solver": "heun",
        "grid": "uniform",
        "steps": 20,
        "guidance": 1.0,
        "batch": 500,
    }
    config.evaluation = {
        "samples": 2000,
        "solvers": ("euler", "heun", "dpmpp_2m"),
        "nfe": (10, 20, 50),
    }
    config.log_every = 100
    config.save_every = 2000
    config.tensorboard = False

    if mode == "smoke":
        config.name = "mnist_flow_smoke"
        config.data["name"] = "synthetic_mnist"
        config.batch_size = 8
        config.model = "UNet(features=8, multipliers=(1, 2), blocks=1, head_dim=8)"
        config.steps = 6
        config.warmup = 2
        config.log_every = 3
        config.save_every = 3
        config.sampling["steps"] = 2
        config.evaluation = {"samples": 50, "solvers": ("heun",), "nfe": (4,)}
    return config
