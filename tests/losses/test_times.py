"""Distributions of training times, against their quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from laws.registry import MORE_PATHS, PATHS, TIMES, each, jit_once
from losses.golden import GOLDEN

from genlib import losses, noise

every_path = pytest.mark.parametrize("path", **each(PATHS | MORE_PATHS))

U = np.linspace(0.05, 0.95, 19)


def grid(key, path, n, dtype):
    """Draw the same fractions of a path each time."""
    return jnp.asarray(path.t_min + U * (path.t_max - path.t_min), dtype)


def quantiles(times, path):
    return np.asarray(times(jax.random.key(0), path, U.size, jnp.float64))


@every_path
def test_times_are_within_the_path(path, key):
    for name, times in TIMES.items():
        t = times(key, path, 7)
        assert t.shape == (7,), name
        assert t.dtype == jnp.float32, name
        assert ((t >= path.t_min) & (t <= path.t_max)).all(), name
    assert losses.mode()(key, path, 1, jnp.bfloat16).dtype == jnp.float32


def test_times_are_deterministic_in_the_key_and_the_same_compiled(key):
    path = noise.Cosine()
    draw = lambda key: {name: f(key, path, 5) for name, f in TIMES.items()}
    compiled, eager = jit_once(draw), draw(key)
    same, other = compiled(key), compiled(jax.random.key(1))
    for name, t in eager.items():
        np.testing.assert_allclose(same[name], t, rtol=2e-5, err_msg=name)
        assert (other[name] != same[name]).any(), name


def test_times_have_the_precision_of_the_data(key, x64):
    for name, times in TIMES.items():
        for data, want in (("float64", "float64"), ("bfloat16", "float32")):
            draw = lambda key, f=times, d=data: f(key, noise.Cosine(), 2, jnp.dtype(d))
            assert jax.eval_shape(draw, key).dtype == want, name


def test_uniform_covers_the_path(key):
    t = losses.uniform(key, noise.EDM(), 100_000) / 80
    np.testing.assert_allclose(jnp.histogram(t, 10, (0, 1))[0] / 1e4, 1, atol=0.05)


@pytest.mark.parametrize(
    ("times", "spread"),
    [
        (losses.uniform, 0.0374),
        (losses.low_discrepancy, 0.0045),
        (losses.stratified, 0.00065),
    ],
    ids=["uniform", "low_discrepancy", "stratified"],
)
def test_spread_of_a_batch_mean(times, spread):
    """The standard deviation of the mean of t^2 at B = 64."""
    keys = jax.random.split(jax.random.key(0), 6000)
    t = jit_once(jax.vmap(lambda k: times(k, noise.Cosine(), 64)))(keys)
    np.testing.assert_allclose(jnp.std(jnp.mean(t**2, axis=1)), spread, rtol=0.04)
    np.testing.assert_allclose(jnp.mean(t[:, 0]), 0.5, atol=0.015)  # each is uniform
    if times is not losses.uniform:
        bins = jnp.sort(jnp.ceil(t * 64).astype(int), axis=1)
        assert (bins == jnp.arange(1, 65)[None]).all()


def test_low_discrepancy_draws_reach_other_distributions(key):
    t = losses.logit_normal(draw=losses.low_discrepancy)(key, noise.Rectified(), 64)
    u = scipy.stats.norm.cdf(np.log(t) - np.log1p(-t))
    np.testing.assert_allclose(np.diff(np.sort(u)), 1 / 64, rtol=1e-3)


def test_mode_matches_the_published_map(x64):
    u, want = (np.array(GOLDEN["mode"][name]) for name in ("u", "t"))
    given = lambda key, path, n, dtype: jnp.asarray(u, dtype)
    got = losses.mode(1.29, draw=given)(None, noise.Rectified(), 5, jnp.float64)
    # The published map falls in u, ours is the same map of 1 - u.
    np.testing.assert_allclose(got, want[::-1], atol=1e-15)
    np.testing.assert_allclose(want[1], 0.616416126, atol=1e-9)


def test_logit_normal_quantiles(x64):
    got = quantiles(losses.logit_normal(0.3, 0.8, draw=grid), noise.Rectified())
    want = scipy.special.expit(scipy.stats.norm.ppf(U, 0.3, 0.8))
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize(
    ("times", "law"),
    [
        (losses.log_normal_sigma(0.1, 0.5, draw=grid), scipy.stats.norm(0.1, 0.5)),
        (
            losses.log_logistic_sigma(-0.7, 1.5, draw=grid),
            scipy.stats.logistic(-0.7, 1.5),
        ),
    ],
    ids=["log_normal", "log_logistic"],
)
@pytest.mark.parametrize("path", [noise.EDM(3.0), noise.VE(0.2, 5.0), noise.Cosine()])
def test_log_sigma_quantiles_are_truncated_to_the_path(times, law, path, x64):
    got = -0.5 * noise.log_snr(path, quantiles(times, path))
    ends = jnp.array([path.t_min, path.t_max], jnp.float64)
    low, high = law.cdf(-0.5 * np.asarray(noise.log_snr(path, ends)))
    np.testing.assert_allclose(got, law.ppf(low + (high - low) * U), atol=1e-9)


@pytest.mark.parametrize(
    ("path", "low", "high"), [(noise.Cosine(), -4, 6), (noise.VE(0.2, 5.0), -3.2, 3.2)]
)
def test_uniform_log_snr_covers_what_the_path_has(path, low, high, x64):
    got = noise.log_snr(
        path, quantiles(losses.uniform_log_snr(-4.0, 6.0, draw=grid), path)
    )
    if isinstance(path, noise.VE):
        low, high = -2 * np.log(5.0), -2 * np.log(0.2)
    np.testing.assert_allclose(got, high + U * (low - high), atol=1e-9)


def test_uniform_on_another_path(x64):
    on_cosine = losses.uniform_on(noise.Cosine(), draw=grid)
    v_diffusion = np.tan(U * np.arctan(80.0))
    np.testing.assert_allclose(quantiles(on_cosine, noise.EDM()), v_diffusion, 1e-9)
    for path in PATHS.values():
        itself = quantiles(losses.uniform_on(path, draw=grid), path)
        np.testing.assert_allclose(itself, grid(None, path, 19, jnp.float64), 1e-6)


def test_beta_has_its_moments(key):
    t = losses.beta(2.0, 0.7)(key, noise.EDM(), 20_000) / 80
    law = scipy.stats.beta(2.0, 0.7)
    np.testing.assert_allclose(t.mean(), law.mean(), atol=0.01)
    np.testing.assert_allclose(t.std(), law.std(), rtol=0.02)


def test_sweeping_settings_traces_once(key):
    traces = []

    @jit_once
    def draw(a, b):
        traces.append(a)
        path = noise.Cosine()
        return [
            times(key, path, 3)
            for times in (
                losses.logit_normal(a, b),
                losses.mode(a),
                losses.log_normal_sigma(a, b),
                losses.log_logistic_sigma(a, b),
                losses.uniform_log_snr(-a, b),
            )
        ]

    one, two = draw(0.5, 1.0), draw(0.7, 1.2)
    assert len(traces) == 1
    assert all((x != y).any() for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.mode(2.0), r"scale must be within .* 2\.0"),
        (lambda: losses.beta(0.0, 1.0), r"a must be positive; it is 0\.0"),
        (lambda: losses.beta(1.0, -1.0), r"b must be positive; it is -1\.0"),
        (lambda: losses.uniform_log_snr(3, 3), r"low must be less than high.*3.*3"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()
