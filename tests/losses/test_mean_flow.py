"""Flow maps: MeanFlow and shortcut losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import PATHS, jit_once
from losses.oracles import GaussianFlow, fixed

from genlib import losses, noise
from genlib.types import expand_like

SMOOTH = [PATHS[name] for name in ("vp", "cosine", "rectified", "ve", "edm")]
every_path = pytest.mark.parametrize("path", SMOOTH, ids=lambda p: type(p).__name__)


@every_path
def test_the_exact_mean_velocity_has_no_mean_flow_loss(path, key, x64):
    """d/dt ((t - s) u) = v along the flow, here for Gaussian data, in float64."""
    exact = GaussianFlow(path)
    x_0 = exact.sample(jax.random.normal(key, (64, 2), float))

    def loss(scale):
        return losses.mean_flow(
            key,
            lambda x, s, t: scale * exact.mean_velocity(x, s, t),
            x_0,
            interpolant=path,
            steps=losses.random_steps(share=0.7),
            velocity=lambda x, t, u: exact.velocity(x, t),
            power=0.0,
        )

    right, wrong = jit_once(jax.vmap(loss))(jnp.array([1.0, 1.01]))
    np.testing.assert_allclose(right, 0, atol=1e-6)
    assert wrong.mean() > 1e-6 + 100 * right.mean()


@every_path
def test_one_step_of_the_exact_mean_velocity_is_the_flow(path, x64):
    exact, x = GaussianFlow(path), jnp.linspace(-3.0, 3.0, 8).reshape(4, 2)
    s, t = jnp.full(4, path.t_min), jnp.full(4, path.t_max)
    x_s = x - expand_like(t - s, x) * exact.mean_velocity(x, s, t)
    np.testing.assert_allclose(x_s, exact.flow(x, s, t), atol=1e-12)


@pytest.mark.parametrize("loss_of", [losses.mean_flow, losses.shortcut])
def test_the_conditional_velocity_leaves_no_gradient_in_the_mean(loss_of, key):
    """u_t is v in the mean given x_t, and the target is linear in it."""
    path, count = noise.Rectified(), 20_000
    exact = GaussianFlow(path)
    x_0 = exact.sample(jax.random.normal(key, (count, 1)))
    settings = {"steps": losses.random_steps(share=0.5)}
    if loss_of is losses.mean_flow:
        settings["power"] = 0.0
    else:
        settings["levels"] = 30  # no half step is so short: all are exact

    def loss(slopes):
        # Stop-gradients keep these slopes out of the target.
        predict = lambda x, s, t: (
            exact.mean_velocity(x, s, t)
            + slopes[0]
            + slopes[1] * x
            + slopes[2] * (t - s)[:, None]
        )
        return loss_of(key, predict, x_0, interpolant=path, **settings)

    gradient = jit_once(jax.jacfwd(loss))(jnp.zeros(3))
    error = gradient.std(0) / np.sqrt(count)
    assert (abs(gradient.mean(0)) < 4 * error).all()
    assert (error < 0.05).all()


@pytest.mark.parametrize("loss_of", [losses.mean_flow, losses.shortcut])
def test_a_step_of_no_length_is_flow_matching(loss_of, key):
    """The boundary of every flow map: u(x, t, t) = v."""
    x_0, t = jnp.linspace(-1, 1, 8).reshape(4, 2), jnp.array([0.1, 0.4, 0.7, 1.0])
    bridge = noise.BridgeInterpolant(0.3)
    predict = lambda x, s, t: jnp.sin(x) + s[:, None] * t[:, None]
    plain = {} if loss_of is losses.shortcut else {"power": 0.0}
    got = loss_of(key, predict, x_0, interpolant=bridge, steps=fixed(t, t), **plain)
    want = losses.flow_matching(
        key,
        lambda x, t: predict(x, t, t),
        x_0,
        interpolant=bridge,
        times=fixed(t),
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_mean_flow_by_hand(key):
    """Value, weight and gradient of u = a x + b t between given pairs."""
    x_0 = jnp.array([[0.3, -0.8], [1.2, 0.1], [-0.5, 0.4]])
    x_1 = jnp.array([[-1.0, 0.2], [0.6, 2.0], [0.9, -0.3]])
    s, t = jnp.array([0.1, 0.0, 0.5]), jnp.array([0.7, 1.0, 0.5])

    def loss(a, b, power=0.75, offset=0.01):
        return losses.mean_flow(
            key,
            lambda x, s, t: a * x + b * t[:, None],
            x_0,
            x_1,
            interpolant=noise.LinearInterpolant(),
            steps=fixed(s, t),
            power=power,
            offset=offset,
        )

    a, b = 0.6, -0.3
    v = np.asarray(x_1 - x_0)
    x_t = np.asarray(x_0) + np.asarray(t)[:, None] * v
    target = v - np.asarray(t - s)[:, None] * (a * v + b)
    gap = a * x_t + b * np.asarray(t)[:, None] - target
    error = (gap**2).mean(1)
    weight = (error + 0.01) ** -0.75
    np.testing.assert_allclose(loss(a, b), weight * error, rtol=1e-5)
    np.testing.assert_allclose(loss(a, b, power=0.0), error, rtol=1e-5)
    gradient = jax.jacrev(loss)(a, b)
    np.testing.assert_allclose(gradient, weight * (2 * gap * x_t).mean(1), rtol=1e-4)


def test_guidance_mixes_the_velocity(key):
    """The velocity may use both u_t and the network's own."""
    x = jnp.ones((2, 3))
    line, seen = noise.LinearInterpolant(), []

    def velocity(x_t, t, u_t):
        seen.append((x_t.shape, t.shape, u_t.shape))
        return 2.0 * u_t + jnp.ones_like(x_t)

    loss = losses.mean_flow(
        key,
        lambda x, s, t: jnp.full_like(x, 7.0),
        0 * x,
        3 * x,
        interpolant=line,
        steps=losses.random_steps(),
        velocity=velocity,
        power=0.0,
    )
    np.testing.assert_allclose(loss, 0, atol=1e-12)
    assert seen == [((2, 3), (2,), (2, 3))]


