"""Sub-VP, linear VP and polynomial paths against numbers of other libraries."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from genlib import noise

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/noise.json").read_text())


def check_sub_vp(rtol, atol):
    for t, want in GOLDEN["sub_vp"].items():
        alpha, sigma = noise.SubVP()(float(t))
        f, g = noise.drift_diffusion(noise.SubVP(), float(t))
        for name, got in {"alpha": alpha, "sigma": sigma, "f": f, "g": g}.items():
            np.testing.assert_allclose(got, want[name], rtol, atol, err_msg=name)


def test_sub_vp_is_that_of_score_sde():
    """Its g^2 is not 2 sigma sigma': it is less 2 f sigma^2."""
    check_sub_vp(rtol=1e-5, atol=0)


def test_sub_vp_is_that_of_score_sde_in_float64(x64):
    check_sub_vp(rtol=1e-8, atol=0)


def test_sub_vp_has_less_variance_than_vp():
    t = np.linspace(0.01, 1, 50)
    alpha, sigma = noise.SubVP()(t)
    np.testing.assert_array_equal(alpha, noise.VPLinear()(t).alpha)
    assert (sigma < noise.VPLinear()(t).sigma).all()


@pytest.mark.parametrize(
    ("name", "path"),
    [("linear_vp", noise.LinearVP()), ("polynomial_3", noise.Polynomial(3.0))],
)
def test_paths_of_flow_matching(name, path):
    """There time runs from noise to data, so that rates change their sign."""
    want = GOLDEN["flow_matching"][name]
    t = 1 - np.array([0.1, 0.5, 0.9], np.float32)
    marginal, rate = noise.marginal_and_rate(path, t)
    np.testing.assert_allclose(marginal.alpha, want["alpha"], rtol=1e-5)
    np.testing.assert_allclose(marginal.sigma, want["sigma"], rtol=1e-5)
    np.testing.assert_allclose(-rate.alpha, want["dalpha"], rtol=1e-5)
    np.testing.assert_allclose(-rate.sigma, want["dsigma"], rtol=1e-5)


def test_polynomial_of_power_one_is_rectified():
    t = np.linspace(0, 1, 11, dtype=np.float32)
    for got, want in zip(noise.Polynomial(1.0)(t), noise.Rectified()(t), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("path", [noise.SubVP(), noise.LinearVP(), noise.Polynomial(2)])
def test_log_snr_at_the_ends_and_beyond_float32_of_alpha(path):
    assert path.log_snr(0.0) == jnp.inf
    assert path.time_at(jnp.inf) == 0
    low, high = -60.0, 60.0
    for log_snr in (low, high):
        t = path.time_at(log_snr)
        assert jnp.isfinite(t)
    np.testing.assert_allclose(path.log_snr(t), high, rtol=1e-5)


@pytest.mark.parametrize("power", [0.0, -1, float("nan")])
def test_bad_power(power):
    with pytest.raises(ValueError, match="power must be positive"):
        noise.Polynomial(power)
