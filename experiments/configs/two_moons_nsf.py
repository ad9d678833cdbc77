"""A neural spline flow on two moons, whose density is known.

    python -m experiments.train --config=two_moons_nsf

Needs no data and no GPU. Took 44 s on two CPU cores, 34 s of it training. Measured
with jax 0.10.2, seed 0, in nats on 20,000 test points: 1.0046 +- 0.0052, where the true
density has 1.0003 on the same points (its entropy is 1.0076) and one Gaussian 1.9084.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(mode: str = "") -> ConfigDict:
    """Return the experiment, or with mode "smoke" one of seconds."""
    if mode not in ("", "smoke"):
        raise ValueError(f"mode of the config must be smoke or none, got {mode!r}")
    config: Any = ConfigDict()
    config.name = "two_moons_nsf"
    config.seed = 0

    config.data = {"name": "two_moons", "directory": ""}
    config.flip = False
    config.batch_size = 512

    config.layers = ("normalize",)
    config.model = "neural_spline_flow(depth=6, width=64)"
    config.base = "normal"
    config.conditional = False
    config.init_batch = 4096

    config.steps = 1500
    config.learning_rate = 2e-3
    config.warmup = 100
    config.weight_decay = 0.0
    config.clip_norm = 10.0
    config.accumulate = 1
    config.ema = 0.99

    config.validation = {"held_out": 20_000, "draws": 1}
    config.test = {"draws": 1}
    config.sampling = {"temperatures": (1.0,), "batch": 20_000}
    config.log_every = 100
    config.save_every = 500
    config.tensorboard = False

    if mode == "smoke":
        config.name = "two_moons_nsf_smoke"
        config.batch_size = 64
        config.model = "neural_spline_flow(depth=2, width=16)"
        config.steps = 20
        config.warmup = 2
        config.validation["held_out"] = 1000
        config.log_every = 10
        config.save_every = 10
    return config
