"""Integers as continuous data, and bits for each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once
from scipy.stats import norm

from genlib import flows, likelihood

LEVELS = jnp.arange(256).reshape(4, 64)
# The logits of u are noise + 2 x_scaled, whatever the key.
SHIFTED = flows.Bijector(
    init=lambda key, x, cond=None: {},
    forward=lambda params, x, cond=None: (x + 2 * cond, jnp.zeros(x.shape[0])),
    inverse=lambda params, y, cond=None: (y - 2 * cond, jnp.zeros(y.shape[0])),
)


def test_the_uniform_model_needs_eight_bits(key):
    model = flows.density(flows.uniform_dequantization(), flows.uniform())
    sample, log_prob = jit_once(
        lambda key: (
            model.sample(key, {}, (8, 64), dtype=jnp.int32),
            model.log_prob({}, LEVELS, key=key),
        )
    )(key)
    bits = likelihood.bits_per_dim(log_prob, LEVELS.shape[1:])
    np.testing.assert_allclose(bits, 8.0, rtol=3e-7)
    assert sample.dtype == jnp.int32
    assert set(np.unique(sample)) <= set(range(256))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("variational", [False, True])
def test_every_level_comes_back(variational, x64, key):
    """In its own bin, with contributions that cancel."""
    settings = [(256, 0.0, 1.0), (17, -1.0, 1.0), (256, -1.1, 0.7)]
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32

        def both(key, levels, low, high):
            given = dict(low=low, high=high, dtype=dtype)
            layer = flows.uniform_dequantization(levels, **given)
            if variational:
                layer = flows.variational_dequantization(SHIFTED, levels, **given)
            x = jnp.minimum(LEVELS, levels - 1)
            y, log_det = layer.forward({}, x, key=key)
            return x, y, log_det, *layer.inverse({}, y, key=key)

        run = jit_once(lambda key: [both(key, *row) for row in settings])
        results = jax.device_get(run(key))
    for (_, low, high), (x, y, log_det, back, log_det_back) in zip(
        settings, results, strict=True
    ):
        np.testing.assert_array_equal(back, x)
        assert low <= y.min() < y.max() < high
        assert y.dtype == log_det.dtype == log_det_back.dtype == dtype
        # In float32, the noise is read off 16 bits.
        atol = 1e-9 if x64 else 0.5
        np.testing.assert_allclose(log_det, -log_det_back, atol=atol)


def test_values_out_of_range_go_to_the_nearest_level(key):
    y = jnp.array([[-3.0, -1e-6, 1.0, 7.0]])
    for layer in (
        flows.uniform_dequantization(4),
        flows.variational_dequantization(SHIFTED, 4),
    ):
        x, log_det = layer.inverse({}, y, key=key)
        assert x.tolist() == [[0, 0, 3, 3]]
        assert jnp.isfinite(log_det).all()


def test_the_mean_likelihood_is_the_probability_of_the_integer(key):
    """E exp(log p(y) + contribution) is the integral of p over the bin."""
    x = jnp.tile(jnp.arange(4), 20_000)[:, None]
    model = flows.density(flows.uniform_dequantization(4, low=-2.0, high=2.0))
    weights = jnp.exp(jit_once(model.log_prob)({}, x, key=key)).reshape(-1, 4)
    expected = np.diff(norm.cdf([-2, -1, 0, 1, 2]))
    error = np.asarray(weights.std(0)) / 20_000**0.5
    assert (np.abs(np.asarray(weights.mean(0)) - expected) < 4 * error).all()
    assert error.max() < 1e-3


def test_variational_noise_counts_by_its_density(key, x64):
    """log w - log q(u | x), with logit(u) ~ N(2 x_scaled, 1)."""
    layer = flows.variational_dequantization(
        SHIFTED, 4, low=-2.0, high=2.0, dtype=jnp.float64
    )
    x = jnp.arange(4)[:, None]
    y, log_det = layer.forward({}, x, key=key)
    u = np.asarray(y) + 2 - np.asarray(x)
    mean = 2 * (np.asarray(x) / 1.5 - 1)
    log_q = norm.logpdf(np.log(u) - np.log1p(-u), mean) - np.log(u * (1 - u))
    np.testing.assert_allclose(log_det, -log_q[:, 0], rtol=1e-9)


def test_the_flow_of_the_noise_sees_scaled_data(key):
    seen = []
    flow = SHIFTED._replace(init=lambda key, x, cond=None: seen.append((x, cond)) or {})
    layer = flows.variational_dequantization(flow, 5)
    assert layer.init(key, jnp.array([[0, 2, 4]])) == {}
    noise, cond = seen[0]
    assert noise.shape == (1, 3)
    assert cond.tolist() == [[-1.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("nats", "dimension", "settings", "bits"),
    [
        (1980.50, 784, dict(bin_width=1 / 256), 4.3555),
        (1980.50, 784, dict(levels=256, low=0.0, high=1.0), 4.3555),
        (5371.78, 3072, dict(levels=256), 4.4773),
        (5371.78, 3072, dict(bin_width=2 / 256), 4.4773),
    ],
)
def test_bits_of_nice(nats, dimension, settings, bits):
    """The nats of arXiv:1410.8516: MNIST in [0, 1], CIFAR-10 in [-1, 1]."""
    got = likelihood.bits_per_dim(nats, (dimension,), **settings)
    np.testing.assert_allclose(got, bits, atol=5e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key: flows.uniform_dequantization().forward({}, LEVELS),
            r"key must be given: dequantisation",
        ),
        (
            lambda key: flows.uniform_dequantization().forward({}, LEVELS / 2, key=key),
            r"x must hold integers; its dtype is float32",
        ),
        (
            lambda key: flows.variational_dequantization(SHIFTED, 17).forward(
                {}, LEVELS, key=key
            ),
            r"x must be within \[0, 17\); it holds 17",
        ),
        (lambda key: flows.uniform_dequantization(0), r"levels must be at least 1"),
        (
            lambda key: flows.uniform_dequantization(low=1.0),
            r"high - low must be positive; it is 0\.0",
        ),
        (
            lambda key: flows.uniform_dequantization(dtype=jnp.bfloat16),
            r"dtype must be float32 or float64; it is bfloat16",
        ),
        (
            lambda key: likelihood.bits_per_dim(1.0, (3,), bin_width=1.0, levels=256),
            r"bin_width must not be given beside levels 256; it is 1\.0",
        ),
        (
            lambda key: likelihood.bits_per_dim(1.0, (3,), low=0.0),
            r"levels must be given with low 0\.0 and high None",
        ),
        (
            lambda key: likelihood.bits_per_dim(1.0, (3,), levels=2, low=1.0),
            r"high - low must be positive; it is 0\.0",
        ),
    ],
)
def test_bad_arguments(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(key)
