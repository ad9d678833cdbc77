"""Splines: the reference's numbers, the edges of the interval, and under stress."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows

X = np.array([-1.7, 0.0, 0.3, 1.9])
Y = np.array([-1.560215, 2.296632, 2.488216, 2.904731])
LOG_SLOPE = np.array([2.09231, -0.364161, -0.542797, -4.548896])


def fixture() -> np.ndarray:
    """The reference's raw numbers: five bins on [-3, 3]."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.standard_normal(n) * 2 for n in (5, 5, 4)])


def test_agrees_with_other_libraries():
    """What distrax, flowjax, zuko and nflows agree on, in both directions."""
    plain = flows.spline(5, bound=3.0, limit=None)

    @jit_once
    def both(raw, x):
        y, log_det = plain.forward(raw, x)
        return y, log_det, *plain.inverse(raw, y)

    # The slope at 1.9 is 0.01, so float32 knows no more of what was sent there.
    for dtype, tolerance, back in (("float32", 1e-5, 3e-5), ("float64", 1e-6, 1e-6)):
        with jax.enable_x64(dtype == "float64"):
            results = both(np.tile(fixture(), (4, 1)).astype(dtype), X.astype(dtype))
        assert {result.dtype.name for result in results} == {dtype}
        np.testing.assert_allclose(results[0], Y, atol=tolerance)
        np.testing.assert_allclose(results[1], LOG_SLOPE, atol=tolerance)
        np.testing.assert_allclose(results[2], X, atol=back)
        np.testing.assert_allclose(results[3], -LOG_SLOPE, atol=back)


def test_nothing_happens_outside_and_at_zero():
    """At and beyond the bounds the log-derivative is 0, not nearly 0."""
    univariate, circle = flows.spline(5, bound=3.0), flows.circular_spline(5, bound=3.0)
    outside = np.float32([-5.0, -3.0, 3.0, 5.0, 1e6])
    inside = np.linspace(-4.0, 4.0, 33, dtype=np.float32)

    @jit_once
    def all_of(raw, outside, inside):
        return (
            univariate.forward(raw, outside),
            univariate.inverse(raw, outside),
            univariate.forward(jnp.zeros((33, 14)), inside),
            circle.forward(jnp.zeros((33, 15)), inside),
        )

    raw = np.tile(fixture().astype(np.float32), (5, 1))
    forward, inverse, zero, zero_circle = all_of(raw, outside, inside)
    for y, log_det in (forward, inverse):
        np.testing.assert_array_equal(y, outside)
        np.testing.assert_array_equal(log_det, 0)
    for y, log_det in (zero, zero_circle):
        np.testing.assert_allclose(y, inside, atol=1e-6)
        np.testing.assert_allclose(log_det, 0, atol=1e-6)


@pytest.mark.parametrize(
    "univariate",
    [
        flows.spline(),
        flows.spline(limit=None),
        flows.circular_spline(bound=5.0),
    ],
)
def test_is_finite_under_stress(univariate):
    """Logits of scale 100 give no infinite value or gradient in either direction."""
    key_raw, key_x = jax.random.split(jax.random.key(0))
    raw = 100 * jax.random.normal(key_raw, (4096, univariate.size))
    x = jax.random.uniform(key_x, (4096,), minval=-5.5, maxval=5.5)
    x = x.at[:6].set(jnp.array([-10.0, -5.0, 0.0, 5.0, 10.0, 1e6]))

    def all_of(raw, x):
        def total(function):
            return lambda raw, x: sum(part.sum() for part in function(raw, x))

        return [
            (f(raw, x), jax.grad(total(f), (0, 1))(raw, x))
            for f in (univariate.forward, univariate.inverse)
        ]

    for leaf in jax.tree.leaves(jit_once(all_of)(raw, x)):
        assert np.isfinite(leaf).all()


