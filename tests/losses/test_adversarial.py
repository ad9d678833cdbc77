"""The losses of discriminators and generators, and what belongs to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import losses

# Logits (.5, -.2): the loss of the discriminator, then that of the generator.
VALUES = {
    "hinge": (1.3, 0.2),
    "logistic": (1.072216, 0.798139),
    "least_squares": ((0.5**2 + 0.2**2) / 2, 1.2**2 / 2),
    "wasserstein": (-0.7, 0.2),
}
kind = pytest.mark.parametrize("name", VALUES)


def pair(name):
    return (
        getattr(losses, f"{name}_discriminator"),
        getattr(losses, f"{name}_generator"),
    )


def test_values():
    """By hand; and of patches the mean of all losses, not the loss of the mean."""
    rng = np.random.default_rng(0)
    patches = jnp.asarray(2 * rng.standard_normal((2, 2, 3, 4, 1)), jnp.float32)

    def both(name, real, fake):
        discriminator, generator = pair(name)
        return discriminator(real, fake), generator(fake)

    def everything(real, fake, patches):
        one = {name: both(name, real, fake) for name in VALUES}
        whole = {name: both(name, *patches) for name in VALUES}
        each = {name: both(name, *patches.reshape(2, -1)) for name in VALUES}
        return one, whole, each

    one, whole, each = jit_once(everything)(
        jnp.array([0.5]), jnp.array([-0.2]), patches
    )
    for name, values in VALUES.items():
        np.testing.assert_allclose(np.ravel(one[name]), values, rtol=1e-6)
        means = np.reshape(each[name], (2, 2, 12)).mean(2)
        np.testing.assert_allclose(whole[name], means, rtol=1e-5)


def test_relativistic_values():
    real, fake = jnp.array([0.5, 1e4]), jnp.array([-0.2, -1e4])
    losses_of = jit_once(
        lambda x, y: (losses.relativistic(x, y), losses.relativistic(y, x))
    )
    loss, other = losses_of(real, fake)
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-0.7)), 0.0], rtol=1e-6)
    np.testing.assert_allclose(other, [np.log1p(np.exp(0.7)), 2e4], rtol=1e-6)


def test_dtypes_and_infinite_certainty(x64):
    functions = [(f, 2 - i) for name in VALUES for i, f in enumerate(pair(name))]
    for dtype in ("bfloat16", "float32", "float64"):
        logits, wide = jnp.zeros(3, dtype), jnp.promote_types(dtype, "float32")
        for f, count in functions:
            assert jax.eval_shape(f, *[logits] * count).dtype == wide

    def slopes(x):
        total = lambda x: [f(*(x, -x)[-count:]).sum() for f, count in functions]
        return jax.jacrev(total)(x)

    logits = jnp.array([-1e30, 0.0, 1e4], "float32")
    assert jnp.isfinite(jnp.stack(jit_once(slopes)(logits))).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: losses.hinge_discriminator(jnp.ones(2), jnp.ones((2, 1))),
            r"fake must have the shape \(2,\) of real; it is \(2, 1\)",
        ),
        (
            lambda: losses.relativistic(jnp.ones(2), jnp.ones(3)),
            r"worse must have the shape \(2,\) of better; it is \(3,\)",
        ),
        (lambda: losses.logistic_generator(jnp.array([1])), "fake must be floating"),
        (lambda: losses.wasserstein_generator(jnp.float32(1)), "fake must be floating"),
    ],
)
def test_bad_logits(call, match):
    with pytest.raises(ValueError, match=match):
        call()


POINTS = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
half_square = lambda x: jnp.square(x).sum(1) / 2


def test_gradient_penalty_values(key):
    # |w| = 5 over all of an image, not over one of its axes.
    w = jnp.array([3.0, 0.0, 0.0, 4.0]).reshape(1, 2, 2, 1)
    linear = lambda x: (w * x).sum((1, 2, 3))
    # Patches: the mean of their values, however many there are.
    patches = lambda x: jnp.broadcast_to(linear(x)[:, None], (3, 7))

    def everything(images, points):
        penalty = losses.gradient_penalty
        return (
            penalty(key, linear, images, 0 * images),
            penalty(key, patches, images, 0 * images),
            penalty(key, half_square, points, points),
            penalty(key, half_square, points, points, weight=2.0, target=0.0),
        )

    *both, loss, zero = jit_once(everything)(jnp.ones((3, 2, 2, 1)), POINTS)
    np.testing.assert_allclose(both, np.full((2, 3), 160.0), rtol=1e-6)
    np.testing.assert_allclose(loss, [0.0, 10.0, 160.0], atol=1e-4)
    np.testing.assert_allclose(loss.mean(), 56.6667, rtol=1e-6)
    np.testing.assert_allclose(zero, [2.0, 8.0, 50.0], rtol=1e-5)


def test_r1_and_r2_values():
    linear = lambda x: x @ jnp.array([3.0, 4.0])
    square = lambda penalty: lambda x: penalty(half_square, x)
    penalties = (lambda x: losses.r1(linear, x), *map(square, (losses.r1, losses.r2)))
    everything = jit_once(lambda x: [penalty(x) for penalty in penalties])
    of_linear, *of_squares = everything(POINTS)
    np.testing.assert_allclose(of_linear, 125.0, rtol=1e-6)
    np.testing.assert_allclose(of_squares, [[5.0, 20.0, 125.0]] * 2, rtol=1e-6)
    np.testing.assert_allclose(of_squares[0].mean(), 50.0, rtol=1e-6)


def test_penalties_differentiate_twice():
    """d/da of gamma / 2 |a x|^2, and of 10 (|a x| - 1)^2 where a = 0 as well."""
    critic = lambda a: lambda x: a * half_square(x)
    r1 = lambda a: losses.r1(critic(a), POINTS).sum()
    penalty = lambda a: losses.gradient_penalty(
        jax.random.key(0), critic(a), POINTS, POINTS
    ).sum()
    slope, at_2, at_0 = jit_once(
        lambda a: (
            jax.grad(r1)(a),
            jax.grad(penalty)(a),
            jax.value_and_grad(penalty)(0 * a),
        )
    )(2.0)
    np.testing.assert_allclose(slope, 10 * 2 * 30.0, rtol=1e-6)
    expected = sum(20 * (2 * r - 1) * r for r in (1.0, 2.0, 5.0))
    np.testing.assert_allclose(at_2, expected, rtol=1e-5)
    assert at_0 == (30.0, 0.0)


def test_one_place_between_each_pair(key):
    """Of D = x_ij^2 / 2 the squared gradient is x_ij^2: the place where it is taken."""
    count = 4096

    def place(i, j):
        one = lambda x: jnp.square(x[:, i, j]) / 2
        real = jnp.ones((count, 2, 3))
        penalty = losses.gradient_penalty(
            key, one, real, 0 * real, weight=1.0, target=0.0
        )
        return jnp.sqrt(penalty)

    places = np.asarray(jit_once(lambda: (place(0, 0), place(1, 2), place(0, 1)))())
    # Uniform and not normal, one for all of an example and not one for each entry.
    np.testing.assert_array_equal(places[1:], places[:1].repeat(2, 0))
    assert 0 <= places.min() < 0.01 < 0.99 < places.max() <= 1
    counts, _ = np.histogram(places[0], 8, (0, 1))
    chi_square = ((counts - count / 8) ** 2 / (count / 8)).sum()
    assert chi_square < 24.3  # 99.9 % of seven degrees of freedom


def test_no_gradient_reaches_the_examples(key):
    penalty = lambda real, fake: (
        losses.gradient_penalty(key, half_square, real, fake)
        + losses.r1(half_square, real)
        + losses.r2(half_square, fake)
    )
    slopes = jit_once(jax.grad(lambda *args: penalty(*args).sum(), (0, 1)))
    assert not jnp.stack(slopes(POINTS, 2 * POINTS)).any()


def test_penalties_keep_dtypes(key, x64):
    for dtype in ("bfloat16", "float32", "float64"):
        seen = []
        discriminate = lambda x, seen=seen: seen.append(x.dtype) or half_square(x)
        both = lambda x, d=discriminate: (
            losses.gradient_penalty(key, d, x, x),
            losses.r1(d, x),
        )
        loss = jax.eval_shape(both, POINTS.astype(dtype))
        assert {each.dtype for each in loss} == {jnp.promote_types(dtype, "float32")}
        assert set(seen) == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: losses.r1(lambda x: x.sum(), POINTS),
            r"discriminate must return a value for each of 3 examples.* \(\)",
        ),
        (lambda: losses.r2(half_square, jnp.array([1])), "fake must be floating"),
        (
            lambda: losses.gradient_penalty(jnp.int32(0), half_square, POINTS, POINTS),
            "key must be a typed key",
        ),
        (
            lambda: losses.gradient_penalty(
                jax.random.key(0), half_square, POINTS, POINTS[:1]
            ),
            r"fake must have the shape \(3, 2\) of real; it is \(1, 2\)",
        ),
    ],
)
def test_bad_penalty(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_adaptive_weight():
    one = {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}
    other = jax.tree.map(lambda leaf: -leaf / 10, one)

    def everything(one, other):
        nothing = jax.tree.map(jnp.zeros_like, one)
        weights = (
            losses.adaptive_weight(one, other),
            losses.adaptive_weight(one, other, maximum=3.0),
            losses.adaptive_weight(one, nothing),
            losses.adaptive_weight(nothing, nothing),
        )
        slopes = jax.grad(losses.adaptive_weight, (0, 1))(nothing, other)
        return jnp.stack(weights), jax.tree.leaves(slopes)

    weights, slopes = jit_once(everything)(one, other)
    np.testing.assert_allclose(weights, [5 / (0.5 + 1e-6), 3.0, 1e4, 0.0], rtol=1e-6)
    assert all(not leaf.any() for leaf in slopes)
    half = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
    assert jax.eval_shape(losses.adaptive_weight, half, half).dtype == jnp.float32
    with pytest.raises(ValueError, match="adversarial_grad must have the structure"):
        losses.adaptive_weight(one, one["bias"])


def test_feature_distance_is_the_formula(x64):
    rng = np.random.default_rng(0)
    shapes = ((2, 3, 2, 4), (2, 5))
    features = [[rng.standard_normal(shape) for shape in shapes] for _ in range(2)]
    weights = [rng.uniform(size=shape[-1]) for shape in shapes]
    expected = np.zeros(2)
    for x, y, w in zip(*features, weights, strict=True):
        x, y = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, y))
        expected += (w * (x - y) ** 2).sum(-1).reshape(2, -1).mean(1)
    args = [[jnp.asarray(a) for a in each] for each in (*features, weights)]
    got = jit_once(losses.feature_distance)(*args)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert got.dtype == jnp.float64


def test_feature_distance_of_silent_features():
    """Features after a ReLU are often all 0 at a place."""
    silent, loud = jnp.zeros((1, 2)), jnp.array([[0.0, 7.0]])
    distance = lambda x, y: losses.feature_distance([x], [y])[0]
    both = jit_once(lambda *args: jax.value_and_grad(distance)(*args))
    for other, expected in ((silent, 0.0), (loud, 1.0)):
        value, slope = both(silent, other)
        assert value == expected
        assert not slope.any()
    for length in (1e-20, 1e-14, 1e20):
        value, slope = both(length * jnp.array([[3.0, 4.0]]), loud)
        np.testing.assert_allclose(value, 0.4, rtol=1e-5)
        want = -2 * np.array([[-0.8 * 0.6, 1 - 0.8 * 0.8]]) / 5
        np.testing.assert_allclose(slope * length, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (([], []), "as many layers, at least one; they are 0, 0 and 0"),
        (([jnp.ones((1, 2))], []), "they are 1, 0 and 1"),
        (([jnp.ones((1, 2))], [jnp.ones((1, 3))]), r"equal shapes.*\(1, 2\).*\(1, 3\)"),
        (
            ([jnp.ones((1, 2))], [jnp.ones((1, 2))], [jnp.ones(3)]),
            r"weights must be \[C\] with C = 2; one is \(3,\)",
        ),
    ],
)
def test_bad_features(args, match):
    with pytest.raises(ValueError, match=match):
        losses.feature_distance(*args)
