"""Flow matching between any two distributions, and pairs for another round of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genlib.losses._parts import Predict, floating_batch, mean_square, returned, source
from genlib.losses._times import TimeSampler, uniform
from genlib.noise import (
    Interpolant,
    Path,
    Rectified,
    conditional_velocity,
    interpolate,
    is_stochastic,
)
from genlib.types import Array, Key


def flow_matching(
    key: Key,
    predict: Predict,
    x_0: Array,
    x_1: Array | None = None,
    *,
    interpolant: Interpolant | Path,
    times: TimeSampler = uniform,
) -> Array:
    """Return the squared error of a velocity network, per example.

    loss = mean((predict(x_t, t) - u_t)^2) with x_t = alpha x_0 + beta x_1 + gamma z and
    u_t = dx_t / dt, the mean over every axis but the batch (arXiv:2210.02747,
    arXiv:2302.00482, arXiv:2303.08797). Time runs from the data at 0 to the source at
    1, so the velocity points to the source.

    On `noise.LinearInterpolant()` it is rectified flow, with pairs of an optimal
    coupling OT-CFM; with those of a Schroedinger-bridge coupling on
    `noise.BridgeInterpolant(sigma)` SB-CFM. On these straight lines without noise,
    `prediction.denoiser(predict, noise.Rectified(), prediction.VELOCITY)` makes a
    denoiser, whatever the source is, with which any sampler goes from x_1 to x_0.

    Args:
      key: typed PRNG key, for times, noise, and the source if it is not given.
      predict: the network, `predict(x, t)` with x [B, ...] and t [B].
      x_0: data [B, ...].
      x_1: source, or other data, paired with `x_0`; None draws normal noise.
      interpolant: the process between them; of a `Path`, x_1 is the noise.
      times: `(key, path, n, dtype) -> [n]`, see the table of this room. For an
        interpolant that is no path it draws as on `noise.Rectified()`.

    Returns:
      Losses [B], float32 (float64 for float64 data).

    Raises:
      ValueError: if `x_0` or `x_1` is not a floating batch, their shapes differ, or the
        network returns another shape than it was given.

    >>> from genlib import noise
    >>> x_0, x_1 = jnp.zeros((2, 3)), jnp.ones((2, 3))
    >>> to_ones = lambda x, t: jnp.ones_like(x)
    >>> line = noise.LinearInterpolant()
    >>> flow_matching(jax.random.key(0), to_ones, x_0, x_1, interpolant=line)
    Array([0., 0.], dtype=float32)
    """
    x_0 = floating_batch(x_0)
    key_time, key_point = jax.random.split(key)
    x_1 = source(jax.random.fold_in(key_point, 0), x_0, x_1)
    t = times(key_time, time_domain(interpolant), x_0.shape[0], x_1.dtype)
    x_t, u_t = point_and_velocity(key_point, interpolant, x_0, x_1, t)
    x_in = x_t.astype(x_0.dtype)
    return mean_square(returned(predict(x_in, t), x_in) - u_t)


def reflow_pairs(
    transport: Callable[[Array], Array], x_1: Array, *, batch_size: int | None = None
) -> tuple[Array, Array]:
    """Return the pairs (x_0, x_1) of a trained flow, on which the next is trained.

    x_0 = transport(x_1): trajectories of a flow do not cross, so that `flow_matching`
    on its own pairs makes a straighter flow with the same ends (arXiv:2209.03003).

    Args:
      transport: carries a batch of the source to data, usually
        `lambda x_1: samplers.sample(samplers.heun(), denoise, path, times, x_1)`.
      x_1: source [N, ...].
      batch_size: how many are carried at a time; None for all at once.

    Returns:
      x_0 and x_1, both [N, ...], without gradient.

    Raises:
      ValueError: if `batch_size` is not positive, or the transport returns another
        shape than it was given.

    >>> x_0, x_1 = reflow_pairs(lambda x: x + 1, jnp.zeros((5, 2)), batch_size=2)
    >>> x_0.sum().item(), x_1.sum().item()
    (10.0, 0.0)
    """
    x_1 = jax.lax.stop_gradient(floating_batch(x_1, "x_1"))
    count = x_1.shape[0]
    size = count if batch_size is None else min(batch_size, count)
    if size < 1:
        raise ValueError(
            f"batch_size must be positive and x_1 not empty; they are {batch_size} "
            f"and {list(x_1.shape)}"
        )
    whole = count - count % size
    carry = lambda x: returned(transport(x), x, "transport").astype(x.dtype)
    parts = [
        jax.lax.map(carry, x_1[:whole].reshape(-1, size, *x_1.shape[1:])).reshape(
            whole, *x_1.shape[1:]
        )
    ]
    if whole < count:
        parts.append(carry(x_1[whole:]))
    return jax.lax.stop_gradient(jnp.concatenate(parts)), x_1


def time_domain(interpolant: Interpolant | Path) -> Path:
    """Return the path on which time samplers draw: they may ask for a log-SNR."""
    return interpolant if isinstance(interpolant, Path) else Rectified()


def point_and_velocity(
    key: Key, interpolant: Interpolant | Path, x_0: Array, x_1: Array, t: Array
) -> tuple[Array, Array]:
    """Return x_t and u_t in the dtype of `x_1`, with noise where there is a gamma."""
    z = None
    if is_stochastic(interpolant):
        z = jax.random.normal(jax.random.fold_in(key, 1), x_1.shape, x_1.dtype)
    wide = x_0.astype(x_1.dtype), x_1, t, z
    return interpolate(interpolant, *wide), conditional_velocity(interpolant, *wide)
