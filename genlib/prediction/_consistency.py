"""The boundary condition of consistency models, imposed on any denoiser."""

import jax.numpy as jnp

from genlib.types import Array, ArrayLike, Denoiser, Scalar, expand_like, float_array


def latent_consistency(
    denoise: Denoiser,
    *,
    start: ArrayLike = 0.0,
    sigma_data: Scalar = 0.5,
    scaling: Scalar = 10.0,
) -> Denoiser:
    """Make a denoiser the identity at its first time, as latent consistency models do.

    f(x_t, t) = c_skip x_t + c_out denoise(x_t, t) with u = scaling (t - start),
    c_skip = sigma_data^2 / (u^2 + sigma_data^2) and
    c_out = u / (u^2 + sigma_data^2)^1/2 (arXiv:2310.04378): exactly 1 and 0 at `start`,
    and nearly 0 and 1 from the next step of a chain. Other than in `Consistency`, c_out
    has no factor sigma_data: it multiplies x_0 itself, not a network of unit variance
    (asked in huggingface/diffusers#8547), and f must be x_0 where there is much noise.

    Args:
      denoise: any denoiser; times count the steps of a chain (`noise.DiscreteBetas`).
      start: the time of the boundary. A chain of `diffusers` has it at its timestep 0,
        which is t = 1 here.
      sigma_data: standard deviation of the data.
      scaling: how steeply c_skip falls. On a path over [0, 1] that stands for N steps
        it is N times as large.

    Returns:
      The consistency function, itself a `Denoiser`.

    >>> f = latent_consistency(lambda x, t: 0 * x, start=1)
    >>> x = jnp.ones((1, 1))
    >>> f(x, 1.0).item(), round(f(x, 2.0).item(), 5)
    (1.0, 0.00249)
    """

    def consistent(x_t: Array, t: ArrayLike) -> Array:
        t = float_array(t)
        u = scaling * (t - start)
        norm = jnp.hypot(u, sigma_data)
        c_skip = expand_like(jnp.square(sigma_data / norm), x_t)
        c_out = expand_like(u / norm, x_t)
        return (c_skip * x_t + c_out * denoise(x_t, t)).astype(x_t.dtype)

    check = getattr(denoise, "check_start", None)
    if check is not None:
        consistent.check_start = check
    return consistent
