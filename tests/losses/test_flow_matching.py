"""Flow matching between any two distributions, and re-flow."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once
from losses.oracles import fixed

from genlib import losses, noise, prediction, samplers
from genlib.types import expand_like

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden/flow_matching.json").read_text()
)
INTERPOLANTS = {
    "linear": noise.LinearInterpolant(),
    "tube": noise.LinearInterpolant(0.3),
    "trigonometric": noise.TrigonometricInterpolant(),
    "bridge": noise.BridgeInterpolant(0.8),
    "encoding_decoding": noise.EncodingDecodingInterpolant(),
    "target": noise.TargetInterpolant(0.1),
    "cosine path": noise.Cosine(),
    "edm path": noise.EDM(2.0),
}


@pytest.mark.parametrize(
    ("name", "interpolant"),
    [
        ("icfm", noise.LinearInterpolant()),
        ("target", noise.TargetInterpolant(0.1)),
        ("vp", noise.TrigonometricInterpolant()),
    ],
)
def test_published_velocities(name, interpolant, key, x64):
    """torchcfm runs time from the source x0 to the data x1: t = 1 - t, u = -u."""
    data, t = np.array(GOLDEN["x1"]), 1 - np.array(GOLDEN["t"])
    # The source of target-conditional flow matching is the noise itself.
    source = np.array(GOLDEN["eps" if name == "target" else "x0"])
    velocity, seen = -np.array(GOLDEN[f"{name}: ut"]), []

    def predict(x_t, t):
        seen.append(x_t)
        return jnp.asarray(velocity)

    settings = {"interpolant": interpolant, "times": fixed(t)}
    loss = losses.flow_matching(key, predict, data, source, **settings)
    np.testing.assert_allclose(loss, 0, atol=1e-12)
    if name == "target":  # float32 in the reference
        np.testing.assert_allclose(seen[0], GOLDEN["target: xt"], rtol=1e-6)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_conditional_mean_is_the_optimum(name, key):
    """Between Gaussians E[u_t | x_t] is linear; every gradient there is noise."""
    interpolant, count = INTERPOLANTS[name], 20_000
    is_path = isinstance(interpolant, noise.Path)
    mean_0, std_0 = 0.7, 0.6
    mean_1, std_1 = (0.0, 1.0) if is_path else (-1.1, 1.4)
    key_0, key_1, key_t, key_loss = jax.random.split(key, 4)

    def moments(t):
        weights = [c for c in interpolant(t) if c is not None]
        mean = weights[0] * mean_0 + weights[1] * mean_1
        stds = (std_0, std_1, 1.0)
        variance = sum((c * std) ** 2 for c, std in zip(weights, stds, strict=False))
        return mean, variance

    def exact(x, t):
        (mean, variance), (drift, growth) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
        column = lambda c: expand_like(c, x)
        return column(drift) + column(0.5 * growth / variance) * (x - column(mean))

    def loss(slopes):
        predict = lambda x, t: exact(x, t) + slopes[0] + slopes[1] * x
        x_0 = mean_0 + std_0 * jax.random.normal(key_0, (count, 1))
        x_1 = mean_1 + std_1 * jax.random.normal(key_1, (count, 1))
        t = jax.random.uniform(key_t, (count,), minval=0.05, maxval=0.95)
        t = t * interpolant.t_max
        settings = {"interpolant": interpolant, "times": fixed(t)}
        return losses.flow_matching(key_loss, predict, x_0, x_1, **settings)

    gradient = jit_once(jax.jacfwd(loss))(jnp.zeros(2))
    error = gradient.std(0) / np.sqrt(count)
    assert (abs(gradient.mean(0)) < 4 * error).all()
    assert (error < 0.05).all()


def test_a_path_is_flow_matching_with_normal_noise(key):
    path, x_0 = noise.Rectified(), jnp.linspace(-1, 1, 6).reshape(3, 2)
    predict = lambda x, t: x * t[:, None]
    loss = losses.flow_matching(key, predict, x_0, interpolant=path)
    line = noise.LinearInterpolant()
    np.testing.assert_array_equal(
        loss, losses.flow_matching(key, predict, x_0, interpolant=line)
    )
    key_time, key_point = jax.random.split(key)
    t = losses.uniform(key_time, path, 3)
    eps = jax.random.normal(jax.random.fold_in(key_point, 0), (3, 2))
    x_t = noise.perturb(path, x_0, eps, t)
    want = jnp.mean((predict(x_t, t) - (eps - x_0)) ** 2, axis=1)
    np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_every_time_sampler_serves_an_interpolant(key):
    t = []
    losses.flow_matching(
        key,
        lambda x, time: (t.append(time), x)[1],
        jnp.ones((4000, 1)),
        interpolant=noise.LinearInterpolant(),
        times=losses.log_normal_sigma(0.5, 0.3),
    )
    logit = jnp.log(t[0]) - jnp.log1p(-t[0])  # ln(sigma / alpha) of the straight path
    np.testing.assert_allclose(logit.mean(), 0.5, atol=0.03)


def test_noise_is_drawn_only_where_there_is_a_gamma():
    def draws(interpolant):
        loss = lambda key, x_0, x_1: losses.flow_matching(
            key, lambda x, t: x, x_0, x_1, interpolant=interpolant
        )
        x = jnp.ones((2, 3))
        return str(jax.make_jaxpr(loss)(jax.random.key(0), x, x)).count("erf_inv")

    assert draws(noise.LinearInterpolant()) == 0
    assert draws(noise.BridgeInterpolant(0.5)) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes(dtype, key, x64):
    seen = []

    def predict(x, t):
        seen.append((x.dtype, t.dtype))
        return x

    x_0, wide = jnp.ones((2, 3), dtype), jnp.promote_types(dtype, "float32")
    bridge = noise.BridgeInterpolant(0.5)
    loss = losses.flow_matching(key, predict, x_0, 2 * x_0, interpolant=bridge)
    assert loss.dtype == wide
    assert loss.shape == (2,)
    assert seen == [(x_0.dtype, wide)]


def gaussian_velocity(x, t):
    """The velocity between N(0.7, 0.6^2) and N(-1.1, 1.4^2) on straight lines."""
    mean, drift = (1 - t) * 0.7 - t * 1.1, -1.8
    variance = ((1 - t) * 0.6) ** 2 + (t * 1.4) ** 2
    growth = (t * 1.4**2 - (1 - t) * 0.6**2) / variance
    return drift + expand_like(growth, x) * (x - expand_like(mean, x))


@pytest.mark.parametrize(
    ("solver", "order", "bound"),
    [(samplers.euler(), 1, 4e-2), (samplers.heun(), 2, 2e-3)],
)
def test_samplers_follow_a_velocity_from_any_source(solver, order, bound):
    """On straight lines x_0 = x_t - t v, whatever the source is: no noise is needed."""
    path = noise.Rectified()
    denoise = prediction.denoiser(gaussian_velocity, path, prediction.VELOCITY)
    x_1 = -1.1 + 1.4 * jnp.linspace(-2, 2, 9)[:, None]
    exact = 0.7 + 0.6 * jnp.linspace(-2, 2, 9)[:, None]

    def error(steps):
        times = samplers.uniform(path, steps)
        transport = lambda x: samplers.sample(solver, denoise, path, times, x)
        x_0, same = losses.reflow_pairs(transport, x_1, batch_size=4)
        return jnp.abs(x_0 - exact).max(), (same == x_1).all()

    (coarse, same), (fine, _) = jit_once(lambda: (error(32), error(64)))()
    assert same
    assert fine < bound
    np.testing.assert_allclose(jnp.log2(coarse / fine), order, atol=0.2)


def test_reflow_pairs_of_a_flow_are_straight(key):
    """Pairs of a flow have one velocity at each x_t, which has no loss."""
    x_1 = -1.1 + 1.4 * jax.random.normal(key, (7, 2))
    x_0, x_1 = losses.reflow_pairs(lambda x: 0.7 + 0.6 / 1.4 * (x + 1.1), x_1)
    line = noise.LinearInterpolant()

    def straight(x, t):
        t = expand_like(t, x)
        unit = (x - (1 - t) * 0.7 + t * 1.1) / ((1 - t) * 0.6 + t * 1.4)
        return -1.8 + 0.8 * unit

    loss = losses.flow_matching(key, straight, x_0, x_1, interpolant=line)
    np.testing.assert_allclose(loss, 0, atol=1e-11)
    assert (
        losses.flow_matching(key, gaussian_velocity, x_0, x_1, interpolant=line) > 1e-6
    ).all()


@pytest.mark.parametrize("batch_size", [None, 1, 3, 5, 9])
def test_reflow_batches_are_the_whole(batch_size):
    x_1 = jnp.arange(10.0).reshape(5, 2)
    grad = jax.grad(
        lambda a: losses.reflow_pairs(lambda x: a * x, x_1, batch_size=batch_size)[
            0
        ].sum()
    )
    x_0, same = losses.reflow_pairs(lambda x: 3 * x, x_1, batch_size=batch_size)
    np.testing.assert_array_equal(x_0, 3 * x_1)
    np.testing.assert_array_equal(same, x_1)
    assert grad(2.0) == 0


def test_mistakes(key):
    x, line = jnp.ones((2, 3)), noise.LinearInterpolant()
    call = lambda predict=(lambda x, t: x), x_0=x, x_1=None: losses.flow_matching(
        key, predict, x_0, x_1, interpolant=line
    )
    with pytest.raises(ValueError, match=r"x_0 must be floating data.*int32"):
        call(x_0=x.astype(int))
    with pytest.raises(ValueError, match=r"x_1 must have the shape \(2, 3\).*\(3,\)"):
        call(x_1=x[0])
    with pytest.raises(ValueError, match=r"x_1 must be floating data.*int32"):
        call(x_1=x.astype(int))
    with pytest.raises(ValueError, match=r"predict must return the shape \(2, 3\)"):
        call(predict=lambda x, t: x[:1])
    with pytest.raises(ValueError, match=r"transport must return the shape"):
        losses.reflow_pairs(lambda x: x[:, :1], x)
    with pytest.raises(ValueError, match=r"batch_size must be positive.* 0"):
        losses.reflow_pairs(lambda x: x, x, batch_size=0)
