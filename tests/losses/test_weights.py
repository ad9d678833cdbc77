"""Loss weights: published numbers, identities, and the same error for every kind."""

import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import (
    GOLDEN,
    KINDS,
    LINEAR_BETAS,
    MORE_PATHS,
    PATHS,
    WEIGHTS,
    each,
    inner_times,
    jit_once,
)
from losses.golden import GOLDEN as LOSSES

from genlib import losses, noise, prediction

every_path = pytest.mark.parametrize("path", **each(PATHS))

EPS, V, X0 = prediction.EPS, prediction.V, prediction.X0


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
    """w c_out^2 = 1 on any path, up to its noise end."""
    paths = PATHS | MORE_PATHS
    times = {name: np.append(inner_times(p), p.t_max) for name, p in paths.items()}
    weight = lambda path, t: losses.edm(0.7)(path, prediction.EDM(0.7), t)
    run = jit_once(lambda t: {name: weight(paths[name], t[name]) for name in paths})
    for name, got in run(times).items():
        np.testing.assert_allclose(got, 1.0, rtol=1e-4, err_msg=name)


def test_edm_weight_matches_the_published_one():
    for sigma in (0.002, 0.5, 1.0, 80.0):
        got = losses.edm(0.5)(noise.EDM(), X0, jnp.float32(sigma))
        want = GOLDEN["edm"][f"precond_{sigma}"]["w"]
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_sd3_weights_match_the_published_ones_on_the_velocity():
    sigma, want = (jnp.array(LOSSES["cosmap"][name]) for name in ("sigma", "weight"))
    path, kind = noise.Rectified(), prediction.VELOCITY
    np.testing.assert_allclose(losses.cosmap(path, kind, sigma), want, rtol=1e-5)
    np.testing.assert_allclose(
        losses.sigma_sqrt(path, kind, sigma), sigma**-2, rtol=1e-5
    )
    at_half = losses.cosmap(path, kind, jnp.float32(0.5))
    np.testing.assert_allclose(at_half, 1.27323949, rtol=1e-6)


