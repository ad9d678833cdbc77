"""Normalizing flows in the experiments: whole runs, and a density that none beats."""

import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments import data, density, density_report, sample, train
from experiments.configs import (
    cifar10_glow,
    digits_glow,
    digits_nsf,
    mnist_glow,
    patches_nsf,
    two_moons_nsf,
)
from genlib import flows, metrics, nn
from genlib import train as library
from tests.laws.registry import jit_once

RECIPES = [two_moons_nsf, digits_nsf, digits_glow, patches_nsf, mnist_glow]
RECIPES += [cifar10_glow]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The working directory of a flow of digits, as small as can be."""
    workdir = tmp_path_factory.mktemp("flow_run")
    train.train_and_evaluate(small(), workdir)
    return workdir


def small():
    config = digits_nsf.get_config("smoke")
    config.layers = ("reshape((8, 8, 1), (64,))", "actnorm")
    config.model = "nice(depth=1, width=4)"
    return config


def test_a_run_leaves_its_likelihood_and_its_pictures(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["step"] for line in lines] == [2, 4]
    scores = {line["step"]: line["val_bits_per_dim"] for line in lines}
    gaussian, flow = json.loads((run / "results.json").read_text())
    assert flow["step"] == min(scores, key=scores.__getitem__)
    assert (flow["model"], flow["examples"], flow["draws"]) == ("flow", 360, 1)
    # By another program: 2.954 +- 0.012 bits, over draws of the dequantisation.
    assert gaussian["bits_per_dim"] == pytest.approx(2.955, abs=0.02)
    assert gaussian["bits_per_dim"] < flow["bits_per_dim"] < 10
    assert 0 < flow["standard_error"] < 1
    for temperature in ("0.7", "1"):
        with Image.open(run / f"samples_t{temperature}.png") as picture:
            assert picture.size == (10 * 66 + 2, 10 * 66 + 2)
    with Image.open(run / "interpolation.png") as picture:
        assert picture.size == (10 * 66 + 2, 8 * 66 + 2)


def test_samples_of_the_best_step_are_pixels(run, tmp_path, capsys):
    words = [f"--workdir={run}", "--per_class=2", f"--out={tmp_path}/few"]
    sample.main([*words, "--temperature=0.5"])
    assert "20 samples at temperature 0.5" in capsys.readouterr().out
    with np.load(tmp_path / "few.npz") as file:
        images = file["samples"]
    assert images.shape == (20, 8, 8, 1)
    assert set(np.unique(images)) <= set(np.float32(2 * np.arange(17) / 16 - 1))
    model, _, params = sample.load_flow(run)
    steps = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    best = json.loads((run / "results.json").read_text())[-1]["step"]
    like = density.shapes(small(), model)
    again = library.restore_params(run / "checkpoints", like, step=best)
    assert {int(path.name) for path in steps} == {2, 4}
    jax.tree.map(np.testing.assert_array_equal, params, again)


@functools.cache
def two_moons_run():
    """Compile the training of a small flow whose log-derivatives are too large."""
    moons, own = metrics.TwoMoons(0.1), nn.mlp_conditioner(32, 1)
    tx = optax.adam(1e-2)

    @jit_once
    def run(key, excess):
        spline = flows.spline(6)

        def forward(raw, x):
            y, log_derivative = spline.forward(raw, x)
            return y, (1 + excess) * log_derivative

        step = flows.coupling(spline._replace(forward=forward), own)
        flow = flows.scan_chain(flows.chain(step, flows.reverse()), 4)
        model = flows.density(flow)
        key_init, key_test, key_train = jax.random.split(key, 3)
        test = moons.sample(key_test, 4000)
        params = model.init(key_init, test)

        def body(carry, key):
            params, opt_state = carry
            x = moons.sample(key, 128)
            gradient = jax.grad(lambda p: -model.log_prob(p, x).mean())(params)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(key_train, 200)
        (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), keys)
        return -model.log_prob(params, test), -moons.log_density(test)

    return run


def below_entropy(excess):
    """Return the NLL of the flow, and the least that a density can have."""
    nll, exact = two_moons_run()(jax.random.key(0), excess)
    error = float(exact.std()) / math.sqrt(len(exact))
    assert float(exact.mean()) == pytest.approx(1.0076, abs=3 * error)
    return float(nll.mean()), 1.0076 - 3 * error


def test_no_flow_has_less_than_the_entropy():
    nll, least = below_entropy(0.0)
    assert least < nll < 1.4


def test_a_wrong_log_determinant_has_less_than_the_entropy():
    nll, least = below_entropy(0.5)
    assert nll < least


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--solver=heun", "solver must be left out"),
        ("--classes=3", "classes must be left out"),
        ("--temperature=-1", "temperature must be 0 or positive, got -1"),
    ],
)
def test_what_a_flow_cannot_draw_is_one_line(run, tmp_path, word, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        sample.main([f"--workdir={run}", f"--out={tmp_path}/none", word])
    assert list(tmp_path.iterdir()) == []


def test_a_diffusion_model_has_no_temperature(digits_run, tmp_path):
    with pytest.raises(SystemExit, match="error: temperature must be left out"):
        sample.main([f"--workdir={digits_run}", "--temperature=1"])


def test_another_flow_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    config = small()
    config.ema = 0.5
    with pytest.raises(ValueError, match=r"same config: .* ema is 0\.9, now .* 0\.5"):
        train.train_and_evaluate(config, tmp_path)


def test_interpolations_begin_and_end_at_the_data():
    config = small()
    dataset, _ = density.splits(config, data.load("digits_360"))
    model = density.model(config, (8, 8, 1), 10, 17)
    params = density.initial(config, model, dataset.train)(jax.random.key(0))
    rows = density_report.interpolate(
        model, jax.random.key(1), params, dataset.test, 3, 4
    ).reshape(3, 4, 8, 8, 1)
    pixels = 2 * dataset.test.images[:6].astype(np.float32) / 16 - 1
    np.testing.assert_allclose(rows[:, 0], pixels[:3], atol=1e-6)
    np.testing.assert_allclose(rows[:, -1], pixels[3:], atol=1e-6)


def test_validation_is_not_trained_on():
    config = digits_nsf.get_config("smoke")
    whole = data.load("digits_360")
    dataset, held_out = density.splits(config, whole)
    assert len(held_out.labels) == 144
    pixels = np.concatenate([dataset.train.images, held_out.images])
    assert pixels.dtype == np.int32
    np.testing.assert_array_equal(2 * pixels / 16 - 1, whole.train.images)
    config.validation["held_out"] = 1437
    with pytest.raises(ValueError, match="held_out must be from 1 to 1436, got 1437"):
        density.splits(config, whole)


@pytest.mark.parametrize("draws", [1, 3])
def test_costs_are_means_over_draws_of_every_example_once(draws):
    config = digits_nsf.get_config("smoke")
    config.sampling["batch"] = 4
    zeros = density.Model(None, None, (1,), 0, 0)

    class Noisy(density.Model):
        def cost(self, key, params, x, labels):
            assert x.shape == (4, 1)
            return params * x[:, 0] + jax.random.uniform(key)

    split = data.Split(np.arange(10, dtype=np.float32)[:, None], np.zeros(10, np.int32))
    measure = density.measurement(config, Noisy(*zeros))
    costs = measure(2.0, split, draws)
    key = lambda draw: jax.random.fold_in(jax.random.key(config.seed), draw)
    for first in (0, 4, 8):
        noise = np.mean(
            [
                jax.random.uniform(jax.random.fold_in(key(draw), first))
                for draw in range(draws)
            ]
        )
        rows = np.arange(first, min(first + 4, 10))
        np.testing.assert_allclose(costs[rows], 2 * rows + noise, rtol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_every_config_names_a_flow_that_exists(recipe):
    full, smoke = recipe.get_config(), recipe.get_config("smoke")
    assert sorted(full.keys()) == sorted(smoke.keys())
    assert full.name == recipe.__name__.rpartition(".")[2] != smoke.name
    shape = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "patches": (63,)}
    shape |= {"digits_360": (8, 8, 1), "two_moons": (2,)}
    levels = {"patches": 0, "two_moons": 0, "digits_360": 17}
    name = full.data["name"]
    for config in (full, smoke):
        assert density.is_flow(config)
        density.model(config, shape[name], 10, levels.get(name, 256))
    model = density.model(smoke, shape[name], 10, levels.get(name, 256))
    assert jax.tree.leaves(density.shapes(smoke, model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "MLP()"}, "model must be one of glow"),
        ({"base": "cauchy"}, "base must be one of normal"),
        ({"layers": ("logit(alpha=2.0)",)}, "is refused: alpha must be in"),
    ],
)
def test_flows_that_do_not_exist_are_refused(changes, message):
    config = digits_nsf.get_config("smoke")
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        density.model(config, (8, 8, 1), 10, 17)


def test_a_flow_is_given_its_class():
    config = digits_nsf.get_config("smoke")
    config.conditional = True
    model = density.model(config, (8, 8, 1), 10, 17)
    cond = model.cond(jnp.array([3, 0]))
    assert cond is not None
    assert cond.argmax(1).tolist() == [3, 0]
    unconditional = density.Model(model.flow, model.density, model.shape, 0, 17)
    assert unconditional.cond(jnp.array([3])) is None
