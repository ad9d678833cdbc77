"""Flow maps in the experiments: their networks, their steps, and a small run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import build, flow_map, train
from experiments.configs import digits_edm, digits_meanflow
from genlib import nn, noise


def test_the_recipe_names_parts_that_exist():
    full, smoke = digits_meanflow.get_config(), digits_meanflow.get_config("smoke")
    assert sorted(full.keys()) == sorted(smoke.keys())
    assert (full.name, smoke.name) == ("digits_meanflow", "digits_meanflow_smoke")
    with pytest.raises(ValueError, match="mode of the config must be smoke or none"):
        digits_meanflow.get_config("smok")


def test_a_network_sees_both_times():
    condition = nn.Conditioning(8, 3, time_scale=10.0, rngs=nnx.Rngs(0))
    both = flow_map.TwoTimes(condition, rngs=nnx.Rngs(1))
    labels, t = jnp.array([0, 2]), jnp.array([0.5, 0.9])
    see = lambda s: both(jnp.stack([s, t]), labels, 2)
    assert see(t).shape == (2, 8)
    assert (jnp.abs(see(t) - see(0.5 * t)).max(axis=1) > 1e-3).all()
    np.testing.assert_allclose(
        see(t) - condition(t, labels, 2), both.length(0 * t), atol=1e-6
    )


def draw(solver, steps, apply):
    config = digits_meanflow.get_config("smoke")
    sampler = build.sampler(config, apply, (1, 1, 1), 10, solver=solver, steps=steps)
    key, labels = jax.random.key(5), np.zeros(4, np.int32)
    key_start = jax.random.split(jax.random.fold_in(key, 0))[0]  # of the first batch
    start = noise.prior(key_start, noise.Rectified(), (4, 1, 1, 1))
    return sampler, sampler.draw(key, None, labels), start


def test_a_step_of_the_solver_is_a_step_of_the_map():
    """x_s = x_t - (t - s) u(x_t, s, t) from each time of the grid to the next."""
    u = lambda x, s, t: x * (1 + s) + jnp.cos(t)
    apply = lambda _, x, times, labels: u(x, *(c[:, None, None, None] for c in times))
    for steps in (1, 3):
        sampler, got, x = draw("flow_map", steps, apply)
        assert sampler.nfe == steps
        times = np.linspace(1, 0, steps + 1)
        for t, s in itertools.pairwise(times):
            x = x - (t - s) * u(x, s, t)
        np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)


def test_other_solvers_see_the_velocity():
    seen = []

    def apply(_, x, times, labels):
        seen.append(times[0] - times[1])
        return x * times[1][:, None, None, None]

    sampler, got, x = draw("euler", 2, apply)
    assert sampler.nfe == 2
    np.testing.assert_allclose(got, x * 0.5 * 0.75, rtol=1e-5)
    with pytest.raises(ValueError, match="solver must be one of ddim"):
        build.sampler(
            digits_edm.get_config("smoke"), apply, (1, 1, 1), 10, solver="flow_map"
        )


def test_a_run_measures_samples_of_one_call(tmp_path):
    train.train_and_evaluate(digits_meanflow.get_config("smoke"), tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["solver"], row["NFE"]) for row in rows[1:]] == [("flow_map", 1)]
    assert rows[1]["frechet"] > 10  # ten steps teach nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "EPS"}, "kind and weight must be .* 'EPS' and 'unit'"),
        ({"weight": "snr"}, "kind and weight must be .* 'snr'"),
        ({"loss": "shortcut"}, "loss must be one of mean_flow"),
        ({"loss": "mean_flow(p=2)"}, r"loss='mean_flow\(p=2\)' is refused"),
    ],
)
def test_what_a_flow_map_cannot_use_is_refused(changes, message):
    config = digits_meanflow.get_config("smoke")
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        build.loss_function(config, lambda *_: None, 10)
