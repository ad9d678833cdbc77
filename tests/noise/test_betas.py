"""Beta schedules against diffusers, whose numbers are float32."""

import json
from pathlib import Path

import numpy as np
import pytest

from genlib import noise

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/noise.json").read_text())
SCHEDULES = {
    "linear": noise.linear_betas,
    "scaled_linear": noise.scaled_linear_betas,
    "squaredcos_cap_v2": noise.cosine_betas,
    "sigmoid": noise.sigmoid_betas,
    "exp": noise.exponential_betas,
    "laplace": noise.laplace_betas,
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


@pytest.mark.parametrize("name", GOLDEN["alpha_bar"])
def test_alpha_bar_of_diffusers(name):
    """There betas are rounded to float32, which the last 1 - 0.999 feels."""
    betas = SCHEDULES[name]().astype(np.float32)
    got = np.cumprod(1 - betas)[[0, 250, 500, 750, 999]]
    np.testing.assert_allclose(got, GOLDEN["alpha_bar"][name], rtol=1e-5)


def test_betas_of_diffusers():
    betas = {
        "cosine": noise.cosine_betas(),
        "exp": noise.exponential_betas(),
        "laplace": noise.laplace_betas(compat="diffusers"),
    }
    for name, want in GOLDEN["betas"].items():
        got = betas[name][[0, 500, 998, 999]]
        np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=name)


def test_alpha_bar_in_float64():
    t = np.arange(1, 1001) / 1000
    cosine = np.cos(0.5 * np.pi * (t + 0.008) / 1.008) / np.cos(0.004 * np.pi / 1.008)
    alpha_bar = np.cumprod(1 - noise.cosine_betas())
    np.testing.assert_allclose(alpha_bar[:-1], cosine[:-1] ** 2, rtol=1e-8)
    alpha_bar = np.cumprod(1 - noise.exponential_betas(rate=8.0))
    np.testing.assert_allclose(alpha_bar, np.exp(-8.0 * t), rtol=1e-8)


def test_log_snr_of_laplace_is_laplace_distributed():
    """A peer takes alpha for alpha_bar: half of its log-SNR lies above 0.85, not 0."""
    steps = 20_000
    alpha_bar = np.cumprod(1 - noise.laplace_betas(steps, max_beta=1.0))
    # The chain starts at alpha_bar = 1: its first step to the schedule is a factor.
    start = (1 + (1e-6) ** 0.5) ** -1  # sigmoid of the log-SNR at t = 0
    log_snr = np.log(start * alpha_bar / (1 - start * alpha_bar))
    quantiles = np.quantile(log_snr, [0.1, 0.25, 0.5, 0.75, 0.9])
    from scipy.stats import laplace

    want = laplace(scale=0.5).ppf([0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, want, atol=1e-3)


@every_schedule
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_every_schedule_is_float64_and_makes_a_chain(name, steps):
    betas = SCHEDULES[name](steps)
    assert betas.shape == (steps,)
    assert betas.dtype == np.float64
    assert noise.DiscreteBetas(betas)(steps).sigma > 0


def test_an_uncapped_cosine_ends_in_pure_noise():
    betas = noise.cosine_betas(100, max_beta=1.0)
    assert betas[-1] == 1
    assert noise.DiscreteBetas(betas)(100).alpha == 0


def test_zero_terminal_snr_of_diffusers():
    before, after, last = GOLDEN["zero_terminal_snr"]
    betas = noise.rescale_zero_terminal_snr(noise.scaled_linear_betas())
    alpha_bar = np.cumprod(1 - betas)
    np.testing.assert_allclose(alpha_bar[[0, 500]] ** 0.5, [before, after], rtol=1e-5)
    assert alpha_bar[-1] == last == 0
    assert noise.DiscreteBetas(betas)(1000).alpha == 0


@every_schedule
def test_zero_terminal_snr_of_every_schedule(name):
    betas = SCHEDULES[name](100)
    alpha = np.sqrt(np.cumprod(1 - betas))
    rescaled = noise.rescale_zero_terminal_snr(betas)
    got = np.sqrt(np.cumprod(1 - rescaled))
    want = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    np.testing.assert_allclose(got, want, rtol=1e-8)
    assert rescaled[-1] == 1
    again = noise.rescale_zero_terminal_snr(rescaled)
    np.testing.assert_allclose(again, rescaled, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: noise.linear_betas(0), "steps must be positive"),
        (lambda: noise.cosine_betas(0), "steps must be positive"),
        (lambda: noise.laplace_betas(compat="hf"), "compat must be"),
        (lambda: noise.rescale_zero_terminal_snr(np.ones(1)), "betas must be"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
