"""EDM on CIFAR-10, with a UNet.

    python -m experiments.train --config=cifar10_edm --config.data.directory=DIR

DIR holds the binary version (`data_batch_1.bin`, ...). The settings follow the
class-conditional CIFAR-10 run of arXiv:2206.00364, with a smaller UNet, for one GPU of
80 GB; nothing has been measured on one yet. On a CPU only the mode `smoke` is sensible,
which runs on made-up images of the same shape.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "cifar10_edm"
    config.seed = 0

    config.data = {"name": "cifar10", "directory": ""}
    config.flip = True
    config.batch_size = 512

    config.model = (
        "UNet(features=128, multipliers=(1, 2, 2), blocks=3, attention_at=(16,), "
        "image_size=32, dropout=0.13, dtype='bfloat16')"
    )
    config.path = "EDM(sigma_max=80.0)"
    config.kind = "EDM(sigma_data=0.5)"
    config.weight = "edm(sigma_data=0.5)"
    config.times = "log_normal_sigma(mean=-1.2, std=1.2)"
    config.drop_labels = 0.1

    config.steps = 200_000
    config.learning_rate = 1e-3
    config.warmup = 10_000
    config.weight_decay = 0.0
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.9993

    config.sampling = {
        "solver": "heun",
        "grid": "karras(rho=7.0)",
        "steps": 18,
        "guidance": 1.0,
        "batch": 500,
    }
    config.evaluation = {
        "samples": 2000,
        "solvers": ("ddim", "heun", "dpmpp_2m"),
        "nfe": (10, 20, 50),
    }
    config.log_every = 100
    config.save_every = 5000
    config.tensorboard = False

    if mode == "smoke":
        config.name = "cifar10_edm_smoke"
        config.data["name"] = "synthetic_cifar10"
        config.batch_size = 8
        config.model = (
            "UNet(features=8, multipliers=(1, 2), blocks=1, head_dim=8, "
            "attention_at=(16,), image_size=32)"
        )
        config.steps = 6
        config.warmup = 2
        config.log_every = 3
        config.save_every = 3
        config.sampling["steps"] = 2
        config.evaluation = {"samples": 50, "solvers": ("heun",), "nfe": (3,)}
    return config