@pytest.mark.parametrize("weight", [losses.cosmap, losses.sigma_sqrt])
def test_sd3_weights_are_those_of_a_noise_level(weight):
    """The x_0 error at one log-SNR has one weight, on any path."""
    log_snr = jnp.array([4.0, 0.3, -5.0])
    flow = noise.Rectified()
    want = weight(flow, X0, noise.time_at(flow, log_snr))
    for path in (noise.Cosine(), noise.EDM(), noise.VPLinear()):
        got = weight(path, X0, noise.time_at(path, log_snr))
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_soft_min_snr_is_that_of_k_diffusion():
    sigma, sigma_data = jnp.array([0.002, 0.3, 0.5, 2.0, 80.0]), 0.5
    got = losses.soft_min_snr(sigma_data**-2)(
        noise.EDM(), prediction.EDM(sigma_data), sigma
    )
    want = (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_weights_of_the_eps_error():
    """The formulas as published, for a network that predicts eps."""
    path = noise.Cosine()
    t = inner_times(path)
    log_snr = noise.log_snr(path, t)
    snr = jnp.exp(log_snr)
    wanted = [
        (losses.p2(), 1 / (1 + snr)),
        (losses.p2(0.5, 2.0), (2 + snr) ** -0.5),
        (losses.p2(0.0), 1 + 0 * snr),
        (losses.sigmoid(1.5), 1 / (1 + jnp.exp(log_snr - 1.5))),
        (losses.soft_min_snr(np.exp(1.5)), 1 / (1 + jnp.exp(log_snr - 1.5))),
        (losses.min_snr(5.0), jnp.minimum(snr, 5) / snr),
    ]
    for weight, want in wanted:
        np.testing.assert_allclose(weight(path, EPS, t), want, rtol=1e-4)
        np.testing.assert_allclose(weight(path, X0, t), want * snr, rtol=1e-4)
        np.testing.assert_allclose(
            weight(path, V, t), want * snr / (snr + 1), rtol=1e-4
        )


def test_likelihood_weighs_the_score_by_the_diffusion_coefficient(x64):
    paths = PATHS | MORE_PATHS
    times = {name: np.asarray(inner_times(p, 5), float) for name, p in paths.items()}
    both = lambda path, t: (
        losses.likelihood(path, prediction.SCORE, t),
        noise.drift_diffusion(path, t)[1] ** 2,
    )
    run = jit_once(lambda t: {name: both(paths[name], t[name]) for name in paths})
    for name, (got, want) in run(times).items():
        np.testing.assert_allclose(got, want, rtol=1e-8, err_msg=name)
    beta = losses.likelihood(noise.VPLinear(), prediction.SCORE, jnp.float64(0.3))
    np.testing.assert_allclose(beta, 0.1 + 0.3 * 19.9, rtol=1e-12)


def test_per_log_snr_has_the_rate_of_the_log_snr(x64):
    t = jnp.linspace(0.05, 0.95, 7)
    flat = losses.per_log_snr(losses.on_x0(jnp.ones_like))
    straight = flat(noise.Rectified(), X0, t)
    np.testing.assert_allclose(straight, 2 / (t * (1 - t)), rtol=1e-12)
    cosine = flat(noise.Cosine(), X0, t)
    np.testing.assert_allclose(cosine, 2 * np.pi / np.sin(np.pi * t), rtol=1e-12)


@every_path
def test_weights_are_finite_everywhere(path):
    t = jnp.concatenate(
        [jnp.array([path.t_min, path.t_max], jnp.float32), inner_times(path)]
    )
    for name, weight in WEIGHTS.items():
        for kind in KINDS.values():
            value = weight(path, kind, t)
            assert value.shape == t.shape
            assert value.dtype == jnp.float32
            assert jnp.isfinite(value).all(), (name, kind)
            assert (value >= 0).all(), (name, kind)


def test_a_factor_that_overflows_meets_one_that_underflows():
    """At the end of this path SNR is 1e-44: the weight of eps is 1, or 0 in float32."""
    path = noise.Polynomial(3.0)
    assert jnp.isfinite(losses.snr(path, EPS, path.t_max))
    assert losses.snr(path, EPS, jnp.float32(1 - 1e-6)).round(3) == 1


@pytest.mark.parametrize("path", [noise.Cosine(), noise.EDM(), noise.Rectified()])
def test_a_weight_weighs_the_same_error_equally_for_every_kind(path):
    """The weighted loss of one wrong x_0 does not depend on how it is expressed."""
    x_0 = jnp.full((8, 2), 0.4)
    eps, wrong = jnp.full((8, 2), -1.1), jnp.full((8, 2), 0.65)
    t = inner_times(path)
    x_t = noise.perturb(path, x_0, eps, t)
    squares = []
    for kind in KINDS.values():
        value = prediction.convert(path, wrong, x_t, t, X0, kind)
        error = value - prediction.target(path, x_0, eps, t, kind)
        squares.append((kind, jnp.square(error[:, 0])))
    for name in WEIGHTS.keys() - {"unit"}:
        first, *others = (WEIGHTS[name](path, kind, t) * e for kind, e in squares)
        for other in others:
            np.testing.assert_allclose(other, first, rtol=5e-3, err_msg=name)


def test_uncertainty():
    loss, u = jnp.array([0.3, 2.0, 0.0]), jnp.array([-1.0, 0.5, 0.2])
    got = losses.uncertainty(loss, u)
    np.testing.assert_allclose(got, loss / np.exp(u) + u, rtol=1e-6)
    best = losses.uncertainty(loss[:2], jnp.log(loss[:2]))  # u = ln loss
    for away in (-0.1, 0.1):
        assert (losses.uncertainty(loss[:2], jnp.log(loss[:2]) + away) > best).all()
    half = losses.uncertainty(loss.astype(jnp.bfloat16), u)
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"log_variance must have the shape \(3,\)"):
        losses.uncertainty(loss, u[:1])
