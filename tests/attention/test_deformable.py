"""Sampling of images, deformable convolution and attention against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import (
    bilinear_sample,
    deformable_attention,
    deformable_convolution,
)


def wave(*shape, step):
    count = np.arange(1, np.prod(shape) + 1)
    return np.sin(step * count).reshape(shape)


def sampled(image, y, x):
    """Interpolate [H, W, C] at one place, by the sum over all pixels."""
    rows = np.maximum(0, 1 - np.abs(y - np.arange(image.shape[0])))
    columns = np.maximum(0, 1 - np.abs(x - np.arange(image.shape[1])))
    return np.einsum("h,w,hwc->c", rows, columns, image)


def convolved(x, kernel, offsets, modulation, strides, pads, dilation):
    """Return what `deformable_convolution` is, of one group, by loops."""
    kh, kw = kernel.shape[:2]
    y = np.zeros((*offsets.shape[:3], kernel.shape[-1]))
    for b, h, w, k in np.ndindex(*offsets.shape[:3], kh * kw):
        row = h * strides[0] - pads[0] + k // kw * dilation[0]
        column = w * strides[1] - pads[1] + k % kw * dilation[1]
        dy, dx = offsets[b, h, w, 2 * k : 2 * k + 2]
        pixel = sampled(x[b], row + dy, column + dx)
        y[b, h, w] += modulation[b, h, w, k] * pixel @ kernel[k // kw, k % kw]
    return y


def test_samples_are_those_of_the_formula_and_zero_outside():
    x = wave(2, 4, 5, 3, step=0.7)
    places = 3 + 5 * wave(2, 4, 6, 2, step=1.3)
    places[0, 0, :, :] = [[-1, 2], [3.5, 1], [4, 4], [1e30, 1], [-np.inf, 1], [3, 4]]
    found = jit_once(bilinear_sample)(jnp.float32(x), jnp.float32(places))
    places = np.clip(places, -9, 9)  # outside anyway
    expected = [[sampled(x[b], *p) for p in places[b].reshape(-1, 2)] for b in (0, 1)]
    np.testing.assert_allclose(found.reshape(2, -1, 3), expected, atol=2e-6)
    assert (found[0, 0, [0, 2, 3, 4]] == 0).all()


SETTINGS = {
    "same": dict(strides=1, padding="SAME", dilation=1),
    "strided": dict(strides=(2, 1), padding=((1, 2), (0, 0)), dilation=(1, 2)),
    "valid": dict(strides=2, padding="VALID", dilation=1, groups=2, offset_groups=4),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_without_offsets_it_is_a_convolution(name):
    settings = SETTINGS[name]
    groups = settings.get("groups", 1)
    pair = lambda size: (size, size) if isinstance(size, int) else size
    x = jnp.float32(wave(2, 7, 6, 4, step=0.7))
    kernel = jnp.float32(wave(3, 2, 4 // groups, 6, step=1.1))
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        pair(settings["strides"]),
        settings["padding"],
        rhs_dilation=pair(settings["dilation"]),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    taps = 6 * settings.get("offset_groups", 1)
    zeros = jnp.zeros((*expected.shape[:3], 2 * taps))
    ones = jnp.ones((*expected.shape[:3], taps))
    convolve = jit_once(functools.partial(deformable_convolution, **settings))
    for y in (convolve(x, kernel, zeros), convolve(x, kernel, zeros, ones)):
        np.testing.assert_allclose(y, expected, atol=1e-6)


def test_an_offset_of_a_pixel_is_a_shift():
    x = np.float32(wave(1, 5, 6, 2, step=0.7))
    kernel = jnp.eye(2)[None, None]
    convolve = jit_once(deformable_convolution)
    for axis in (0, 1):
        offsets = np.zeros((1, 5, 6, 2), np.float32)
        offsets[..., axis] = 1.0
        y = convolve(x, kernel, offsets)
        more = [(0, 0), (0, 1 - axis), (0, axis), (0, 0)]
        shifted = np.pad(x, more)[:, 1 - axis :, axis:]
        np.testing.assert_array_equal(y, shifted)


def test_half_pixels_and_modulation_equal_a_loop():
    x, kernel = wave(2, 5, 6, 3, step=0.7), wave(3, 2, 3, 4, step=1.1)
    offsets = np.round(3 * wave(2, 3, 4, 12, step=1.3)) / 2
    modulation = 0.5 + 0.5 * wave(2, 3, 4, 6, step=0.9)
    settings = dict(strides=(2, 1), padding=((1, 1), (0, 0)), dilation=(1, 2))
    convolve = jit_once(functools.partial(deformable_convolution, **settings))
    found = convolve(*map(jnp.float32, (x, kernel, offsets, modulation)))
    expected = convolved(x, kernel, offsets, modulation, (2, 1), (1, 0), (1, 2))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_results_and_gradients_are_those_of_another_library(x64):
    """Numbers of torch 2.13, by grid_sample and its derivatives, in float64."""
    arrays = [
        wave(2, 5, 6, 4, step=0.7),
        wave(3, 2, 2, 6, step=1.1),
        2.5 * wave(2, 3, 4, 24, step=1.3),
        0.5 + 0.5 * wave(2, 3, 4, 12, step=0.9),
    ]

    def convolve(*arrays):
        return deformable_convolution(
            *arrays,
            strides=(2, 1),
            padding=((1, 1), (0, 0)),
            dilation=(1, 2),
            groups=2,
            offset_groups=2,
        )

    def all_at_once(*arrays):
        y, vjp = jax.vjp(convolve, *arrays)
        cotangent = wave(2, 3, 4, 6, step=0.3)
        each = [y, *vjp(cotangent)]
        directions = [wave(*x.shape, step=0.37) for x in each]
        _, forward = jax.jvp(convolve, arrays, tuple(directions[1:]))
        sums = [(x * d).sum() for x, d in zip(each, directions, strict=True)]
        return sums, (forward * cotangent).sum()

    found, forward = jit_once(all_at_once)(*map(jnp.asarray, arrays))
    golden = [
        -5.459403959747413,
        -5.464181005406204,
        4.445583269800855,
        18.52700879586799,
        1.0777768614221457,
    ]
    np.testing.assert_allclose(found, golden, rtol=1e-12)
    np.testing.assert_allclose(forward, sum(golden[1:]), rtol=1e-12)


def test_offsets_have_a_derivative_where_they_are_zero():
    x = jnp.array([1.0, 4.0, 9.0]).reshape(1, 1, 3, 1)
    places = jnp.array([[[0.0, 1.0]]])
    slope = jax.grad(lambda places: bilinear_sample(x, places).sum())(places)
    assert slope[0, 0].tolist() == [-4.0, 5.0]  # to zeros below, to the right


def test_bad_offsets_spoil_nothing_else():
    x = jnp.float32(wave(1, 4, 4, 2, step=0.7))
    kernel = jnp.float32(wave(3, 3, 2, 2, step=1.1))
    good = jnp.float32(wave(1, 4, 4, 18, step=1.3))
    bad = good.at[0, 0, 0, 4].set(jnp.nan)
    bad = bad.at[0, 1, 1].set(1e30).at[0, 2, 2].set(-jnp.inf)
    seen = jnp.ones((1, 4, 4, 1)).at[0, [0, 1, 2], [0, 1, 2]].set(0.0)

    @jit_once
    def run(offsets):
        def loss(x, kernel, offsets):
            y = deformable_convolution(x, kernel, offsets)
            return jnp.where(seen > 0, y, 0.0).sum(), y

        args = (x, kernel, offsets)
        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)

    (_, expected), expected_grads = run(good)
    (_, y), grads = run(bad)
    assert jnp.isnan(y[0, 0, 0]).all()
    assert (y[0, [1, 2], [1, 2]] == 0).all()
    keep = np.broadcast_to(seen > 0, y.shape)
    np.testing.assert_array_equal(y[keep], expected[keep])
    for found, like in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, like, atol=1e-6)


def test_places_stay_exact_beside_narrow_images():
    x = jnp.asarray(np.arange(512).reshape(1, 1, 512, 1) % 8, jnp.bfloat16)
    one = jnp.ones((1, 1, 1, 1), x.dtype)

    @jit_once
    def run(x, offsets):
        places = offsets.at[..., 1].add(300)  # 300.25 in bfloat16 would be 300
        y, vjp = jax.vjp(lambda x: bilinear_sample(x, places), x)
        gradient = vjp(jnp.ones_like(y))[0]
        return y, gradient, deformable_convolution(x, one, offsets)

    y, gradient, convolved = run(x, jnp.zeros((1, 1, 512, 2)).at[..., 1].set(0.25))
    assert y.dtype == gradient.dtype == convolved.dtype == jnp.bfloat16
    assert (y == 4.25).all()
    assert convolved[0, 0, 300].item() == 4.25
    # Sums in bfloat16 would stop growing at 256.
    assert gradient[0, 0, 300:302, 0].tolist() == [384.0, 128.0]


def test_attention_is_that_of_another_library(x64):
    """The core of MSDeformAttn by grid_sample(align_corners=False) of torch 2.13."""
    values = [wave(2, 4, 6, 2, 4, step=0.7), wave(2, 3, 2, 2, 4, step=0.7 + 0.1)]
    places = 0.5 + 0.7 * wave(2, 5, 2, 2, 3, 2, step=1.7)
    weights = 0.5 + 0.5 * wave(2, 5, 2, 2, 3, step=0.9)
    attend = jit_once(deformable_attention)
    found = attend(list(map(jnp.asarray, values)), places, weights)
    golden = [
        0.14488446930971324,
        -0.2329098053982084,
        0.022796174902596226,
        0.23659802271554328,
        -0.08897255015152808,
        0.1565203630922632,
        0.12650624609118286,
    ]
    np.testing.assert_allclose(found.ravel()[::13], golden, rtol=1e-12)
    probe = (found * wave(*found.shape, step=0.37)).sum()
    np.testing.assert_allclose(probe, -0.5194504384570009, rtol=1e-12)
    b, t, n = 1, 3, 1
    expected = sum(
        weights[b, t, n, l, p]
        * sampled(value[b, :, :, n], *(places[b, t, n, l, p] * value.shape[1:3] - 0.5))
        for l, value in enumerate(values)
        for p in range(3)
    )
    np.testing.assert_allclose(found[b, t, n], expected, rtol=1e-12)


def test_a_query_at_no_place_spoils_no_other():
    values = jnp.float32(wave(1, 3, 3, 1, 2, step=0.7))
    places = jnp.full((1, 2, 1, 1, 2, 2), 0.4)
    weights = jnp.ones((1, 2, 1, 1, 2))

    @jit_once
    def run(places):
        attend = lambda values, *args: deformable_attention([values], *args)
        y, vjp = jax.vjp(attend, values, places, weights)
        return y, vjp(jnp.zeros_like(y).at[0, 1].set(1.0))

    expected, expected_grads = run(places)
    y, grads = run(places.at[0, 0, 0, 0, 1, 0].set(jnp.nan))
    assert jnp.isnan(y[0, 0]).all()
    assert (y[0, 1] == expected[0, 1]).all()
    jax.tree.map(np.testing.assert_array_equal, grads, expected_grads)


X, KERNEL, OFFSETS = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), (1, 4, 4, 18)


def test_an_image_without_pixels_is_zero():
    x, places = jnp.ones((1, 0, 2, 3)), jnp.zeros((1, 4, 2))
    np.testing.assert_array_equal(bilinear_sample(x, places), np.zeros((1, 4, 3)))


MISTAKES = {
    "rank": (lambda: bilinear_sample(X[0], X), r"x must be .* \[4, 4, 2\]"),
    "places": (
        lambda: bilinear_sample(X, jnp.ones((2, 3, 2))),
        r"locations must be .*",
    ),
    "whole": (
        lambda: bilinear_sample(X, jnp.ones((1, 3, 2), int)),
        r"locations must be floating .* int32",
    ),
    "offsets": (
        lambda: deformable_convolution(X, KERNEL, jnp.ones((1, 4, 4, 9))),
        r"offsets must be .* \[1, 4, 4, 18\], got .* \[1, 4, 4, 9\]",
    ),
    "modulation": (
        lambda: deformable_convolution(X, KERNEL, jnp.ones(OFFSETS), X),
        r"modulation must be .* \[1, 4, 4, 9\]",
    ),
    "kernel": (
        lambda: deformable_convolution(X, KERNEL, jnp.ones(OFFSETS), groups=2),
        r"kernel must be .* \[any, any, 1, any\]",
    ),
    "dtype": (
        lambda: deformable_convolution(
            X, KERNEL.astype(jnp.bfloat16), jnp.ones(OFFSETS)
        ),
        "kernel must be float32 .* bfloat16",
    ),
    "groups": (
        lambda: deformable_convolution(X, KERNEL, jnp.ones(OFFSETS), offset_groups=3),
        "offset_groups must divide the 2 channels, got 3",
    ),
    "padding": (
        lambda: deformable_convolution(X, KERNEL, jnp.ones(OFFSETS), padding="FULL"),
        "padding must be .* 'FULL'",
    ),
    "dilation": (
        lambda: deformable_convolution(X, KERNEL, jnp.ones(OFFSETS), dilation=(1, -1)),
        r"dilation must be positive, got \(1, -1\)",
    ),
    "no levels": (lambda: deformable_attention([], X, X), "at least one level"),
    "levels": (
        lambda: deformable_attention(
            [X[..., None]], jnp.ones((1, 3, 2, 2, 1, 2)), jnp.ones((1, 3, 2, 2, 1))
        ),
        r"locations must be .* \[1, any, 2, 1, any, 2\]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()
