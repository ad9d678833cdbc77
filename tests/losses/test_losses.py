"""Losses, weights and time samplers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import (
    GOLDEN,
    KINDS,
    LINEAR_BETAS,
    PATHS,
    TIMES,
    WEIGHTS,
    each,
    inner_times,
    jit_once,
)

from genlib import losses, noise, prediction

every_path = pytest.mark.parametrize("path", **each(PATHS))
every_kind = pytest.mark.parametrize("kind", **each(KINDS))
every_times = pytest.mark.parametrize("times", **each(TIMES))


@every_path
@every_times
@pytest.mark.parametrize("n", [1, 7])
def test_times_are_within_the_path(path, times, n, key):
    t = jit_once(functools.partial(times, path=path, n=n))(key)
    assert t.shape == (n,)
    assert t.dtype == jnp.float32
    assert ((t >= path.t_min) & (t <= path.t_max)).all()
    assert times(key, path, n, jnp.bfloat16).dtype == jnp.float32


@every_times
def test_times_are_deterministic_in_the_key(times, key):
    path = noise.Cosine()
    np.testing.assert_array_equal(times(key, path, 5), times(key, path, 5))
    other = times(jax.random.key(1), path, 5)
    assert (times(key, path, 5) != other).any()


def test_uniform_covers_the_path(key):
    t = losses.uniform(key, noise.EDM(), 100_000) / 80
    np.testing.assert_allclose(jnp.histogram(t, 10, (0, 1))[0] / 1e4, 1, atol=0.05)


def test_stratified_hits_every_bin_once_and_lowers_variance(key):
    keys = jax.random.split(key, 2000)
    t = jax.vmap(lambda k: losses.stratified(k, noise.Cosine(), 64))(keys)
    bins = jnp.sort(jnp.ceil(t * 64).astype(int), axis=1)
    assert (bins == jnp.arange(1, 65)[None]).all()
    np.testing.assert_allclose(jnp.mean(t[:, 0]), 0.5, atol=0.02)  # each is uniform
    # The spread of the mean of t^2 at B = 64: 0.037 if drawn independently.
    assert jnp.std(jnp.mean(t**2, axis=1)) < 0.001


@every_path
def test_log_normal_sigma_has_its_moments(path, key):
    """Away from the ends, ln(sigma / alpha) is the normal that was asked for."""
    t = losses.log_normal_sigma(0.1, 0.5)(key, path, 20_000)
    log_sigma = -0.5 * noise.log_snr(path, t)
    np.testing.assert_allclose(log_sigma.mean(), 0.1, atol=0.015)
    np.testing.assert_allclose(log_sigma.std(), 0.5, rtol=0.02)


def test_log_normal_sigma_is_truncated_to_the_path(key):
    path = noise.EDM(sigma_max=1.0)
    log_sigma = jnp.log(losses.log_normal_sigma(0.0, 1.0)(key, path, 20_000))
    assert log_sigma.max() <= 0
    np.testing.assert_allclose(log_sigma.mean(), -np.sqrt(2 / np.pi), atol=0.02)


def test_logit_normal_has_its_moments(key):
    t = losses.logit_normal(0.3, 0.8)(key, noise.Rectified(), 20_000)
    logit = jnp.log(t) - jnp.log1p(-t)
    np.testing.assert_allclose(logit.mean(), 0.3, atol=0.02)
    np.testing.assert_allclose(logit.std(), 0.8, rtol=0.02)


@pytest.mark.parametrize("label", ["eps", "v", "x0"])
def test_min_snr_matches_the_published_weights(label):
    golden = next(
        v for k, v in GOLDEN["training"].items() if k.startswith(f"min-SNR5 {label}")
    )
    path = noise.DiscreteBetas(LINEAR_BETAS)
    t = jnp.array([0.0, 100.0, 500.0, 999.0]) + 1
    got = losses.min_snr(5.0)(path, KINDS[label], t)
    # The reference takes 1 - alpha_bar in float32, 2e-4 off at the first step.
    np.testing.assert_allclose(got, golden, rtol=3e-4)
    alpha_bar = np.cumprod(1 - LINEAR_BETAS)[[0, 100, 500, 999]]
    snr = alpha_bar / (1 - alpha_bar)
    exact = {"eps": 1 / snr, "v": 1 / (snr + 1), "x0": np.ones(4)}[label]
    np.testing.assert_allclose(got, np.minimum(snr, 5) * exact, rtol=3e-5)


def test_edm_weight_is_one_on_the_edm_kind():
    for path in (noise.EDM(), noise.Cosine(), noise.Rectified(), noise.VPLinear()):
        t = jnp.append(inner_times(path), path.t_max)
        weight = losses.edm(0.7)(path, prediction.EDM(0.7), t)
        np.testing.assert_allclose(weight, 1.0, rtol=1e-4)


def test_edm_weight_matches_the_published_one():
    for sigma in (0.002, 0.5, 1.0, 80.0):
        got = losses.edm(0.5)(noise.EDM(), prediction.X0, jnp.float32(sigma))
        want = GOLDEN["edm"][f"precond_{sigma}"]["w"]
        np.testing.assert_allclose(got, want, rtol=1e-5)


@every_path
def test_weights_are_finite_everywhere(path):
    t = jnp.concatenate(
        [jnp.array([path.t_min, path.t_max], jnp.float32), inner_times(path)]
    )
    weigh = lambda t: {
        (name, str(kind)): weight(path, kind, t)
        for name, weight in WEIGHTS.items()
        for kind in KINDS.values()
    }
    for name, value in jit_once(weigh)(t).items():
        assert jnp.isfinite(value).all(), name
        assert (value >= 0).all(), name


@pytest.mark.parametrize("path", [noise.Cosine(), noise.EDM(), noise.Rectified()])
@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "unit"])
def test_a_weight_weighs_the_same_error_equally_for_every_kind(path, name):
    """The weighted loss of one wrong x_0 does not depend on how it is expressed."""
    x_0 = jnp.full((8, 2), 0.4)
    eps, wrong = jnp.full((8, 2), -1.1), jnp.full((8, 2), 0.65)
    t = inner_times(path)
    x_t = noise.perturb(path, x_0, eps, t)
    weighted = []
    for kind in KINDS.values():
        value = prediction.convert(path, wrong, x_t, t, prediction.X0, kind)
        error = value - prediction.target(path, x_0, eps, t, kind)
        weighted.append(WEIGHTS[name](path, kind, t) * jnp.square(error[:, 0]))
    for other in weighted[1:]:
        np.testing.assert_allclose(other, weighted[0], rtol=5e-3)


@every_path
@every_kind
def test_denoising_loss_is_the_weighted_error_by_hand(path, kind, key):
    x_0 = jnp.linspace(-1, 1, 24).reshape(4, 3, 2)
    scaled = lambda x, t: 0.5 * x + t[:, None, None] * 0.01
    fixed = lambda key, path, n, dtype: jnp.asarray(inner_times(path, 5)[:4], dtype)
    got = losses.denoising(
        key, scaled, path, x_0, kind=kind, weight=losses.min_snr(), times=fixed
    )
    t = fixed(None, path, 4, jnp.float32)
    eps = jax.random.normal(jax.random.split(key)[1], x_0.shape)
    x_t = noise.perturb(path, x_0, eps, t)
    error = scaled(*kind.inputs(path(t), x_t, t)) - prediction.target(
        path, x_0, eps, t, kind
    )
    want = losses.min_snr()(path, kind, t) * (error**2).mean((1, 2))
    assert got.shape == (4,)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@every_kind
def test_perfect_network_has_no_loss(kind, key):
    path = noise.Cosine()
    x_0 = jnp.zeros((8, 2))  # then x_t = sigma eps, and every target is c(t) x_t

    def predict(x_in, t_in):
        t = losses.uniform(jax.random.split(key)[0], path, 8)
        eps = jax.random.normal(jax.random.split(key)[1], x_0.shape)
        return prediction.target(path, x_0, eps, t, kind)

    loss = losses.denoising(key, predict, path, x_0, kind=kind)
    assert loss.shape == (8,)
    assert (loss < 1e-10).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes(dtype, key, x64):
    seen = []

    def predict(x, t):
        seen.append((x.dtype, t.dtype))
        return x

    x_0 = jnp.ones((2, 3), dtype)
    wide = jnp.promote_types(dtype, "float32")
    loss = losses.denoising(key, predict, noise.Cosine(), x_0, kind=prediction.V)
    assert loss.dtype == wide
    assert seen == [(x_0.dtype, wide)]


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 4, 4, 1)])
def test_any_data_shape(shape, key):
    loss = losses.denoising(
        key, lambda x, t: x, noise.Rectified(), jnp.ones(shape), kind=prediction.EPS
    )
    assert loss.shape == shape[:1]


def test_sweeping_settings_traces_once(key):
    traces = []

    @jax.jit
    def loss(gamma, beta_max, sigma_data):
        traces.append(gamma)
        return losses.denoising(
            key,
            lambda x, t: x,
            noise.VPLinear(beta_max=beta_max),
            jnp.ones((2, 2)),
            kind=prediction.EDM(sigma_data),
            weight=losses.min_snr(gamma),
        )

    assert (loss(5.0, 20.0, 0.5) != loss(1.0, 10.0, 0.9)).all()
    assert len(traces) == 1


@pytest.mark.parametrize("x_0", [jnp.ones(()), jnp.ones((2, 2), int)])
def test_bad_data(x_0, key):
    with pytest.raises(ValueError, match="x_0 must be floating data"):
        losses.denoising(key, lambda x, t: x, noise.Cosine(), x_0, kind=prediction.V)


def test_bad_network_and_kind(key):
    x_0, path = jnp.ones((2, 2)), noise.Cosine()
    with pytest.raises(ValueError, match="predict must return the shape"):
        losses.denoising(key, lambda x, t: x[:, 0], path, x_0, kind=prediction.V)
    with pytest.raises(ValueError, match="kind must be"):
        losses.denoising(key, lambda x, t: x, path, x_0, kind="v")
