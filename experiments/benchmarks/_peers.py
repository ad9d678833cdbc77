"""The sampling loops of other libraries, with the same trivial network.

| library         | what is timed                                                    |
|-----------------|------------------------------------------------------------------|
| `diffusers`     | a scheduler, `set_timesteps` and all calls of `step`             |
| `k-diffusion`   | `sample_*` over sigmas                                           |
| `azula`         | a `Sampler` on its cosine schedule                               |
| `flow_matching` | `ODESolver.sample`, torchdiffeq on a fixed grid                  |

All are eager. Where a library leaves the choice, it is the cheapest one: networks
predict x_0, nothing is clipped or thresholded, no progress is shown.
"""

from collections.abc import Callable
from typing import Any

Loops = dict[str, Callable[[], Any]]
Library = Callable[[tuple[int, ...], int], Loops]


def importable() -> dict[str, Library]:
    """Return the libraries that can be imported, and print why the others cannot."""
    found = {}
    for name, library in LIBRARIES.items():
        try:
            library((1, 1, 1, 1), 2)
            found[name] = library
        # Missing modules, and binaries that do not fit each other.
        except (ImportError, OSError, RuntimeError) as error:
            print(f"skipped {name}: {str(error).splitlines()[0]}")
    return found


def diffusers(shape: tuple[int, ...], steps: int) -> Loops:
    """Return the loops of schedulers."""
    import diffusers as library  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    x_0 = {"prediction_type": "sample"}
    unclipped = {"clip_sample": False, **x_0}
    multistep = library.DPMSolverMultistepScheduler
    sde = {"algorithm_type": "sde-dpmsolver++"}
    schedulers = {
        "ddim": library.DDIMScheduler(**unclipped),
        "ddpm": library.DDPMScheduler(**unclipped),
        "euler": library.FlowMatchEulerDiscreteScheduler(),
        "heun": library.HeunDiscreteScheduler(**x_0),
        "dpmpp_2m": multistep(**x_0),
        "dpmpp_2m_sde": multistep(**x_0, **sde),
        "dpmpp_sde, Brownian": library.DPMSolverSDEScheduler(),  # eps alone
    }
    start = torch.randn(shape)

    @torch.inference_mode()
    def run(scheduler):
        scheduler.set_timesteps(steps)
        x = start
        # Flow schedulers have no input to scale.
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        for t in scheduler.timesteps:
            x = scheduler.step(0.5 * scale(x, t), t, x).prev_sample
        return x

    return {name: lambda s=s: run(s) for name, s in schedulers.items()}


def k_diffusion(shape: tuple[int, ...], steps: int) -> Loops:
    """Return its samplers; the SDE ones with a Brownian tree and without."""
    import torch  # pyright: ignore[reportMissingImports]
    from k_diffusion import sampling  # pyright: ignore[reportMissingImports]

    start = 20.0 * torch.randn(shape)
    sigmas = torch.linspace(3.0, -3.0, steps + 1).exp()  # those of no clamped step
    independent = {"noise_sampler": lambda sigma, sigma_next: torch.randn_like(start)}
    known = {
        "ddim": (sampling.sample_euler, {}),
        "ddpm": (sampling.sample_euler_ancestral, {}),
        "heun": (sampling.sample_heun, {}),
        "dpmpp_2m": (sampling.sample_dpmpp_2m, {}),
        "dpmpp_2m_sde": (sampling.sample_dpmpp_2m_sde, independent),
        "dpmpp_2m_sde, Brownian": (sampling.sample_dpmpp_2m_sde, {}),
        "dpmpp_sde, Brownian": (sampling.sample_dpmpp_sde, {}),
    }
    denoise = lambda x, sigma: 0.5 * x

    def run(sample, settings):
        return sample(denoise, start, sigmas, disable=True, **settings)

    return {name: lambda c=call: run(*c) for name, call in known.items()}


def azula(shape: tuple[int, ...], steps: int) -> Loops:
    """Return its samplers; the exponential Adams one of order 2 is 2M with "heun"."""
    import torch  # pyright: ignore[reportMissingImports]
    from azula import denoise, noise, sample  # pyright: ignore[reportMissingImports]

    class Half(denoise.Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = noise.CosineSchedule()

        def forward(self, x_t, t, **kwargs):
            return denoise.DiracPosterior(mean=0.5 * x_t)

    start, settings = torch.randn(shape), {"steps": steps, "silent": True}
    known = {
        "ddim": sample.DDIMSampler(Half(), **settings),
        "ddpm": sample.DDPMSampler(Half(), **settings),
        "heun": sample.HeunSampler(Half(), **settings),
        "dpmpp_2m": sample.xEABSampler(Half(), order=2, **settings),
    }
    return {name: lambda s=s: s(start) for name, s in known.items()}


def flow_matching(shape: tuple[int, ...], steps: int) -> Loops:
    """Return Euler's and Heun's method, whose network is the velocity itself."""
    import torch  # pyright: ignore[reportMissingImports]
    from flow_matching.solver import (  # pyright: ignore[reportMissingImports]
        ODESolver,
    )

    solver = ODESolver(velocity_model=lambda x, t: 0.5 * x)
    start, grid = torch.randn(shape), torch.linspace(0.0, 1.0, steps + 1)
    methods = {"euler": "euler", "heun": "heun2"}

    def run(method):
        return solver.sample(start, None, method=method, time_grid=grid)

    return {name: lambda m=method: run(m) for name, method in methods.items()}


LIBRARIES: dict[str, Library] = {
    "diffusers": diffusers,
    "k-diffusion": k_diffusion,
    "azula": azula,
    "flow_matching": flow_matching,
}