def test_the_exact_mean_velocity_has_no_shortcut_loss(key, x64):
    """Two half steps of the exact flow map are one whole step."""

    def loss(path, levels):
        exact = GaussianFlow(path)
        x_0 = exact.sample(jax.random.normal(key, (64, 2), float))
        return losses.shortcut(
            key,
            exact.mean_velocity,
            x_0,
            interpolant=path,
            levels=levels,
            steps=losses.dyadic_steps(4, share=1.0),
        )

    exact, rough = jit_once(
        lambda: ([loss(path, 5) for path in SMOOTH], loss(noise.Rectified(), 4))
    )()
    np.testing.assert_allclose(exact, 0, atol=1e-12)
    # The shortest half steps take the velocity, which is not the mean velocity.
    assert rough.max() > 1e-8


def test_shortcut_calls(key):
    """What the network is asked, at a length that is halved and at the shortest."""
    x = jnp.ones((3, 1))
    s, t = jnp.array([0.0, 0.25, 0.5]), jnp.array([1.0, 0.5, 0.5])
    calls = []

    def record(name, value):
        def predict(x, s, t):
            calls.append((name, s.tolist(), t.tolist()))
            return value * x

        return predict

    loss = losses.shortcut(
        key,
        record("network", 1.0),
        0 * x,
        x,
        interpolant=noise.LinearInterpolant(),
        levels=3,
        steps=fixed(s, t),
        target=record("target", 0.5),
    )
    assert calls == [
        ("network", s.tolist(), t.tolist()),
        ("target", [0.5, 0.5, 0.5], t.tolist()),  # 1/8 is the shortest: s = t
        ("target", [0.0, 0.375, 0.5], [0.5, 0.375, 0.5]),
    ]
    # x_t = t, u = x_t; y is the mean of 0.5 x_t and 0.5 (x_t - (t - m) 0.5 x_t).
    t, half = np.array([1.0, 0.5]), np.array([0.5, 0.125])
    y = 0.25 * t * (2 - 0.5 * half)
    np.testing.assert_allclose(loss, [*(t - y) ** 2, 0.25], rtol=1e-6)


def test_shortcut_targets_carry_no_gradient(key):
    x, line = jnp.ones((4, 2)), noise.LinearInterpolant()
    steps = losses.dyadic_steps(3, share=1.0)

    def loss(a, b):
        return losses.shortcut(
            key,
            lambda x, s, t: a * x,
            0 * x,
            x,
            interpolant=line,
            levels=3,
            steps=steps,
            target=lambda x, s, t: b * x,
        ).sum()

    of_network, of_target = jax.grad(loss, (0, 1))(1.0, 0.5)
    assert of_network != 0
    assert of_target == 0


@pytest.mark.parametrize("loss_of", [losses.mean_flow, losses.shortcut])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(loss_of, dtype, key, x64):
    seen = set()

    def predict(x, s, t):
        seen.add((str(x.dtype), str(s.dtype), str(t.dtype)))
        return x * 0.5

    x_0, wide = jnp.ones((2, 3), dtype), jnp.promote_types(dtype, "float32")
    steps = losses.random_steps()
    loss = loss_of(key, predict, x_0, interpolant=noise.Cosine(), steps=steps)
    assert loss.dtype == wide
    assert loss.shape == (2,)
    assert seen == {(dtype, str(wide), str(wide))}


def test_mistakes(key):
    x, path, steps = jnp.ones((2, 3)), noise.Rectified(), losses.random_steps()
    settings = {"interpolant": path, "steps": steps}
    with pytest.raises(ValueError, match=r"predict must return the shape \(2, 3\)"):
        losses.mean_flow(key, lambda x, s, t: x[:1], x, **settings)
    with pytest.raises(ValueError, match=r"velocity must return the shape \(2, 3\)"):
        losses.mean_flow(
            key, lambda x, s, t: x, x, velocity=lambda x, t, u: x[:1], **settings
        )
    with pytest.raises(ValueError, match=r"target must return the shape \(2, 3\)"):
        losses.shortcut(
            key, lambda x, s, t: x, x, target=lambda x, s, t: x[:1], **settings
        )
    with pytest.raises(ValueError, match=r"levels must be at least 1; it is 0"):
        losses.shortcut(key, lambda x, s, t: x, x, interpolant=path, levels=0)
    with pytest.raises(ValueError, match=r"x_1 must have the shape"):
        losses.mean_flow(key, lambda x, s, t: x, x, x[:1], **settings)
