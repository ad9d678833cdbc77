"""The benchmarks measure what they say; how long things take is not tested."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import _hand, _peers, quality
from experiments.benchmarks import samplers as speed
from genlib import samplers


@pytest.fixture(scope="module")
def mixture() -> quality.Case:
    return quality.mixture(samples=1024)


@pytest.mark.parametrize("name", _hand.SAMPLERS)
def test_scans_by_hand_sample_what_genlib_samples(name):
    x, key, times = jnp.ones((2, 3)), jax.random.key(0), speed.grid(4)
    solver = speed.SOLVERS[name]
    drawn = key if solver.stochastic else None
    ours = samplers.sample(solver, speed.network, speed.PATH, times, x, drawn)
    by_hand = _hand.SAMPLERS[name](speed.network, times, x, key)
    np.testing.assert_allclose(ours, by_hand, rtol=2e-5, atol=1e-6)


def test_a_missing_library_is_skipped_with_its_reason(monkeypatch, capsys):
    def missing(shape, steps):
        raise ModuleNotFoundError("No module named 'peer'")

    there = lambda shape, steps: {"ddim": lambda: None}
    monkeypatch.setattr(_peers, "LIBRARIES", {"peer": missing, "other": there})
    assert _peers.importable() == {"other": there}
    assert capsys.readouterr().out == "skipped peer: No module named 'peer'\n"


def test_all_runs_take_their_turn(monkeypatch):
    monkeypatch.setattr(speed, "ATTEMPT", 0.0)  # one call a measurement
    turns = []
    times = speed.measure([lambda: turns.append("a"), lambda: turns.append("b")], 3)
    assert turns == ["a", "a", "b", "b"] + ["a", "b"] * 3  # twice each, to warm up
    assert times.shape == (3, 2)


@pytest.mark.parametrize("family", quality.FAMILIES)
def test_solvers_stay_within_their_budget(family, mixture):
    for solver in quality.FAMILIES[family].values():
        steps = quality.steps_within(solver, mixture, 12)
        costs = [
            samplers.nfe(solver, mixture.path, mixture.grid(mixture.path, steps + more))
            for more in (0, 1)
        ]
        assert costs[0] <= 12 < costs[1]


def test_more_calls_are_better_on_the_mixture(mixture):
    found = quality.curve(samplers.dpmpp_2m(), mixture, (3, 24))
    assert found.nfe == [3, 24]
    assert found.values[1] < 0.5 * found.values[0]


def test_a_run_is_measured_and_drawn(digits_run):
    case = quality.images(digits_run)
    families = {
        "one": {"ddim": samplers.ddim()},
        "two": {"dpm_solver(3)": samplers.dpm_solver(3)},
    }
    found = quality.curves(case, (2, 3), families)
    assert found["one"]["ddim"].nfe == [2, 3]
    assert found["two"]["dpm_solver(3)"].nfe == [1]  # a single step, straight to x_0
    values = [v for family in found.values() for c in family.values() for v in c.values]
    assert np.isfinite(values).all()
    assert min(values) > case.floor[0]
    axes = quality.figure(found, case, (2, 3)).axes
    assert [axis.get_title() for axis in axes] == ["one", "two"]
    table = quality.rows(found, (2, 3))
    assert table[0] == {
        "solver": "ddim",
        "2 calls": f"{found['one']['ddim'].values[0]:.3f}",
        "3 calls": f"{found['one']['ddim'].values[1]:.3f}",
    }
