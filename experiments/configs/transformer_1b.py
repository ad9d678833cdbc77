"""A denoiser of a billion parameters: a diffusion transformer split over two axes.

    python -m experiments.train --config=transformer_1b --config.data.directory=FILE
    python -m experiments.aot --config=transformer_1b --topology=v5e:16x16 \\
        --rows=1 --config.mesh.data=2 --config.mesh.fsdp=32

FILE is an .npz of latents 32x32x4 and labels of 1000 classes, as for `latent_dit_xl`.
The run has not been made, for want of a machine: no number of its samples is known, and
no setting is tuned. What was done: the mode `smoke`, seconds on the digits of
scikit-learn, runs; and the second command compiles the train step for TPU pods that are
only described.

Width 1536, depth 24, 12 heads of 128 (what a TPU multiplies at once), patches of 2.
Matrices are split over "fsdp" and "tensor": those that make heads and hidden units by
columns, those that read them by rows. With one row on a chip (--rows=1) the second
command prints 134.6 MB of state and 111.5 MB of temporaries a chip, and in the loop of
24 blocks 1.8 GB of all-gathers, 0.5 GB of reduce-scatters, 0.4 GB of
collective-permutes (of products that overlap their communication) and 0.2 GB of
all-reduces a step (jax 0.10.2, libtpu 0.0.42.1).
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "transformer_1b"
    config.seed = 0

    config.data = {"name": "latents", "directory": ""}
    config.flip = False
    config.batch_size = 1024

    config.model = (
        "DiT(features=1536, depth=24, patch_size=2, num_heads=12, remat=True, "
        "dtype='bfloat16')"
    )
    config.path = "Rectified()"
    config.kind = "VELOCITY"
    config.weight = "unit"
    config.times = "logit_normal()"
    config.drop_labels = 0.1

    config.steps = 400_000
    config.learning_rate = 1e-4
    config.warmup = 5000
    config.weight_decay = 0.0
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.9999

    config.mesh = {"data": 1, "fsdp": -1, "tensor": 4}
    config.sharding = (
        (
            r"blocks/(attention/qkv|feedforward/hidden|modulation)/kernel",
            (None, "fsdp", "tensor"),
        ),
        (r"blocks/(attention|feedforward)/out/kernel", (None, "tensor", "fsdp")),
    )
    config.precision = "bfloat16"

    config.sampling = {
        "solver": "heun",
        "grid": "uniform",
        "steps": 50,
        "guidance": 1.5,
        "batch": 100,
    }
    config.evaluation = {"samples": 10_000, "solvers": ("heun",), "nfe": (99,)}
    config.log_every = 100
    config.save_every = 5000
    config.tensorboard = False

    if mode == "smoke":
        _shrink(config)
    return config


def _shrink(config: Any) -> None:
    config.name = "transformer_1b_smoke"
    config.data["name"] = "digits"
    config.batch_size = 16
    config.model = (
        "DiT(features=16, depth=2, patch_size=4, num_heads=2, remat=True, "
        "dtype='bfloat16')"
    )
    config.steps = 6
    config.warmup = 2
    config.log_every = 3
    config.save_every = 3
    config.mesh["tensor"] = 1
    config.sampling["steps"] = 2
    config.evaluation = {"samples": 100, "solvers": ("heun",), "nfe": (3,)}
