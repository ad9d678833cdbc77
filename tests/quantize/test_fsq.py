"""Finite scalar quantization against its closed form, and where others fail."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import quantize

Z = jnp.array([[0.0] * 4, [10.0] * 4, [-10.0] * 4, [0.3, -0.7, 0.9, -0.1]])


def centre(bottleneck, levels):
    """Return codes of all indices, and the z whose bound they are, eps = 1e-3."""
    levels = np.array(levels)
    codes = np.asarray(bottleneck.lookup({}, jnp.arange(bottleneck.size)), np.float64)
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0, 0.5)
    shift = np.arctanh(offset / half)
    return codes, np.arctanh((codes * (levels // 2) + offset) / half) - shift


def test_codes_indices_and_gradients_of_the_paper():
    bottleneck = quantize.fsq([8, 5, 5, 5])

    @jit_once
    def run(z):
        grads = jax.grad(lambda z: bottleneck.quantize({}, z).codes.sum())(z)
        return bottleneck.quantize({}, z), grads

    quantized, grads = run(Z)
    assert bottleneck.size == 1000
    assert quantized.indices.dtype == jnp.int32
    assert quantized.indices.tolist() == [500, 999, 0, 533]
    assert quantized.codes.tolist() == [
        [0.0] * 4,
        [0.75, 1.0, 1.0, 1.0],
        [-1.0] * 4,
        [0.25, -0.5, 0.5, 0.0],
    ]
    np.testing.assert_allclose(grads[0], [0.858036, 1.001, 1.001, 1.001], rtol=1e-6)
    np.testing.assert_allclose(grads[1:3], 0, atol=1e-6)
    # The gradient is that of the bound where it is not at its centre, too.
    shift = np.arctanh(0.5 / 3.5035)
    slope = 3.5035 / 4 / np.cosh(0.3 + shift) ** 2
    np.testing.assert_allclose(grads[3, 0], slope, rtol=1e-6)
    assert quantized.losses == {}
    assert quantized.statistics == ()


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 6, 5)])
def test_indices_and_codes_are_one_to_one_in_bfloat16(levels):
    bottleneck = quantize.fsq(levels)
    codes, z = centre(bottleneck, levels)
    assert len({tuple(code) for code in codes.tolist()}) == bottleneck.size
    run = jit_once(lambda z: bottleneck.quantize({}, z))
    quantized = run(jnp.asarray(z, jnp.bfloat16))
    assert quantized.indices.tolist() == list(range(bottleneck.size))
    assert quantized.codes.dtype == jnp.bfloat16
    np.testing.assert_array_equal(quantized.codes, codes.astype(jnp.bfloat16))
    # What becomes of indices whose digits are added up in the dtype of z.
    rounded = jnp.array([1001, 1002, 1003]).astype(jnp.bfloat16).astype(jnp.int32)
    assert rounded.tolist() == [1000, 1000, 1004]


def test_normal_input_uses_every_code(key):
    bottleneck = quantize.fsq((8, 5, 5, 5))
    quantized = jit_once(
        lambda key: bottleneck.quantize({}, jax.random.normal(key, (100_000, 4)))
    )(key)
    counts = quantize.histogram(quantized.indices, bottleneck.size)
    assert quantize.usage(counts) == 1
    np.testing.assert_allclose(quantized.perplexity, quantize.perplexity(counts))
    assert 600 < quantized.perplexity < 1000


def test_two_levels_meet_at_zero():
    bottleneck = quantize.fsq((2, 3))
    z = jnp.array([[-1e-3, 0.0], [0.0, 0.0], [1e-3, 0.0], [3.0, 9.0], [-3.0, -9.0]])
    run = jit_once(lambda z: bottleneck.quantize({}, z).indices)
    assert run(z).tolist() == [2, 3, 3, 5, 0]


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.03])
def test_indices_are_in_range_wherever_the_bound_ends(eps):
    bottleneck = quantize.fsq((2, 7, 32), eps=eps)
    ends = jnp.array([[-jnp.inf] * 3, [-1e30] * 3, [1e30] * 3, [jnp.inf] * 3])
    quantized = jit_once(lambda z: bottleneck.quantize({}, z))(ends)
    assert quantized.indices.tolist() == [0, 0, 447, 447]
    np.testing.assert_allclose(quantized.codes[0], -1, rtol=1e-6)


def test_nan_has_the_middle_digit_and_spoils_no_other_gradient():
    bottleneck = quantize.fsq((8, 5, 5, 5))
    z = Z.at[3, 1].set(jnp.nan)

    @jit_once
    def run(z):
        indices = bottleneck.quantize({}, z).indices
        return indices, jax.grad(lambda z: bottleneck.quantize({}, z).codes.sum())(z)

    indices, grads = run(z)
    assert indices.tolist() == [500, 999, 0, 533 + 8]
    assert np.argwhere(np.isnan(grads)).tolist() == [[3, 1]]


def test_noise_replaces_rounding_in_its_share_of_the_examples(key):
    levels = np.array((8, 5, 5))
    bottleneck = quantize.fsq(levels.tolist(), noise=0.25)
    z = 3 * jax.random.normal(key, (4000, 2, 3))
    noisy, still = jit_once(
        lambda z: (bottleneck.quantize({}, z, key=key), bottleneck.quantize({}, z))
    )(z)
    np.testing.assert_array_equal(noisy.indices, still.indices)
    assert noisy.indices.min() >= 0
    assert noisy.indices.max() < 200
    np.testing.assert_array_equal(still.codes, bottleneck.lookup({}, still.indices))
    # All vectors of an example have noise, or none has.
    changed = np.asarray(noisy.codes != still.codes)
    examples = changed.any((1, 2))
    assert changed[examples].mean() > 0.999
    assert abs(examples.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    # Uniform within one step about the bound, of which the code is within half a step.
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0, 0.5)
    bound = np.tanh(np.asarray(z) + np.arctanh(offset / half)) * half - offset
    steps = (noisy.codes * (levels // 2).reshape(1, 1, 3) - bound)[examples]
    assert np.abs(steps).max() <= 0.5 + 1e-5
    np.testing.assert_allclose(steps.std(), np.sqrt(1 / 12), rtol=0.03)
    assert abs(steps.mean()) < 4 * np.sqrt(1 / 12 / steps.size)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ((8, 1), {}, r"levels must be at least 2; they are \(8, 1\)"),
        ((), {}, "levels must be a sequence of integers"),
        ((8.0, 5.0), {}, "levels must be a sequence of integers"),
        ((2**16, 2**15), {}, r"at most 2\^31 - 1 codes.* is 2147483648"),
        ((1001,), {"eps": 1e-3}, "eps must be from 0 to less than .* 0.001; it is"),
        ((8, 5), {"eps": -0.1}, "eps must be from 0"),
        ((8, 5), {"noise": 1.5}, "noise must be within 0 .. 1; it is 1.5"),
    ],
)
def test_settings_without_meaning_are_refused(levels, options, message):
    with pytest.raises(ValueError, match=message):
        quantize.fsq(levels, **options)


def test_vectors_of_another_width_are_refused():
    bottleneck = quantize.fsq((8, 5))
    for function in (bottleneck.quantize, bottleneck.init):
        with pytest.raises(ValueError, match=r"z must be .* D = 2"):
            function({}, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"indices must be within 0 \.\. 39"):
        bottleneck.lookup({}, jnp.array([40]))


LEVELS, DEPTH = (5, 8, 3), 4
RESIDUAL = quantize.residual_fsq(LEVELS, DEPTH)


@pytest.fixture(scope="module")
def stages():
    """Return z, its gradient's weights, and what the stages make of it, jitted once."""
    z = 2 * jax.random.normal(jax.random.key(1), (64, 3))
    weights = jax.random.normal(jax.random.key(2), (64, 3))

    @jit_once
    def run(z):
        loss = lambda bottleneck, z: (bottleneck.quantize({}, z).codes * weights).sum()
        quantized = RESIDUAL.quantize({}, z)
        # Each stage alone, and the stages up to each.
        number = jnp.arange(DEPTH)
        only = number[:, None, None] == number[None, None]
        first = number[:, None, None] >= number[None, None]
        kept = lambda which: jnp.where(which, quantized.indices[None], -1)
        return (
            quantized,
            [RESIDUAL.lookup({}, kept(which)) for which in (only, first)],
            jax.grad(loss, argnums=1)(RESIDUAL, z),
            jax.grad(loss, argnums=1)(quantize.fsq(LEVELS), z),
            quantize.fsq(LEVELS).quantize({}, z),
        )

    return z, *run(z)


