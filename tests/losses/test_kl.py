"""Divergences against closed forms, quadrature and counting, and what free bits do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh, PartitionSpec
from laws.registry import jit_once

from genlib import losses

MEAN, LOG_STD = np.array([0.5, -1.0, 0.0]), np.array([0.0, -0.5, 0.3])


def test_golden_normal():
    kl = losses.kl_normal(MEAN, LOG_STD)
    assert kl.dtype == jnp.float32
    np.testing.assert_allclose(kl, [0.125, 0.683940, 0.111059], atol=1e-6)
    np.testing.assert_allclose(kl.sum(), 0.919999, atol=1e-6)


def test_golden_free_bits():
    """What is free has no gradient."""

    def loss(mean):
        return losses.free_bits(losses.kl_normal(mean, LOG_STD), 0.25).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.array(MEAN))
    np.testing.assert_allclose(value, 1.183940, atol=1e-6)
    assert gradient.tolist() == [0, -1, 0]


def test_normal_is_the_integral(x64):
    mean, std, prior_mean, prior_std = 0.3, 0.7, -0.4, 1.9
    z = np.linspace(-8, 8, 4001)
    q = scipy.stats.norm(mean, std)
    ratio = q.logpdf(z) - scipy.stats.norm(prior_mean, prior_std).logpdf(z)
    got = losses.kl_normal(mean, np.log(std), prior_mean, np.log(prior_std))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, np.trapezoid(q.pdf(z) * ratio, z), rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normal_at_the_extremes(dtype):
    """Little cancels where q is nearly p, and widths of all sizes are finite."""
    log_std = jnp.array([-80.0, -0.5, 0.0, 2.0**-7, 0.5, 40.0], dtype)
    kl, gradient = jax.vmap(
        jax.value_and_grad(lambda s: losses.kl_normal(jnp.zeros((), dtype), s))
    )(log_std)
    exact = np.array(log_std, np.float64)
    want = 0.5 * (np.expm1(2 * exact) - 2 * exact)
    assert kl.dtype == jnp.float32
    np.testing.assert_allclose(kl, want, rtol=2e-5)
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.float64(gradient), np.expm1(2 * exact), rtol=2e-5 + rounding
    )


def test_multivariate_normal_is_the_closed_form(x64):
    rng = np.random.default_rng(0)
    (scale, prior_scale), (mean, prior_mean) = (
        rng.normal(size=(2, 4, *shape)) for shape in ((3, 3), (3,))
    )
    scale[0, 1, 1] *= -1  # a factor, though none of Cholesky's
    got, shared, standard = jit_once(
        lambda *args: (
            losses.kl_multivariate_normal(*args),
            losses.kl_multivariate_normal(*args[:2], args[2][0], args[3][0]),
            losses.kl_multivariate_normal(*args[:2]),
        )
    )(mean, scale, prior_mean, prior_scale)  # which are not triangular

    def closed(m, L, p, R):
        covariance = np.tril(L) @ np.tril(L).T
        precision = np.linalg.inv(np.tril(R) @ np.tril(R).T)
        log_det = np.linalg.slogdet(precision @ covariance)[1]
        squares = np.trace(precision @ covariance) + (m - p) @ precision @ (m - p)
        return 0.5 * (squares - 3 - log_det)

    for i in range(4):
        q = mean[i], scale[i]
        np.testing.assert_allclose(got[i], closed(*q, prior_mean[i], prior_scale[i]))
        np.testing.assert_allclose(shared[i], closed(*q, prior_mean[0], prior_scale[0]))
        np.testing.assert_allclose(standard[i], closed(*q, np.zeros(3), np.eye(3)))


def test_a_diagonal_covariance_is_that_of_independent_variables():
    scale = jnp.diag(jnp.exp(jnp.asarray(LOG_STD, jnp.float32)))
    got = losses.kl_multivariate_normal(MEAN, scale)
    np.testing.assert_allclose(got, 0.919999, atol=1e-6)


def test_categorical():
    """The golden one, and outcomes that cannot be on one side or on both."""
    logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    np.testing.assert_allclose(losses.kl_categorical(logits), 0.296794, atol=1e-6)
    q = jnp.log(jnp.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.5, 0.0, 0.5]]))
    p = jnp.log(jnp.array([0.25, 0.75, 0.0]))
    value, gradient = jax.vmap(jax.value_and_grad(losses.kl_categorical), (0, None))(
        q, p
    )
    want = [
        0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75),
        0.2 * np.log(0.2 / 0.25) + 0.8 * np.log(0.8 / 0.75),
        np.inf,
    ]
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert jnp.isfinite(gradient[:2]).all()
    np.testing.assert_allclose(losses.kl_categorical(q, p), want, rtol=1e-5)
    # e^-200 is 0 in float32.
    faint = jax.value_and_grad(losses.kl_categorical)(jnp.array([0.0, -200.0]), p[1:])
    assert faint[0] == 0
    assert jnp.isfinite(faint[1]).all()
    wide = losses.kl_categorical(jnp.array([1e4, -1e4, 3e38], jnp.bfloat16))
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, np.log(3), rtol=1e-6)


def test_free_bits_of_a_batch():
    """A latent may be below the minimum in one example if the batch is above it."""
    kl = jnp.array([[0.0, 0.1], [1.0, 0.2]])
    limit = functools.partial(losses.free_bits, minimum=0.25, over="batch")
    value, gradient = jax.value_and_grad(lambda kl: limit(kl).sum())(kl)
    np.testing.assert_allclose(limit(kl), [[0.5, 0.25], [0.5, 0.25]])
    np.testing.assert_allclose(value, 1.5)
    assert gradient.tolist() == [[1, 0], [1, 0]]


def test_free_bits_of_a_batch_on_many_devices():
    mesh = Mesh(jax.devices("cpu"), "data")
    kl = jax.random.uniform(jax.random.key(0), (8, 3))
    one = functools.partial(losses.free_bits, minimum=0.5, over="batch")
    split = jax.shard_map(
        functools.partial(one, axis_name="data"),
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
    )
    summed = lambda f: jax.value_and_grad(lambda kl: f(kl).sum())
    (want, want_gradient), (got, gradient) = jit_once(
        lambda kl: (summed(one)(kl), summed(split)(kl))
    )(kl)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-6)
    assert 0 < np.count_nonzero(gradient[0]) < 3


def test_cyclical_annealing():
    got = losses.cyclical_annealing(jnp.arange(9), 4, 0.25)
    assert got.tolist() == [0, 1, 1, 1, 0, 1, 1, 1, 0]
    late = losses.cyclical_annealing(jnp.int32(2**30 + 1), 8)  # no float32
    np.testing.assert_allclose(late, 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.kl_multivariate_normal(MEAN, MEAN),
            r"scale_tril must be .*\[3\]",
        ),
        (
            lambda: losses.kl_multivariate_normal(MEAN, np.eye(3), MEAN[:2]),
            r"prior_mean must be \[3\].*\[2\]",
        ),
        (
            lambda: losses.kl_categorical(MEAN, MEAN[:2]),
            r"prior_logits must .*\[2\] and \[3\]",
        ),
        (
            lambda: losses.free_bits(jnp.ones(2), 0.1, over="group"),
            r"'dimension' or 'batch'; it is 'group'",
        ),
        (lambda: losses.free_bits(jnp.ones(2), -0.1), r"negative; it is -0\.1"),
        (lambda: losses.cyclical_annealing(1, 0), r"period must be .* it is 0"),
        (lambda: losses.cyclical_annealing(1, 9, 1.5), r"share must be .* it is 1\.5"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
