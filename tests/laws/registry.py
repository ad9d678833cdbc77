"""One registry for each concept; every entry passes the same laws."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib import guidance, losses, metrics, noise, prediction, samplers
from genlib.types import expand_like

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/spine.json").read_text())

MIXTURE = metrics.GaussianMixture(
    **{name: np.array(value) for name, value in GOLDEN["mixture"].items()}
)
X_UNIT = np.array(GOLDEN["x_unit"])

# For programs that run once: compiling them fast matters more than running them fast.
jit_once = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
# For programs that take long to run, wherever XLA_FLAGS ask for fast compiling.
jit_optimized = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 3}
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
# The laws of paths and cheap tests run on these too; the batteries of kinds and of
# solvers, where every path is another program to compile, do not.
MORE_PATHS = {
    "sub_vp": noise.SubVP(),
    "linear_vp": noise.LinearVP(),
    "polynomial": noise.Polynomial(3.0),
    "shifted_rectified": noise.Shifted(noise.Rectified(), 3.0),
    "shifted_cosine": noise.Shifted(noise.Cosine(), 4.0),
    "interpolated_cosine": noise.InterpolatedShift(noise.Cosine(), 1.0, 8.0),
}
KINDS = {
    "x0": prediction.X0,
    "eps": prediction.EPS,
    "v": prediction.V,
    "score": prediction.SCORE,
    "velocity": prediction.VELOCITY,
    "edm": prediction.EDM(0.9),
    "consistency": prediction.Consistency(0.9),
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
# The cheap laws run on these too; they sample the mixture on two paths, from x_0 alone.
MORE_SOLVERS = {
    "dpmpp_3m": samplers.dpmpp_3m(),
    "dpmpp_3m_compat": samplers.dpmpp_3m(compat=True),
    "dpm_solver_multistep_3": samplers.dpm_solver_multistep(3),
    "dpm_solver_2": samplers.dpm_solver(2),
    "dpm_solver_3": samplers.dpm_solver(3),
    "dpmpp_2s": samplers.dpmpp_2s(),
    "dpmpp_3s": samplers.dpmpp_3s(),
    "deis_3": samplers.deis(3),
    "deis_2_t": samplers.deis(2, "t"),
    "lms_4": samplers.lms(4),
    "adams_bashforth_3": samplers.adams_bashforth(3),
    "pndm": samplers.pndm(),
    "pndm_runge_kutta": samplers.pndm(runge_kutta=True),
    "unipc_2": samplers.unipc(2),
    "unipc_3_bh1": samplers.unipc(3, "bh1"),
    "unipc_2_eps": samplers.unipc(2, of="eps"),
    "dpm2": samplers.dpm2(),
    "dpm2_ancestral": samplers.dpm2_ancestral(),
    "dpmpp_2s_ancestral": samplers.dpmpp_2s_ancestral(),
    "dpmpp_sde": samplers.dpmpp_sde(),
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde(),
    "dpmpp_3m_sde": samplers.dpmpp_3m_sde(0.5),
    "sa_solver": samplers.sa_solver(3, 3),
    "heun_churn": samplers.heun(samplers.Churn(20.0)),
    "predictor_corrector": samplers.predictor_corrector(samplers.ddim(), 0.1),
    "addim": samplers.addim(),
}
# These jump to the end of the grid with one call: samplers of consistency functions.
FEW_STEP_SOLVERS = {"consistency": samplers.consistency(), "tcd": samplers.tcd()}
GRIDS = {
    "uniform": samplers.uniform,
    "uniform_log_snr": samplers.uniform_log_snr,
    "karras": samplers.karras,
    "polyexponential": lambda path, n: samplers.polyexponential(path, n, 2.0),
    "beta": samplers.beta,
    "power": samplers.power,
    "flow_shifted": samplers.flow_shifted,
    "entropic": lambda path, n: samplers.entropic(
        path, n, lambda log_snr: 1 / (1 + np.exp(log_snr))
    ),
}
WEIGHTS = {
    "unit": losses.unit,
    "snr": losses.snr,
    "edm": losses.edm(0.5),
    "min_snr": losses.min_snr(5.0),
    "soft_min_snr": losses.soft_min_snr(),
    "sigmoid": losses.sigmoid(),
    "p2": losses.p2(),
    "sigma_sqrt": losses.sigma_sqrt,
    "cosmap": losses.cosmap,
    "likelihood": losses.likelihood,
    "vdm++": losses.per_log_snr(losses.sigmoid(-3.0)),
    "flat_x0": losses.on_x0(jnp.ones_like),
}
ADAPTIVE_TIMES = {
    "loss_second_moment": losses.loss_second_moment(8, history=3),
    "adaptive_log_snr": losses.adaptive_log_snr(-8.0, 9.0, 8, decay=0.9),
}
TIMES = {
    "uniform": losses.uniform,
    "stratified": losses.stratified,
    "low_discrepancy": losses.low_discrepancy,
    "logit_normal": losses.logit_normal(),
    "mode": losses.mode(),
    "beta": losses.beta(2.0, 0.7),
    "log_normal_sigma": losses.log_normal_sigma(),
    "log_logistic_sigma": losses.log_logistic_sigma(),
    "uniform_log_snr": losses.uniform_log_snr(),
    "uniform_on": losses.uniform_on(noise.Cosine()),
    **{
        name: adaptive.times(adaptive.init())
        for name, adaptive in ADAPTIVE_TIMES.items()
    },
}


class Gaussian(NamedTuple):
    """Data N(mean, std^2), the cheapest exact denoiser to compile."""

    mean: float
    std: float

    def denoiser(self, path):
        def denoise(x_t, t):
            alpha, sigma = (expand_like(c, x_t) for c in path(t))
            gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
            return (self.mean + gain * (x_t - alpha * self.mean)).astype(x_t.dtype)

        return denoise

    def log_density(self, path, x_t, t):
        alpha, sigma = (expand_like(c, x_t) for c in path(t))
        variance = alpha**2 * self.std**2 + sigma**2
        squares = (x_t - alpha * self.mean) ** 2 / variance
        return -0.5 * jnp.sum(squares + jnp.log(variance), axis=-1)


CONDITION, WHOLE = Gaussian(0.5, 0.4), Gaussian(-0.2, 0.9)


def _adaptive_projected(c, u, scale, path, momentum):
    settings = {"eta": 0.3, "norm_threshold": 0.7, "momentum": momentum}
    return guidance.adaptive_projected(
        c, u, scale, **settings, path=path, kind=prediction.V
    )


def _classifier(c, u, scale, path):
    # log p(y | x_t) by Bayes, up to a constant.
    log_likelihood = lambda x, t: (
        CONDITION.log_density(path, x, t) - WHOLE.log_density(path, x, t)
    )
    return guidance.classifier(u, log_likelihood, scale, path)


def _measured(method, **settings):
    see_first = lambda x: x[:, :1]
    return lambda c, u, scale, path: method(
        u, see_first, jnp.full((3, 1), 0.4), scale, path, **settings
    )


# Each is called with (conditional, unconditional, scale, path).
GUIDANCE = {
    "classifier_free": lambda c, u, s, path: guidance.classifier_free(c, u, s),
    "autoguidance": lambda c, u, s, path: guidance.autoguidance(c, u, s),
    "compose": lambda c, u, s, path: guidance.compose(u, [c], [s]),
    "adaptive_projected": lambda *args: _adaptive_projected(*args, momentum=0.0),
    "momentum": lambda *args: _adaptive_projected(*args, momentum=-0.5),
    "cfg_zero_star": guidance.cfg_zero_star,
    "tangential": guidance.tangential,
    "classifier": _classifier,
    "dps": _measured(guidance.dps),
    "dps_noise_std": _measured(guidance.dps, noise_std=0.5),
    "pigdm": _measured(guidance.pigdm),
    "mmps": _measured(guidance.mmps, noise_std=0.1),
    "interval": lambda c, u, s, path: guidance.interval(
        guidance.classifier_free(c, u, s), c, path, -2.0, 2.0
    ),
    "linear_scale": lambda c, u, s, path: guidance.classifier_free(
        c, u, guidance.linear_scale(path, 1.0, s)
    ),
    "cosine_scale": lambda c, u, s, path: guidance.classifier_free(
        c, u, guidance.cosine_scale(path, 1.0, s)
    ),
    "rescale": lambda c, u, s, path: guidance.rescale(
        guidance.classifier_free(c, u, s), c, path=path, kind=prediction.EPS
    ),
    "static_threshold": lambda c, u, s, path: guidance.static_threshold(
        guidance.classifier_free(c, u, s), -0.8, 0.8
    ),
    "dynamic_threshold": lambda c, u, s, path: guidance.dynamic_threshold(
        guidance.classifier_free(c, u, s), 0.9, 0.8
    ),
}


def traced_once(function):
    """Return the function, which fails when it is traced a second time."""
    traces = []

    def once(*args):
        traces.append(None)
        assert len(traces) == 1, "traced again"
        return function(*args)

    return once


def each(registry):
    """Return the arguments of `pytest.mark.parametrize` for a registry."""
    return {"argvalues": list(registry.values()), "ids": list(registry)}


def inner_times(path, n=9):
    """Return times well inside a path, spread over its noise levels."""
    return samplers.uniform_log_snr(path, n, to_zero=False)[1:-1].astype(np.float32)
