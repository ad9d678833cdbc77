"""The variational bound, against closed forms for Gaussian data.

The network returns x_0 off by the posterior's standard deviation: each loss is then its
expectation, and a quadrature over t is all that is left to do.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once
from losses.golden import GOLDEN

from genlib import losses, noise, prediction
from genlib.noise import Marginal, Path
from genlib.tree import register_dataclass
from genlib.types import Scalar, expand_like, float_array

ELBO = GOLDEN["elbo"]
NODES, AREAS = np.polynomial.legendre.leggauss(400)
NODES, AREAS = 0.5 * (1 + NODES), 0.5 * AREAS
SHAPE = (3, 2)
every_variance = pytest.mark.parametrize("variance", ELBO)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BentVP(Path):
    """A variance-preserving path whose log-SNR is straight, or bent in between."""

    high: Scalar = 13.3
    low: Scalar = -5.0
    bend: Scalar = 0.0

    def log_snr(self, t):
        t = float_array(t)
        place = t + self.bend * t * (1 - t)
        return self.high + (self.low - self.high) * place

    def __call__(self, t):
        log_snr = self.log_snr(t)
        root = lambda x: jnp.sqrt(jax.nn.sigmoid(x))
        return Marginal(root(log_snr), root(-log_snr))


PATHS = {
    "straight": BentVP(),
    "bent": BentVP(bend=0.7),
    "ve": noise.VE(np.exp(-13.3 / 2), np.exp(5.0 / 2)),
    "part": noise.Cosine(),
}
PART = {"start": 2 / np.pi * np.arctan(np.exp(-13.3 / 2))}
PART["end"] = 2 / np.pi * np.arctan(np.exp(5.0 / 2))


def exact(path, x_0, variance, kind):
    """Return a network whose squared error is the variance of x_0 given x_t."""

    def predict(x_t, t):
        log_snr = path.log_snr(t)
        miss = jnp.sqrt(variance / (1 + variance * jnp.exp(log_snr)))
        x_0_hat = x_0 + expand_like(miss, x_0)
        return prediction.convert(path, x_0_hat, x_t, t, prediction.X0, kind)

    return predict


def bound(path, variance, kind, dtype, draws, steps=None, **interval):
    x_0 = jnp.ones((len(draws), *SHAPE), dtype)
    return losses.vdm_diffusion(
        jax.random.key(0),
        exact(path, x_0, variance, kind),
        path,
        x_0,
        kind=kind,
        steps=steps,
        draw=lambda key, path, n, dtype: jnp.asarray(draws, dtype),
        **interval,
    ) / np.prod(SHAPE)


@pytest.mark.parametrize("name", PATHS)
def test_diffusion_depends_on_the_ends_of_the_path_alone(name, x64):
    interval = PART if name == "part" else {}
    run = jit_once(
        lambda variance: bound(
            PATHS[name], variance, prediction.X0, float, NODES, **interval
        )
    )
    rtol = 1e-6 if name == "ve" else 1e-8
    for variance, want in ELBO.items():
        got = AREAS @ run(float(variance))
        np.testing.assert_allclose(got, want["diffusion"], rtol, err_msg=variance)


@pytest.mark.parametrize("kind", [prediction.EPS, prediction.V, prediction.VELOCITY])
def test_diffusion_is_the_same_for_every_kind(kind, x64):
    got = jit_once(lambda x: bound(PATHS["bent"], x, kind, float, NODES))(2.0)
    np.testing.assert_allclose(AREAS @ got, ELBO["2.0"]["diffusion"], rtol=1e-6)


def test_diffusion_in_float32():
    got = bound(BentVP(), 1.0, prediction.X0, jnp.float32, NODES)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(AREAS @ got, ELBO["1.0"]["diffusion"], rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_diffusion_of_a_chain(steps, x64):
    draws = (np.arange(steps) + 0.5) / steps  # one within each step
    run = jit_once(
        lambda variance: bound(BentVP(), variance, prediction.X0, float, draws, steps)
    )
    for variance, want in ELBO.items():
        got = run(float(variance)).mean()
        np.testing.assert_allclose(
            got, want["steps"][str(steps)], rtol=1e-8, err_msg=variance
        )


@every_variance
def test_prior_reconstruction_and_the_whole_bound(variance, x64):
    path, root = BentVP(), np.sqrt(float(variance))
    x_0 = jnp.full((1, *SHAPE), root) * jnp.array([1.0, -1.0])[None, None]
    size = np.prod(SHAPE)
    prior = losses.vdm_prior(path, x_0, prior_std=1.0) / size
    reconstruction = losses.vdm_reconstruction(path, x_0) / size
    want = ELBO[variance]
    np.testing.assert_allclose(prior, want["prior"], rtol=1e-8)
    np.testing.assert_allclose(reconstruction, want["reconstruction"], rtol=1e-8)

    x_0 = jnp.tile(x_0, (len(NODES), 1, 1))
    given = lambda key, path, n, dtype: jnp.asarray(NODES, dtype)
    total = losses.vdm(
        jax.random.key(0),
        exact(path, x_0, float(variance), prediction.X0),
        path,
        x_0,
        kind=prediction.X0,
        prior_std=1.0,
        draw=given,
    )
    assert total.shape == (len(NODES),)
    np.testing.assert_allclose(AREAS @ total / size, want["total"], rtol=1e-8)
    np.testing.assert_allclose(want["total"], want["entropy"], rtol=1.4e-5)


def test_prior_is_by_default_that_of_sampling(key):
    path, x_0 = BentVP(), jax.random.normal(key, (4, 3))
    got = losses.vdm_prior(path, x_0)
    np.testing.assert_allclose(got, 0.5 * np.exp(-5.0) * (x_0**2).sum(1), rtol=1e-5)
    assert (losses.vdm_prior(noise.Cosine(), x_0) < 1e-10).all()
    later, earlier = (losses.vdm_prior(path, x_0, end=t) for t in (0.9, 0.8))
    assert (earlier > later).all()


@pytest.mark.parametrize("steps", [None, 20])
def test_an_estimate_agrees_with_the_bound(steps, key):
    """Random times, noise and data, and the true denoiser."""
    path, variance = BentVP(), 0.25
    x_0 = 0.5 * jax.random.normal(key, (4096, 2))

    @jit_once
    def estimate(key):
        def denoise(x_t, t):
            alpha, sigma = (expand_like(c, x_t) for c in path(t))
            return alpha * variance * x_t / (alpha**2 * variance + sigma**2)

        return losses.vdm_diffusion(
            key, denoise, path, x_0, kind=prediction.X0, steps=steps
        )

    got = estimate(jax.random.key(1)) / 2
    if steps is None:
        want = ELBO["0.25"]["diffusion"]
    else:
        snr = np.exp(np.linspace(13.3, -5.0, steps + 1))
        error = variance / (1 + variance * snr[1:])
        want = 0.5 * np.sum((snr[:-1] - snr[1:]) * error)
    assert abs(got.mean() - want) < 4 * got.std() / 64


def test_gradients_reach_the_path(x64):
    """What the bound depends on: the ends, and not what is between them."""
    loss = lambda path: AREAS @ bound(path, 0.5, prediction.X0, float, NODES)
    slope = jit_once(jax.grad(loss))(BentVP(bend=0.3))
    at_end = lambda snr: 0.5 * 0.5 * snr / (1 + 0.5 * snr)
    np.testing.assert_allclose(slope.high, at_end(np.exp(13.3)), rtol=1e-6)
    np.testing.assert_allclose(slope.low, -at_end(np.exp(-5.0)), rtol=1e-6)
    np.testing.assert_allclose(slope.bend, 0.0, atol=1e-6)


def run(path=None, steps=None, **interval):
    x_0 = jnp.ones((2, 3))
    return losses.vdm(
        jax.random.key(0),
        lambda x, t: x,
        path or BentVP(),
        x_0,
        kind=prediction.V,
        steps=steps,
        **interval,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(steps=0), r"steps must be at least 1, or None; it is 0"),
        (lambda: run(noise.Cosine()), r"start must be a time with sigma > 0.*0\.0"),
        (lambda: run(start=0.5, end=0.2), r"start must be before end.*0\.5.*0\.2"),
        (lambda: run(start=-0.1), r"start must be within \[0\.0, 1\.0\].*-0\.1"),
        (lambda: run(end=1.5), r"end must be within .* 1\.5"),
        (
            lambda: losses.vdm_prior(BentVP(), jnp.ones((2, 2), int)),
            r"x_0 must be floating data",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_eps_says_nothing_at_the_end_of_a_chain_without_signal(key):
    predict = lambda x_t, t: 0 * x_t
    data = jnp.ones((4, 2))
    settings = {"kind": prediction.EPS, "start": 1e-3}
    with pytest.raises(ValueError, match="not determined by EPS"):
        losses.vdm_diffusion(key, predict, noise.Cosine(), data, steps=20, **settings)
    loss = losses.vdm_diffusion(key, predict, noise.Cosine(), data, **settings)
    assert jnp.isfinite(loss).all()