def test_round_trip_of_large_logits():
    """Float32 still inverts where networks emit logits of scale 5."""
    univariate = flows.spline(8, bound=5.0)
    key_raw, key_x = jax.random.split(jax.random.key(1))
    raw = 5 * jax.random.normal(key_raw, (20_000, univariate.size))
    x = jax.random.uniform(key_x, (20_000,), minval=-5.0, maxval=5.0)

    @jit_once
    def error(raw, x):
        y, log_det = univariate.forward(raw, x)
        back, log_det_back = univariate.inverse(raw, y)
        return jnp.abs(back - x), jnp.abs(log_det + log_det_back)

    errors = error(raw, x)
    assert np.quantile(errors[0], 0.99) <= 2e-3
    assert np.quantile(errors[1], 0.99) <= 2e-3


def test_log_slope_and_gradient_at_knots():
    """At a knot the derivative is whole: nothing there is clipped by halves."""
    univariate = flows.spline(4, bound=2.0, min_width=0.0, min_height=0.0)
    knots = np.array([-1.0, 0.0, 1.0])  # as all bins are equal
    raw = np.random.default_rng(1).normal(size=(3, 11)) * (np.arange(11) >= 8)
    for function in (univariate.forward, univariate.inverse):
        with jax.enable_x64(True):
            (y, log_det), (slope, _) = jit_once(
                lambda raw, x, f=function: jax.jvp(
                    lambda x: f(raw, x), (x,), (jnp.ones_like(x),)
                )
            )(raw, knots)
        np.testing.assert_allclose(y, knots, atol=1e-14)
        np.testing.assert_allclose(np.log(slope), log_det, atol=1e-13)


def test_circle():
    """The circle closes smoothly, keeps whole turns, and covers itself once."""
    univariate = flows.circular_spline(6)
    raw = np.tile(np.random.default_rng(2).normal(size=18), (4, 1))
    x, turns = np.array([-3.0, -0.2, 1.3, 2.9]), 4 * math.pi
    seam = np.array([-math.pi, math.pi - 1e-9, math.pi, 0.0])

    @jit_once
    def all_of(raw, x, seam):
        turned = univariate.forward(raw, x + turns)
        back = univariate.inverse(raw, turned[0])
        return univariate.forward(raw, x), turned, back, univariate.forward(raw, seam)

    with jax.enable_x64(True):
        here, turned, back, at_seam = jax.tree.map(np.asarray, all_of(raw, x, seam))
    assert (np.abs(here[0]) < math.pi).all()
    np.testing.assert_allclose(turned[0], here[0] + turns, atol=1e-13)
    np.testing.assert_allclose(turned[1], here[1], atol=1e-12)
    np.testing.assert_allclose(back[0], x + turns, atol=1e-12)
    np.testing.assert_allclose(at_seam[0][:3], seam[:3], atol=1e-8)
    np.testing.assert_allclose(at_seam[1][1:3], at_seam[1][0], atol=1e-6)
    assert abs(at_seam[1][0]) > 0.1  # the shared slope is free


def test_settings_are_traced():
    """A bound that is a traced number gives what the same constant gives."""
    raw, x = np.linspace(-1, 1, 22).reshape(2, 11), np.array([0.3, -1.2])

    @jit_once
    def both(bound, limit):
        traced = flows.spline(4, bound=bound, limit=limit)
        constant = flows.spline(4, bound=2.0, limit=5.0)
        return traced.forward(raw, x), constant.forward(raw, x)

    traced, constant = both(2.0, 5.0)
    np.testing.assert_allclose(traced, constant, rtol=1e-5)


@pytest.mark.parametrize("make", [flows.spline, flows.circular_spline])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bins": 1}, "bins must be at least 2; it is 1"),
        ({"bound": 0.0}, "bound must be positive; it is 0.0"),
        ({"min_width": 0.125}, r"min_width must be in \[0, 1 / bins\); it is 0.125"),
        ({"min_height": -0.1}, r"min_height must be in \[0, 1 / bins\); it is -0.1"),
        ({"min_slope": 1.0}, r"min_slope must be in \(0, 1\); it is 1.0"),
        ({"limit": 100.0}, r"limit must be in \(0, 80\] or None; it is 100.0"),
    ],
)
def test_refuses(make, settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)
