"""Samplers written by hand: the updates of the papers, their coefficients in an array.

What one would write for one solver, one path and one prediction, on the cosine path and
with a denoiser that knows no time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
Sampler = Callable[[Denoise, np.ndarray, jax.Array, jax.Array], jax.Array]


def ddim(denoise: Denoise, t: np.ndarray, x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample with DDIM, x_s = (s_s / s_t) x + (a_s - a_t s_s / s_t) x_0."""
    alpha, sigma = cosine(t)
    keep = sigma[1:] / sigma[:-1]
    rows = np.stack([t[:-1], keep, alpha[1:] - keep * alpha[:-1]], 1)

    def body(x, row):
        return row[1] * x + row[2] * denoise(x, row[0]), None

    return jax.lax.scan(body, x, jnp.asarray(rows, jnp.float32))[0]


def ddpm(denoise: Denoise, t: np.ndarray, x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample the posterior of each step, with noise for each example."""
    alpha, sigma = cosine(t)
    ratio = (alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])) ** 2  # SNR_t / SNR_s
    keep = sigma[1:] / sigma[:-1] * np.sqrt(ratio)
    add = alpha[1:] * (1 - ratio)
    rows = np.stack([t[:-1], keep, add, sigma[1:] * np.sqrt(1 - ratio)], 1)
    draw = noise(key, x)

    def body(x, row_and_index):
        row, i = row_and_index
        return row[1] * x + row[2] * denoise(x, row[0]) + row[3] * draw(i), None

    return jax.lax.scan(body, x, (jnp.asarray(rows, jnp.float32), indices(t)))[0]


def euler(denoise: Denoise, t: np.ndarray, x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample with Euler's method on dx/dt of the cosine path."""
    drift, pull = velocity(t)
    rows = np.stack([t, 1 + np.diff(t, append=0) * drift, pull], 1)[:-1]
    rows[:, 2] *= np.diff(t)

    def body(x, row):
        return row[1] * x + row[2] * denoise(x, row[0]), None

    return jax.lax.scan(body, x, jnp.asarray(rows, jnp.float32))[0]


def heun(denoise: Denoise, t: np.ndarray, x: jax.Array, key: jax.Array) -> jax.Array:
    """Sample with Heun's method on dx/dt of the cosine path."""
    nodes = np.stack([t, *velocity(t)], 1)
    rows = np.concatenate([nodes[:-1], nodes[1:], np.diff(t)[:, None]], 1)

    def body(x, row):
        here = row[1] * x + row[2] * denoise(x, row[0])
        ahead = x + row[6] * here
        there = row[4] * ahead + row[5] * denoise(ahead, row[3])
        return x + 0.5 * row[6] * (here + there), None

    return jax.lax.scan(body, x, jnp.asarray(rows, jnp.float32))[0]


def dpmpp_2m(
    denoise: Denoise, t: np.ndarray, x: jax.Array, key: jax.Array
) -> jax.Array:
    """Sample with DPM-Solver++(2M), Algorithm 2 of arXiv:2211.01095."""
    rows = two_step_rows(t, eta=0.0)[:, :4]

    def body(carry, row):
        x, before = carry
        now = denoise(x, row[0])
        mixed = (1 + row[3]) * now - row[3] * before
        return (row[1] * x + row[2] * mixed, now), None

    start = (x, jnp.zeros_like(x))
    return jax.lax.scan(body, start, jnp.asarray(rows, jnp.float32))[0][0]


def dpmpp_2m_sde(
    denoise: Denoise, t: np.ndarray, x: jax.Array, key: jax.Array
) -> jax.Array:
    """Sample with SDE-DPM-Solver++(2M) of arXiv:2211.01095, eta = 1."""
    rows = two_step_rows(t, eta=1.0)
    draw = noise(key, x)

    def body(carry, row_and_index):
        row, i = row_and_index
        x, before = carry
        now = denoise(x, row[0])
        mixed = (1 + row[3]) * now - row[3] * before
        return (row[1] * x + row[2] * mixed + row[4] * draw(i), now), None

    start, rows = (x, jnp.zeros_like(x)), jnp.asarray(rows, jnp.float32)
    return jax.lax.scan(body, start, (rows, indices(t)))[0][0]


def noise_alone(
    denoise: Denoise, t: np.ndarray, x: jax.Array, key: jax.Array
) -> jax.Array:
    """Add the noise of every step, and do nothing else."""
    draw = noise(key, x)
    return jax.lax.scan(lambda x, i: (x + draw(i), None), x, indices(t))[0]


def cosine(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return alpha and sigma of the cosine path in float64."""
    return np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)


def velocity(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dx/dt as weights of x and of x_0, by alpha' and sigma' of that path."""
    alpha, sigma = cosine(t)
    # alpha' = -(pi / 2) sigma and sigma' = (pi / 2) alpha.
    return np.pi / 2 * alpha / sigma, -np.pi / 2 * (sigma + alpha**2 / sigma)


def two_step_rows(t: np.ndarray, eta: float) -> np.ndarray:
    """Return t, the weights of x and x_0, 1 / (2 r) and the noise of two-step rows."""
    alpha, sigma = cosine(t)
    h = np.diff(np.log(alpha / sigma))
    half_r = np.concatenate([[0.0], 0.5 * h[1:] / h[:-1]])  # 0: the first is DDIM
    keep = sigma[1:] / sigma[:-1] * np.exp(-eta * h)
    add = -alpha[1:] * np.expm1(-(1 + eta) * h)
    std = sigma[1:] * np.sqrt(-np.expm1(-2 * eta * h))
    return np.stack([t[:-1], keep, add, half_r, std], 1)


def noise(key: jax.Array, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return normal noise like x for a step, each example from a key of its own."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    draw = lambda key, i: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:])
    return lambda i: jax.vmap(draw, (0, None))(keys, i)


def indices(t: np.ndarray) -> jax.Array:
    """Return the indices of the steps."""
    return jnp.arange(len(t) - 1)


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
}
