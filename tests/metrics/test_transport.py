"""Exact transport, kernels and straightness against closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import metrics


@pytest.mark.parametrize("order", [1, 2])
def test_wasserstein_of_a_translation_and_of_a_permutation(order):
    """A shift is optimal transport by itself, for every p, in any shape."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2, 3))
    shift = rng.normal(size=(1, 2, 3))
    y = (x + shift)[rng.permutation(60)]
    got = metrics.wasserstein(x, y, order=order)
    np.testing.assert_allclose(got, np.linalg.norm(shift), rtol=1e-6)
    assert got.dtype == jnp.float32
    assert metrics.wasserstein(x, x[::-1], order=order) == 0.0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_wasserstein_is_the_least_over_all_pairings(order, x64):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 6, 2))
    cost = np.linalg.norm(x[:, None] - y[None], axis=-1) ** order
    least = min(
        cost[np.arange(6), pairing].mean()
        for pairing in itertools.permutations(range(6))
    )
    got = metrics.wasserstein(jnp.asarray(x), jnp.asarray(y), order=order)
    np.testing.assert_allclose(got, least ** (1 / order), rtol=1e-12)


def test_wasserstein_of_linear_maps_is_that_of_normals():
    """x -> a x is monotone: W_2^2 = |a - 1|^2 E x^2, normal or not."""
    x = np.random.default_rng(2).normal(size=(200, 1))
    want = 0.5 * np.sqrt((x**2).mean())
    np.testing.assert_allclose(metrics.wasserstein(x, 1.5 * x), want, rtol=1e-6)


def test_mmd_is_the_double_sum(x64):
    rng = np.random.default_rng(3)
    x, y, widths = rng.normal(size=(7, 2, 2)), rng.normal(size=(5, 2, 2)), [0.5, 2.0]

    def kernel(a, b):
        square = ((a - b) ** 2).sum()
        return np.mean([math.exp(-square / (2 * h**2)) for h in widths])

    def mean(a, b, pairs):
        return np.mean([kernel(a[i], b[j]) for i, j in pairs])

    pairs = lambda n: [(i, j) for i in range(n) for j in range(n) if i != j]
    want = mean(x, x, pairs(7)) + mean(y, y, pairs(5))
    want -= 2 * mean(x, y, list(itertools.product(range(7), range(5))))
    got = jit_once(metrics.mmd)(jnp.asarray(x), jnp.asarray(y), jnp.asarray(widths))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_mmd_of_normals_in_closed_form():
    """E k = (h^2 / v)^(D/2) exp(-|m|^2 / (2 v)), v = h^2 + s^2 + s'^2; unbiased."""
    h, s, shift, dimension, sets = 1.3, 0.6, 0.8, 2, 40

    def expected(variance, square):
        v = h**2 + variance
        return (h**2 / v) ** (dimension / 2) * math.exp(-square / (2 * v))

    want = expected(2.0, 0.0) + expected(2 * s**2, 0.0)
    want -= 2 * expected(1 + s**2, dimension * shift**2)

    @jit_once
    def run(key):
        key_x, key_y = jax.random.split(key)
        x = jax.random.normal(key_x, (sets, 64, dimension))
        y = shift + s * jax.random.normal(key_y, (sets, 48, dimension))
        same = jax.lax.map(lambda pair: metrics.mmd(*pair, h), (x[:20], x[20:]))
        return jax.lax.map(lambda pair: metrics.mmd(*pair, h), (x, y)), same

    different, same = run(jax.random.key(0))
    error = different.std(ddof=1) / math.sqrt(sets)
    assert abs(different.mean() - want) < 3 * error < 0.1 * want
    # Unbiased: where nothing differs its sign is arbitrary.
    assert same.min() < 0 < same.max()


def curve(times):
    """x(t) = (t, t^2) of two scales, [N + 1, 2, 2]."""
    t = np.asarray(times)[:, None]
    return jnp.asarray(np.stack([t, t**2], -1) * np.array([[1.0], [2.0]]))


def rate(x, t):
    return jnp.array([[1.0], [2.0]]) * jnp.stack([jnp.ones_like(t), 2 * t])[None]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("velocity", [None, rate])
