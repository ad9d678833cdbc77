"""One registry for each concept; every entry passes the same laws."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genlib import losses, metrics, noise, prediction, samplers

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/spine.json").read_text())

MIXTURE = metrics.GaussianMixture(
    **{name: np.array(value) for name, value in GOLDEN["mixture"].items()}
)
X_UNIT = np.array(GOLDEN["x_unit"])

# For programs that run once: compiling them fast matters more than running them fast.
jit_once = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

LINEAR_BETAS = np.linspace(1e-4, 0.02, 1000)
SHORT_BETAS = np.linspace(1e-3, 0.2, 100)  # the same noise in a tenth of the steps
ZERO_SNR_BETAS = np.append(SHORT_BETAS[:-1], 1.0)

PATHS = {
    "vp": noise.VPLinear(),
    "cosine": noise.Cosine(),
    "rectified": noise.Rectified(),
    "ve": noise.VE(0.01, 50.0),
    "edm": noise.EDM(),
    "betas": noise.DiscreteBetas(SHORT_BETAS),
    "betas_zero_snr": noise.DiscreteBetas(ZERO_SNR_BETAS),
}
KINDS = {
    "x0": prediction.X0,
    "eps": prediction.EPS,
    "v": prediction.V,
    "score": prediction.SCORE,
    "velocity": prediction.VELOCITY,
    "edm": prediction.EDM(0.9),
}
SOLVERS = {
    "ddim": samplers.ddim(),
    "ddim_half": samplers.ddim(0.5),
    "ddpm": samplers.ddpm(),
    "ddpm_large": samplers.ddpm("large"),
    "euler": samplers.euler(),
    "heun": samplers.heun(),
    "midpoint": samplers.midpoint(),
    "ralston": samplers.ralston(),
    "dpmpp_2m": samplers.dpmpp_2m(),
    "dpmpp_2m_heun": samplers.dpmpp_2m("heun"),
}
GRIDS = {
    "uniform": samplers.uniform,
    "uniform_log_snr": samplers.uniform_log_snr,
    "karras": samplers.karras,
}
WEIGHTS = {
    "unit": losses.unit,
    "snr": losses.snr,
    "edm": losses.edm(0.5),
    "min_snr": losses.min_snr(5.0),
    "flat_x0": losses.on_x0(jnp.ones_like),
}
TIMES = {
    "uniform": losses.uniform,
    "stratified": losses.stratified,
    "log_normal_sigma": losses.log_normal_sigma(),
    "logit_normal": losses.logit_normal(),
}


def each(registry):
    """Return the arguments of `pytest.mark.parametrize` for a registry."""
    return {"argvalues": list(registry.values()), "ids": list(registry)}


def inner_times(path, n=9):
    """Return times well inside a path, spread over its noise levels."""
    return samplers.uniform_log_snr(path, n, to_zero=False)[1:-1].astype(np.float32)
