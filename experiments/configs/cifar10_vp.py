"""Maximum-likelihood diffusion on CIFAR-10, measured in bits per dimension.

    python -m experiments.train --config=cifar10_vp --config.data.directory=DIR

DIR holds the binary version (`data_batch_1.bin`, ...); adaptive steps need
`pip install genlib[adaptive]`. The run at this size has not been made, for want of a
GPU: no number of it is known. The mode `smoke`, seconds on made-up images, runs.

Uniformly dequantised images on the linear VP path. The error of eps with times uniform
in log-SNR is the bound on the likelihood, whose weight is -d log_snr / dt of that error
(arXiv:2101.09258, which draws times so as well). `likelihood.json` gets the bits per
dimension of the 10000 test images by the probability flow from sigma = 0.001, where a
dequantised pixel spreads over 0.008: an upper bound for images given their class, one
Hutchinson probe each. That takes some hundred passes over the test images: set
`likelihood.images` lower for a first look.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "cifar10_vp"
    config.seed = 0

    config.data = {"name": "cifar10", "directory": ""}
    config.flip = True
    config.dequantize = True
    config.batch_size = 128

    config.model = (
        "UNet(features=128, multipliers=(1, 2, 2), blocks=3, attention_at=(16,), "
        "image_size=32, dropout=0.1, dtype='bfloat16')"
    )
    config.path = "VPLinear()"
    config.kind = "V"
    config.weight = "snr"
    config.times = "uniform_log_snr(low=-10.0, high=13.8)"
    config.drop_labels = 0.1

    config.steps = 400_000
    config.learning_rate = 2e-4
    config.warmup = 5000
    config.weight_decay = 0.0
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.9999

    config.sampling = {
        "solver": "dpmpp_2m",
        "grid": "uniform_log_snr(sigma_min=0.002)",
        "steps": 50,
        "guidance": 1.0,
        "batch": 500,
    }
    config.evaluation = {
        "samples": 2000,
        "solvers": ("ddim", "dpmpp_2m"),
        "nfe": (20, 50),
    }
    config.likelihood = {
        "images": 10_000,
        "batch": 250,
        "probes": 1,
        "times": "adaptive(rtol=1e-5, atol=1e-5)",
    }
    config.log_every = 100
    config.save_every = 5000
    config.tensorboard = False

    if mode == "smoke":
        _shrink(config)
    return config


def _shrink(config: Any) -> None:
    config.name = "cifar10_vp_smoke"
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
    config.evaluation = {"samples": 50, "solvers": ("dpmpp_2m",), "nfe": (2,)}
    config.likelihood = {
        "images": 6,
        "batch": 4,
        "probes": 1,
        "times": "uniform_log_snr(steps=2, sigma_min=0.1, to_zero=False)",
    }
