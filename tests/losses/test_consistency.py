"""Consistency training and distillation, and progressive distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import KINDS, MIXTURE, PATHS, jit_once
from losses.oracles import GaussianFlow, fixed

from genlib import losses, noise, prediction

SMOOTH = [PATHS[name] for name in ("vp", "cosine", "rectified", "ve", "edm")]
every_path = pytest.mark.parametrize("path", SMOOTH, ids=lambda p: type(p).__name__)


def test_pseudo_huber_is_the_published_distance():
    x, y = jnp.full((2, 3, 4), 0.5), jnp.zeros((2, 3, 4))
    c = 0.00054 * np.sqrt(12)
    want = np.sqrt(12 * 0.25 + c**2) - c
    np.testing.assert_allclose(losses.pseudo_huber(x, y), want, rtol=1e-6)
    # The published formula is 0 in float32 where this one is exact.
    tiny = losses.pseudo_huber(jnp.full((1, 1), 1e-6), jnp.zeros((1, 1)), c=1.0)
    np.testing.assert_allclose(tiny, 0.5e-12, rtol=1e-5)
    slope = jax.grad(lambda x: losses.pseudo_huber(x, x).sum())(x)
    np.testing.assert_array_equal(slope, 0)


def test_consistency_training_by_hand(key):
    path, x_0 = noise.EDM(), jnp.linspace(-1, 1, 6).reshape(3, 2)
    s, t = jnp.array([0.002, 1.0, 20.0]), jnp.array([0.01, 1.5, 80.0])
    eps = jax.random.normal(jax.random.split(key)[1], (3, 2))
    settings = {"steps": fixed(s, t)}
    f = lambda scale: lambda x, t: scale * x / (1 + t[:, None])

    def loss(a, b):
        return losses.consistency_training(
            key, f(a), path, x_0, target=f(b), **settings
        )

    def by_hand(a, b):
        x_s, x_t = x_0 + s[:, None] * eps, x_0 + t[:, None] * eps
        square = jnp.sum((f(a)(x_t, t) - f(b)(x_s, s)) ** 2, axis=1)
        c = 0.00054 * np.sqrt(2)
        return (jnp.sqrt(square + c**2) - c) / (t - s)

    np.testing.assert_allclose(loss(0.9, 0.7), by_hand(0.9, 0.7), rtol=2e-5)
    of_network, of_target = jax.jacrev(loss, (0, 1))(0.9, 0.7)
    np.testing.assert_allclose(of_network, jax.jacrev(by_hand)(0.9, 0.7), rtol=1e-4)
    np.testing.assert_array_equal(of_target, 0)
    # Without a target it is the network itself, and still without gradient.
    alone = lambda a: losses.consistency_training(key, f(a), path, x_0, **settings)
    np.testing.assert_array_equal(alone(0.9), loss(0.9, 0.9))
    np.testing.assert_array_equal(
        jax.jacrev(alone)(0.9), jax.jacrev(lambda a: loss(a, 0.9))(0.9)
    )


def test_the_boundary_carries_the_data_to_every_time(key):
    """At the data end the target of a network with the boundary is x_s itself."""
    path, sigma_min = noise.EDM(), 0.002
    x_0 = jnp.linspace(-1, 1, 8).reshape(4, 2)
    network = lambda x, t: jnp.cos(x) + t[:, None]
    consistency = prediction.denoiser(
        network, path, prediction.Consistency(0.5, sigma_min=sigma_min)
    )

    seen = []
    losses.consistency_training(
        key,
        consistency,
        path,
        x_0,
        steps=losses.karras_steps(1),
        distance=lambda x, y: (seen.append(y), x[:, 0])[1],
    )
    eps = jax.random.normal(jax.random.split(key)[1], (4, 2))
    np.testing.assert_allclose(seen[0], x_0 + sigma_min * eps, rtol=1e-6)


@every_path
def test_the_exact_consistency_function_is_distilled(path, x64):
    """Its loss is the error of the teacher's one step: of third order for Heun's."""
    exact = GaussianFlow(path)
    x_0 = exact.sample(jax.random.normal(jax.random.key(1), (256, 2), float))
    consistency = lambda x, t: exact.flow(x, jnp.full_like(t, path.t_min), t)
    start = path.time_at(jnp.full(256, 0.3))  # log-SNR: neither end is near

    def error(order, length):
        steps = fixed(start - length * (path.t_max - path.t_min), start)
        distil = losses.consistency_distillation
        loss = distil(
            jax.random.key(0),
            consistency,
            exact.denoise,
            path,
            x_0,
            steps=steps,
            order=order,
        )
        return jnp.sqrt(loss.mean())

    # EDM's time runs to 80, with the data's scale below 1.
    length = 1e-4 if isinstance(path, noise.EDM) else 0.003
    one, two = jit_once(
        lambda: [
            jnp.stack([error(order, k * length) for k in (1, 2)]) for order in (1, 2)
        ]
    )()
    np.testing.assert_allclose(jnp.log2(one[1] / one[0]), 2, atol=0.15)
    np.testing.assert_allclose(jnp.log2(two[1] / two[0]), 3, atol=0.15)


@every_path
def test_distillation_is_finite_at_both_ends(path, key):
    """One step from pure noise, one to the data, with gradients."""
    x_0, width = jnp.ones((2, 2)), path.t_max - path.t_min
    middle = path.t_min + 0.5 * width
    steps = fixed(jnp.array([middle, path.t_min]), jnp.array([path.t_max, middle]))
    teacher = lambda x, t: MIXTURE.denoise(x, *path(t))

    def loss(a, order):
        f = lambda x, t: a * teacher(x, t)
        distil = losses.consistency_distillation
        return distil(key, f, teacher, path, x_0, steps=steps, order=order)

    both = lambda a: jnp.stack([loss(a, order) for order in (1, 2)])
    value, slope = jit_once(lambda a: (both(a), jax.jacfwd(both)(a)))(0.9)
    assert jnp.isfinite(value).all()
    assert jnp.isfinite(slope).all()
    if path(path.t_min).sigma == 0:  # where Heun's step is Euler's
        np.testing.assert_allclose(value[0, 1], value[1, 1], rtol=1e-6)
        assert value[0, 0] != value[1, 0]


def test_distillation_carries_no_gradient_to_target_or_teacher(key):
    path, x_0 = noise.EDM(), jnp.ones((4, 2))

    def loss(a, b, c):
        scaled = lambda k: lambda x, t: k * x / (1 + t[:, None])
        return losses.consistency_distillation(
            key,
            scaled(a),
            scaled(c),
            path,
            x_0,
            steps=losses.karras_steps(17),
            target=scaled(b),
            weight=losses.inverse_step,
            distance=losses.pseudo_huber,
        ).sum()

    of_network, *others = jit_once(jax.grad(loss, (0, 1, 2)))(0.9, 0.8, 0.7)
    assert of_network != 0
    np.testing.assert_array_equal(others, 0)


def student_target(path, s, t, key):
    """Return x_t and the x_0 that the loss asks of a student, read off a gradient."""
    x_0 = MIXTURE.sample(jax.random.key(3), len(s))

    def loss(answer):
        return losses.progressive_distillation(
            key,
            lambda x, t: answer,
            MIXTURE.denoiser(path),
            path,
            x_0,
            kind=prediction.X0,
            steps=fixed(s, t),
        ).sum()

    gradient = jax.grad(loss)(jnp.zeros_like(x_0))
    eps = jax.random.normal(jax.random.split(key)[1], x_0.shape)
    return noise.perturb(path, x_0, eps, t), -gradient * x_0.shape[1] / 2


def ddim(path, x_t, x_0, s, t):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = path(s), path(t)
    keep = sigma_s / sigma_t
    add = alpha_s - keep * alpha_t
    return keep[:, None] * x_t + add[:, None] * x_0


@every_path
def test_one_step_of_the_student_is_two_of_the_teacher(path, key):
    """Also from pure noise to the data at once, where alpha = 0 and sigma = 0."""
    width, denoise = path.t_max - path.t_min, MIXTURE.denoiser(path)
    s = path.t_min + width * jnp.array([0.25, 0.0, 0.5, 0.0])
    t = path.t_min + width * jnp.array([0.75, 0.5, 1.0, 1.0])
    m = 0.5 * (s + t)

    def both():
        x_t, x = student_target(path, s, t, key)
        x_m = ddim(path, x_t, denoise(x_t, t), m, t)
        two = ddim(path, x_m, denoise(x_m, m), s, m)
        return ddim(path, x_t, x, s, t), two

    np.testing.assert_allclose(*jit_once(both)(), rtol=1e-4, atol=1e-5)


def test_the_student_may_predict_any_kind(key):
    """A student that says the target in its own kind has no loss."""
    path, x_0 = noise.Cosine(), MIXTURE.sample(jax.random.key(3), 5)
    s, t = jnp.full(5, 0.25), jnp.full(5, 0.75)

    def loss(kind, x_t, x):
        answer = prediction.convert(path, x, x_t, t, prediction.X0, kind)
        return losses.progressive_distillation(
            key,
            lambda x, t: answer,
            MIXTURE.denoiser(path),
            path,
            x_0,
            kind=kind,
            steps=fixed(s, t),
            weight=losses.min_snr(),
        )

    def all_kinds():
        x_t, x = student_target(path, s, t, key)
        return [loss(kind, x_t, x) for kind in KINDS.values()]

    np.testing.assert_allclose(jit_once(all_kinds)(), 0, atol=1e-9)


def test_a_constant_teacher_teaches_its_constant(key):
    x_0 = jnp.ones((64, 2))
    loss = losses.progressive_distillation(
        key,
        lambda x, t: jnp.full_like(x, 0.3),
        lambda x, t: jnp.full_like(x, 0.3),
        noise.Rectified(),
        x_0,
        kind=prediction.X0,
        steps=losses.uniform_steps(4),
    )
    np.testing.assert_allclose(loss, 0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(dtype, key, x64):
    seen = set()

    def f(x, t):
        seen.add((str(x.dtype), str(t.dtype)))
        return x * 0.5

    x_0, path = jnp.ones((2, 3), dtype), noise.EDM()
    wide, steps = str(jnp.promote_types(dtype, "float32")), losses.karras_steps(9)
    distil = losses.progressive_distillation
    for loss in (
        losses.consistency_training(key, f, path, x_0, steps=steps),
        losses.consistency_distillation(key, f, f, path, x_0, steps=steps),
        distil(key, f, f, path, x_0, kind=prediction.X0, steps=steps),
    ):
        assert loss.dtype == wide
        assert loss.shape == (2,)
    assert seen == {(dtype, wide)}


def test_mistakes(key):
    x, path, steps = jnp.ones((2, 3)), noise.EDM(), losses.karras_steps(4)
    good, bad = lambda x, t: x, lambda x, t: x[:1]
    distil = losses.consistency_distillation
    with pytest.raises(ValueError, match=r"consistency must return the shape \(2, 3\)"):
        losses.consistency_training(key, bad, path, x, steps=steps)
    with pytest.raises(ValueError, match=r"target must return the shape \(2, 3\)"):
        losses.consistency_training(key, good, path, x, steps=steps, target=bad)
    with pytest.raises(ValueError, match=r"teacher must return the shape \(2, 3\)"):
        distil(key, good, bad, path, x, steps=steps)
    with pytest.raises(ValueError, match=r"order must be 1 or 2; it is 3"):
        distil(key, good, good, path, x, steps=steps, order=3)
    with pytest.raises(ValueError, match=r"x_0 must be floating"):
        distil(key, good, good, path, x.astype(int), steps=steps)
    with pytest.raises(ValueError, match=r"kind must be .* 'v'"):
        losses.progressive_distillation(key, good, good, path, x, kind="v", steps=steps)
    with pytest.raises(ValueError, match=r"teacher must return the shape \(2, 3\)"):
        losses.progressive_distillation(
            key, good, bad, path, x, kind=prediction.V, steps=steps
        )


def test_distances_and_steps_of_no_length():
    """Equal arguments and equal times give zeros, with finite gradients."""
    x = jnp.ones((2, 3))
    for c in (None, 0.0):
        distance = lambda x, c=c: losses.pseudo_huber(x, jnp.ones((2, 3)), c).sum()
        value, gradient = jax.value_and_grad(distance)(x)
        assert value == 0
        assert jnp.isfinite(gradient).all()
    key = jax.random.key(0)
    steps = losses.random_steps(share=0.5)
    data = jax.random.normal(key, (16, 3))
    f = lambda x_t, t: 0.5 * x_t
    loss = losses.consistency_training(key, f, noise.EDM(), data, steps=steps)
    assert jnp.isfinite(loss).all()
    loss = losses.progressive_distillation(
        key, f, f, noise.Cosine(), data, kind=prediction.V, steps=steps
    )
    assert jnp.isfinite(loss).all()
