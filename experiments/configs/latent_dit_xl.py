"""Class-conditional latent diffusion at the size of DiT-XL/2, on ImageNet latents.

    python -m experiments.train --config=latent_dit_xl --config.data.directory=FILE
    python -m experiments.aot --config=latent_dit_xl --topology=v5e:16x16 \\
        --config.mesh.data=2 --config.mesh.fsdp=128

FILE is an .npz of latents 32x32x4 of some autoencoder (256x256 images at a factor of
8) and labels of 1000 classes. The run has not been made at this size, for want of a
machine: no number of its samples is known. What was done: the mode `smoke`, seconds on
made-up latents, runs; and the second command compiles the train step for TPU pods that
are only described, which says how much memory and communication it takes.

The network, batch, rate and average are those of DiT-XL/2 (arXiv:2212.09748): width
1152, depth 28, 16 heads, 118.6 G multiply-adds for an image. It is trained as a flow
with times from a logit-normal (arXiv:2403.03206), where that paper diffuses in 1000
steps and learns its variances.

Parameters, averages and moments are split over "fsdp" (the default without rules),
whose size has to divide 1152. With one image on a chip, the second command prints 0.13
GB a chip for v5e:16x16 (of 16 GB); for the 6144 chips of v5p:16x16x24 as 16 x 384 it is
0.20 (of 95). An image takes 0.95 TFLOP, with what is computed twice.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "latent_dit_xl"
    config.seed = 0

    config.data = {"name": "latents", "directory": ""}
    config.flip = False
    config.batch_size = 256

    config.model = (
        "DiT(features=1152, depth=28, patch_size=2, num_heads=16, remat=True, "
        "dtype='bfloat16')"
    )
    config.path = "Rectified()"
    config.kind = "VELOCITY"
    config.weight = "unit"
    config.times = "logit_normal()"
    config.drop_labels = 0.1

    config.steps = 400_000
    config.learning_rate = 1e-4
    config.warmup = 1000
    config.weight_decay = 0.0
    config.clip_norm = 1.0
    config.accumulate = 1
    config.ema = 0.9999

    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    config.sharding = ()
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
    config.name = "latent_dit_xl_smoke"
    config.data["name"] = "synthetic_latents"
    config.batch_size = 8
    config.model = (
        "DiT(features=16, depth=2, patch_size=8, num_heads=2, remat=True, "
        "dtype='bfloat16')"
    )
    config.steps = 6
    config.warmup = 2
    config.log_every = 3
    config.save_every = 3
    config.sampling["steps"] = 2
    config.sampling["batch"] = 1000
    config.evaluation = {"samples": 100, "solvers": ("heun",), "nfe": (3,)}