def test_stages_add_up_to_the_codes_and_leave_less_and_less(stages):
    z, quantized, (only, first), *_ = stages
    np.testing.assert_array_equal(first[-1], quantized.codes)
    np.testing.assert_allclose(only.sum(0), quantized.codes, atol=1e-6)
    levels = np.array(LEVELS)
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0, 0.5)
    bound = np.tanh(np.asarray(z) + np.arctanh(offset / half)) * half - offset
    left = np.abs(bound / (levels // 2) - np.asarray(first, np.float64))
    assert (np.diff(left, axis=0) <= 1e-6).all()
    # Half a step of each stage, and what eps lets the bound go beyond the outermost.
    step = (levels - 1.0) ** -np.arange(DEPTH)[:, None] / (levels // 2)
    beyond = (levels - 1) * 0.001 / 2 / (levels // 2)
    assert (left <= (step / 2 + beyond + 1e-6)[:, None]).all()


def test_the_first_stage_is_fsq_and_the_gradient_is_its_own(stages):
    _, quantized, _, grads, grads_of_one, one = stages
    np.testing.assert_array_equal(quantized.indices[:, 0], one.indices)
    np.testing.assert_allclose(quantized.perplexity[0], one.perplexity, rtol=1e-6)
    assert quantized.perplexity.shape == (DEPTH,)
    assert np.abs(grads).max() > 0.1
    np.testing.assert_allclose(grads, grads_of_one, rtol=1e-6)


def test_all_values_of_odd_levels_occur_in_every_stage(key):
    bottleneck = quantize.residual_fsq((5, 3), 3)
    z = jax.random.normal(key, (4000, 2))
    indices = jit_once(lambda z: bottleneck.quantize({}, z).indices)(z)
    for stage in range(3):
        assert set(indices[:, stage].tolist()) == set(range(15))


def test_dropout_leaves_out_the_last_stages(key):
    bottleneck = quantize.residual_fsq((5, 3), 3, dropout=0.6, keep=2)
    z = jax.random.normal(key, (3000, 2, 2))
    mask = jnp.ones((3000, 2), bool).at[0, 1].set(False)
    some, full = jit_once(
        lambda z: [bottleneck.quantize({}, z, mask=mask, key=k) for k in (key, None)]
    )(z)
    dropped = np.asarray(some.indices) == -1
    assert (full.indices == -1).sum() == 3
    assert dropped[0, 1].all()
    np.testing.assert_array_equal(some.codes, bottleneck.lookup({}, some.indices))
    np.testing.assert_array_equal(
        some.indices, np.where(dropped, -1, np.asarray(full.indices))
    )
    dropped = dropped[1:]
    np.testing.assert_array_equal(dropped[:, 0], dropped[:, 1])
    assert not dropped[..., :2].any()
    # Of the 0.6, half draw all three stages.
    assert abs(dropped[:, 0, 2].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 3000)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (((5, 2), 2), {}, "levels must be at least 3"),
        (((5, 3), 0), {}, "depth must be at least 1"),
        (((5, 3), 13), {}, r"at most 2\^24.* 13 and 4\^13"),
        (((5, 3), 2), {"keep": 3}, "keep must be within 1 .. 2; it is 3"),
        (((5, 3), 2), {"dropout": -0.5}, "dropout must be within 0 .. 1"),
    ],
)
def test_stages_without_meaning_are_refused(settings, options, message):
    with pytest.raises(ValueError, match=message):
        quantize.residual_fsq(*settings, **options)
    with pytest.raises(ValueError, match=r"indices must be \[..., 4\]"):
        RESIDUAL.lookup({}, jnp.zeros((5, 3), int))


def test_all_stages_together_are_one_fine_grid(x64):
    """Levels of an odd number, cut in stages, are those of a uniform grid."""
    bottleneck = quantize.residual_fsq((5,), 3)
    indices = np.array(list(itertools.product(range(5), repeat=3)))
    codes = jit_once(lambda indices: bottleneck.lookup({}, indices))(indices)
    grid = np.unique(np.asarray(codes))
    # Steps of 1/16, from -(2 + 2/4 + 2/16)/2 on.
    np.testing.assert_array_equal(grid, np.arange(-42, 43) / 32)
    assert codes.dtype == jnp.float64
