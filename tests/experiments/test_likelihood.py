"""Bits per dimension of held-out images: against closed forms, and in a whole run."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, likelihood, train
from experiments.configs import cifar10_vp, digits_edm, digits_vp

DIGITS = data.load("digits")


def small(times: str, **settings: int):
    config = digits_vp.get_config("smoke")
    config.kind = "X0"
    config.likelihood = {"images": 64, "batch": 48, "probes": 4, "times": times}
    config.likelihood.update(settings)
    return config


def normal(variance, x, t, labels):
    """The exact x_0 of normal data of mean and variance that the parameters give."""
    del labels
    decay = (0.1 * t + 19.9 * t**2 / 2).reshape(-1, 1, 1, 1)  # VPLinear
    alpha = jnp.exp(-decay / 2)
    mean, v = variance
    total = alpha**2 * v + 1 - alpha**2
    return mean + alpha * v / total * (x - alpha * mean)


def test_a_normal_model_takes_the_bits_of_its_density():
    times = "uniform_log_snr(steps=40, sigma_min=0.01, to_zero=False)"
    mean, v = jnp.full((1, 1, 1, 1), -0.3), 0.6
    measure = likelihood.measurement(small(times), DIGITS, normal, (mean, v))
    assert measure is not None
    row = measure((mean, v))
    assert (row["images"], row["probes"]) == (64, 4)
    # E (x + u - mean)^2 over the bin [-1/16, 1/16] of 17 levels on [-1, 1].
    x = np.asarray(DIGITS.test.images[:64], np.float64)
    square = ((x + 0.3) ** 2).mean((1, 2, 3)) + 1 / 16**2 / 3
    nats = 0.5 * (square / v + math.log(2 * math.pi * v))
    exact = nats / math.log(2) - math.log2(2 / 16)
    # What is left is the mean over 64 * 64 * 4 draws of u: 1e-4 bits.
    assert row["bits_per_dim"] == pytest.approx(exact.mean(), abs=6e-4)
    error = exact.std() / math.sqrt(64)
    assert row["standard_error"] == pytest.approx(error, rel=0.05)


def test_a_run_writes_the_bits(tmp_path, monkeypatch, capsys):
    config = digits_vp.get_config("smoke")
    for name, stand_in in {
        "fit": lambda *args, **_: SimpleNamespace(ema=args[3](jax.random.key(0))),
        "evaluate": lambda *_: [],
        "report": lambda *_: None,
    }.items():
        monkeypatch.setattr(train, name, stand_in)
    train.train_and_evaluate(config, tmp_path)
    row = json.loads((tmp_path / "likelihood.json").read_text())
    assert row.keys() == {"bits_per_dim", "standard_error", "images", "probes"}
    assert (row["images"], row["probes"]) == (6, 2)
    # A network of zeros says x_0 = alpha x, as of normal data: 3 bits and more for the
    # bins, 1.33 + |x|^2 / (2 D ln 2) for the density.
    assert 4.33 < row["bits_per_dim"] < 5.05
    assert f"at most {row['bits_per_dim']:.3f} +-" in capsys.readouterr().out


def test_batches_are_spread_over_their_bins():
    plain = data.batches(DIGITS, 8, 0)(3)["image"]
    batch = data.batches(DIGITS, 8, 0, dequantize=True)
    offsets = (batch(3)["image"] - plain) * 16  # in units of half a bin
    assert batch(3)["image"].dtype == np.float32
    assert abs(offsets).max() <= 1 + 1e-5
    np.testing.assert_allclose(offsets.mean(), 0, atol=0.1)
    np.testing.assert_allclose(offsets.var(), 1 / 3, atol=0.05)
    np.testing.assert_array_equal(batch(3)["image"], batch(3)["image"])
    assert not np.array_equal(batch(3)["image"] - plain, batch(4)["image"] - plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "likelihood.images must be at least 1, got 0"),
        ({"probes": 0}, "likelihood.probes must be at least 1"),
        ({"times": "rk4"}, "likelihood.times must be one of adaptive, uniform"),
        ({"times": "uniform"}, "likelihood.times=.* is refused: .*steps"),
        ({"times": "uniform(steps=4)"}, "times must stop where sigma > 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(changes, message):
    config = small("adaptive()")
    config.likelihood.update(changes)
    with pytest.raises(ValueError, match=message):
        likelihood.measurement(config, DIGITS, normal, (jnp.zeros(1), 1.0))


def test_latents_have_no_bits():
    latents = data.load("synthetic_latents")
    with pytest.raises(ValueError, match="likelihood must be left out for"):
        likelihood.measurement(small("adaptive()"), latents, normal, None)


def test_nothing_is_measured_unless_asked_for():
    config = digits_edm.get_config("smoke")
    assert likelihood.measurement(config, DIGITS, normal, None) is None


def test_the_full_configs_can_be_measured():
    for recipe, name in [(digits_vp, "digits"), (cifar10_vp, "synthetic_cifar10")]:
        config = recipe.get_config()
        config.kind = "X0"
        arguments = config, data.load(name), normal, (jnp.zeros((1, 1, 1, 1)), 1.0)
        assert likelihood.measurement(*arguments) is not None