def test_straightness_and_energy_of_a_parabola(velocity, reverse, x64):
    """v = (1, 2 t): mean |v|^2 = 7/3, and |(1, 1) - v|^2 has mean 1/3."""
    times = np.linspace(0.0, 1.0, 401)[:: -1 if reverse else 1]
    x = curve(times)
    scale = np.array([1.0, 4.0])
    got = metrics.straightness(x, times, velocity)
    np.testing.assert_allclose(got, scale / 3, rtol=1e-4)
    energy = metrics.path_energy(x, times, velocity)
    np.testing.assert_allclose(energy, scale * 7 / 3, rtol=1e-4)
    if velocity is None:
        line = jnp.square(x[-1] - x[0]).sum(-1)
        np.testing.assert_allclose(energy, got + line, rtol=1e-12)


def test_a_straight_line_in_another_unit_of_time(x64):
    """Neither the unit of time nor uneven steps matter."""
    times = 80.0 * np.array([0.0, 0.1, 0.15, 0.7, 1.0])
    start, end = np.random.default_rng(4).normal(size=(2, 3, 2, 2))
    u = (times / 80.0)[:, None, None, None]
    x = jnp.asarray((1 - u) * start + u * end)
    line = np.square(end - start).sum((1, 2))
    np.testing.assert_allclose(metrics.straightness(x, times), 0.0, atol=1e-20)
    np.testing.assert_allclose(metrics.path_energy(x, times), line, rtol=1e-12)
    constant = lambda x, t: jnp.asarray(end - start) / 80.0
    got = metrics.path_energy(x, times, constant)
    np.testing.assert_allclose(got, line, rtol=1e-12)


def test_normalised_path_energy_of_couplings(x64):
    """Straight lines: 0 for the optimal coupling, more for another."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(64, 2))
    y = x + np.array([4.0, 0.0])
    times = np.array([1.0, 0.0])

    def score(target):
        energy = metrics.path_energy(jnp.stack([jnp.asarray(x), target]), times)
        return metrics.normalised_path_energy(energy, metrics.wasserstein(x, y))

    np.testing.assert_allclose(score(jnp.asarray(y)), 0.0, atol=1e-12)
    other = rng.permutation(64)
    want = np.square(y[other] - x).sum(1).mean() / 16 - 1
    np.testing.assert_allclose(score(jnp.asarray(y[other])), want, rtol=1e-9)
    assert want > 0.1


X = np.ones((4, 2))
LINE = jnp.ones((3, 4, 2))
TABLE = {
    "numbers": (lambda: metrics.wasserstein(X, X[:3]), r"as many samples as x, \(4, 2"),
    "sizes": (lambda: metrics.wasserstein(X, X[:, :1]), r"of one size"),
    "empty": (lambda: metrics.wasserstein(X[:0], X[:0]), r"non-empty"),
    "order": (lambda: metrics.wasserstein(X, X, order=0), r"order must be .* 0"),
    "traced": (lambda: jax.jit(metrics.wasserstein)(X, X), r"must be concrete"),
    "one sample": (lambda: metrics.mmd(X[:1], X, 1.0), r"at least two .* 1 and 4"),
    "kernel sizes": (lambda: metrics.mmd(X, X[:, :1], 1.0), r"of one size"),
    "bandwidth": (lambda: metrics.mmd(X, X, 0.0), r"bandwidth must be positive.* 0\.0"),
    "one time": (
        lambda: metrics.straightness(LINE[:1], [1.0]),
        r"times must be .* two.*\(1,\)",
    ),
    "other times": (
        lambda: metrics.straightness(LINE, [1.0, 0.0]),
        r"with 2 times; its shape is \(3, 4, 2\)",
    ),
    "back": (
        lambda: metrics.path_energy(LINE, [1.0, 0.0, 0.5]),
        r"times must increase or decrease",
    ),
    "distance": (
        lambda: metrics.normalised_path_energy(jnp.ones(2), 0.0),
        r"distance must be positive; it is 0\.0",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_mistake(name):
    run, message = TABLE[name]
    with pytest.raises(ValueError, match=message):
        run()
