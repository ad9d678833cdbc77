"""Stochastic interpolants against torchcfm and closed forms."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MORE_PATHS, PATHS, each

from genlib import noise

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/noise.json").read_text())
CFM = GOLDEN["torchcfm"]
INTERPOLANTS = {
    "linear": noise.LinearInterpolant(),
    "tube": noise.LinearInterpolant(0.1),
    "trigonometric": noise.TrigonometricInterpolant(),
    "trigonometric_tube": noise.TrigonometricInterpolant(0.1),
    "bridge": noise.BridgeInterpolant(0.5),
    "encoding_decoding": noise.EncodingDecodingInterpolant(),
    "target": noise.TargetInterpolant(0.1),
}
every_interpolant = pytest.mark.parametrize("interpolant", **each(INTERPOLANTS))
X_0, X_1, Z = np.random.default_rng(0).standard_normal((3, 5, 2)).astype(np.float32)


def noise_for(interpolant, z=Z):
    return z if noise.is_stochastic(interpolant) else None


@pytest.mark.parametrize(
    ("name", "interpolant"),
    [
        ("icfm", INTERPOLANTS["tube"]),
        ("vp", INTERPOLANTS["trigonometric_tube"]),
        ("sb", INTERPOLANTS["bridge"]),
        ("target", INTERPOLANTS["target"]),
    ],
)
def test_torchcfm(name, interpolant):
    """There x0 is the source, t is 1 - t and the velocity points to the data."""
    data, source, t, eps = (np.array(CFM[k]) for k in ("x1", "x0", "t", "eps"))
    if name == "sb":
        t = np.clip(t, 0.05, 0.95)
    if name == "target":
        source, eps = eps, None
    arguments = jnp.asarray(data), jnp.asarray(source), 1 - t, eps
    x_t = noise.interpolate(interpolant, *arguments)
    u_t = noise.conditional_velocity(interpolant, *arguments)
    want = CFM[name]
    np.testing.assert_allclose(x_t, want["x_t"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(-u_t, want["u_t"], rtol=1e-5, atol=1e-6)


@every_interpolant
def test_ends_are_the_two_distributions(interpolant):
    alpha, beta, *gamma = interpolant(jnp.array([0.0, 1.0]))
    assert alpha.tolist() == [1, 0]
    blur = interpolant.sigma if isinstance(interpolant, noise.TargetInterpolant) else 0
    np.testing.assert_allclose(beta, [blur, 1], rtol=1e-6)
    if isinstance(
        interpolant, noise.BridgeInterpolant | noise.EncodingDecodingInterpolant
    ):
        assert gamma[0].tolist() == [0, 0]


def test_closed_forms(x64):
    t = np.array([0.1, 0.4, 0.8])
    bridge = noise.BridgeInterpolant(0.5)(t)
    np.testing.assert_allclose(bridge.gamma, 0.5 * np.sqrt(t * (1 - t)), rtol=1e-12)
    alpha, beta, gamma = noise.EncodingDecodingInterpolant()(t)
    cosine = np.cos(np.pi * t) ** 2
    np.testing.assert_allclose(alpha, np.where(t < 0.5, cosine, 0), rtol=1e-12)
    np.testing.assert_allclose(beta, np.where(t > 0.5, cosine, 0), rtol=1e-12)
    np.testing.assert_allclose(gamma, np.sin(np.pi * t) ** 2, rtol=1e-12)


@every_interpolant
def test_velocity_is_the_derivative(interpolant, x64):
    x_0, x_1, z = (jnp.asarray(x[:3], jnp.float64) for x in (X_0, X_1, Z))
    z = noise_for(interpolant, z)
    t, h = np.array([0.1, 0.45, 0.8]), 1e-6
    at = lambda t: noise.interpolate(interpolant, x_0, x_1, t, z)
    slope = (at(t + h) - at(t - h)) / (2 * h)
    velocity = noise.conditional_velocity(interpolant, x_0, x_1, t, z)
    np.testing.assert_allclose(velocity, slope, rtol=1e-7, atol=1e-8)


@every_interpolant
def test_finite_at_both_ends_with_finite_gradients(interpolant):
    @jax.jit
    def everything(interpolant, t):
        z = noise_for(interpolant)
        x_t = noise.interpolate(interpolant, X_0, X_1, t, z)
        u_t = noise.conditional_velocity(interpolant, X_0, X_1, t, z)
        return x_t.sum() + u_t.sum()

    for t in (0.0, 1.0):
        value, gradient = jax.value_and_grad(everything)(interpolant, t)
        assert all(map(jnp.isfinite, [value, *jax.tree.leaves(gradient)]))


@every_interpolant
def test_dtype_is_kept_and_one_time_for_all_is_the_same(interpolant):
    x_0, x_1, z = (jnp.asarray(x, jnp.bfloat16) for x in (X_0, X_1, Z))
    z = noise_for(interpolant, z)
    for function in (noise.interpolate, noise.conditional_velocity):
        one = function(interpolant, x_0, x_1, 0.3, z)
        assert one.dtype == jnp.bfloat16
        each_its_own = function(interpolant, x_0, x_1, jnp.full(5, 0.3), z)
        np.testing.assert_array_equal(one, each_its_own)


@pytest.mark.parametrize("path", **each(PATHS | MORE_PATHS))
def test_a_path_is_an_interpolant_to_noise(path):
    t = jnp.full(5, 0.4 * path.t_max)
    x_t = noise.interpolate(path, X_0, X_1, t)
    np.testing.assert_array_equal(x_t, noise.perturb(path, X_0, X_1, t))
    alpha, sigma = noise.marginal_and_rate(path, t)[1]
    velocity = noise.conditional_velocity(path, X_0, X_1, t)
    want = alpha[:, None] * X_0 + sigma[:, None] * X_1
    np.testing.assert_allclose(velocity, want, rtol=1e-5, atol=1e-7)
    assert not noise.is_stochastic(path)


def test_target_interpolant_without_blur_is_rectified():
    t = jnp.linspace(0, 1, 5)
    got = noise.interpolate(noise.TargetInterpolant(0.0), X_0, X_1, t)
    want = noise.interpolate(noise.Rectified(), X_0, X_1, t)
    np.testing.assert_array_equal(got, want)


def test_a_sweep_of_sigma_traces_once():
    traces = []

    @jax.jit
    def point(interpolant, t):
        traces.append(t)
        return noise.interpolate(interpolant, X_0, X_1, t, Z)

    points = [point(noise.BridgeInterpolant(s), 0.5) for s in (0.1, 0.5)]
    np.testing.assert_allclose(points[1] - points[0], 0.2 * Z, rtol=1e-3, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f: f(noise.LinearInterpolant(), X_0, X_1[:2], 0.5), "x_1 must have"),
        (lambda f: f(noise.LinearInterpolant(), X_0, X_1, 1.5), "t must be within"),
        (lambda f: f(noise.LinearInterpolant(), X_0, X_1, 0.5, Z), "z must be None"),
        (lambda f: f(noise.BridgeInterpolant(0.5), X_0, X_1, 0.5), "z must be noise"),
        (
            lambda f: f(noise.BridgeInterpolant(0.5), X_0, X_1, 0.5, Z[:1]),
            "z must have",
        ),
        (lambda f: f(noise.Cosine(), X_0, X_1, np.ones(3)), "t must be a scalar"),
    ],
)
@pytest.mark.parametrize("function", [noise.interpolate, noise.conditional_velocity])
def test_bad_arguments(function, call, match):
    with pytest.raises(ValueError, match=match):
        call(function)
