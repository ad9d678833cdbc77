"""Autoencoders, diffusion on latents and priors over codes: whole runs."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import (
    autoencoder,
    autoencoder_report,
    data,
    latents,
    sample,
    train,
)
from experiments.configs import (
    cifar10_vqvae,
    digits_code_prior,
    digits_latent_flow,
    digits_vae,
    digits_vqvae,
    mnist_vqvae,
)
from genlib import train as library

RECIPES = [digits_vqvae, digits_vae, mnist_vqvae, cifar10_vqvae]


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory):
    """The working directory of a flow on the latents of a VAE, with the VAE in it."""
    workdir = tmp_path_factory.mktemp("latent_flow")
    train.train_and_evaluate(digits_latent_flow.get_config("smoke"), workdir)
    return workdir


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory):
    """The working directory of a prior over codes, with the VQ-VAE in it."""
    workdir = tmp_path_factory.mktemp("code_prior")
    train.train_and_evaluate(digits_code_prior.get_config("smoke"), workdir)
    return workdir


def rows_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_vae_leaves_its_bound_and_its_pictures(flow_run):
    rows = rows_of(flow_run / "autoencoder")
    assert [row["split"] for row in rows] == ["train", "test"]
    assert [row["images"] for row in rows] == [1400, 397]
    for row in rows:
        assert 0 < row["mse"] < 2
        assert row["psnr"] == pytest.approx(10 * np.log10(4 / row["mse"]))
        assert row["kl"] >= 0
        assert row["importance_weighted"] < row["nats"] + 1
    with Image.open(flow_run / "autoencoder" / "reconstructions.png") as picture:
        assert picture.size == (10 * 66 + 2, 8 * 66 + 2)
    assert (flow_run / "autoencoder" / "samples.png").is_file()


def test_a_vqvae_leaves_its_error_and_the_use_of_its_codes(prior_run):
    for row in rows_of(prior_run / "autoencoder"):
        assert 0 < row["mse"] < 2
        assert 1 <= row["perplexity"] <= 8
        assert row["usage"] in np.arange(1, 9) / 8


def test_latents_are_standardised_and_their_statistics_kept(flow_run):
    metadata = library.read_metadata(flow_run / "checkpoints")
    assert tuple(metadata["shape"]) == (4, 4, 4)
    space = sample.load(flow_run).space
    assert space.statistics == {
        k: pytest.approx(v) for k, v in metadata["latents"].items()
    }
    images = data.load("digits").train.images
    z = space.encode(images)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-4)

    model, _, params, _ = sample.load_autoencoder(flow_run / "autoencoder")
    x = images[:3]
    np.testing.assert_allclose(
        z[:3] * space.std + space.mean, model.encode(params, x), atol=1e-5
    )
    back = model.decode(params, model.encode(params, x))
    np.testing.assert_allclose(space.decode(z[:3]), back, atol=1e-5)


def test_what_is_drawn_is_decoded(flow_run, prior_run, tmp_path):
    for run, words in ((flow_run, ["--steps=2"]), (prior_run, ["--temperature=0.5"])):
        for folder, extra in ((run, words), (run / "autoencoder", [])):
            out = tmp_path / folder.name
            sample.main(
                [f"--workdir={folder}", f"--out={out}", "--per_class=2", *extra]
            )
            with np.load(f"{out}.npz") as file:
                assert file["samples"].shape == (20, 8, 8, 1)
                assert np.isfinite(file["samples"]).all()


def test_a_known_autoencoder_is_not_trained_again(flow_run, tmp_path, capsys):
    config = digits_latent_flow.get_config("smoke")
    config.autoencoder_workdir = str(tmp_path / "vae")
    shutil.copytree(flow_run / "autoencoder", tmp_path / "vae")
    shutil.copytree(flow_run / "checkpoints", tmp_path / "run" / "checkpoints")
    train.train_and_evaluate(config, tmp_path / "run")
    assert f"resuming {tmp_path / 'vae'} after step 4" in capsys.readouterr().out
    assert not (tmp_path / "run" / "autoencoder").exists()
    config.autoencoder.latent = 2
    with pytest.raises(ValueError, match=r"same config: .* latent is 4, now it is 2"):
        train.train_and_evaluate(config, tmp_path / "run")


def test_codebooks_are_averaged_and_not_trained(prior_run):
    model, config, params, _ = sample.load_autoencoder(prior_run / "autoencoder")
    n = params["quantizer"]["statistics"]["n"]
    split = data.load("digits").train
    new = autoencoder.initial(config, model, split)(jax.random.key(config.seed))
    # Of 4 steps with 16 images of 16 codes each, at a decay of 0.99.
    start = float(new["quantizer"]["statistics"]["n"].sum())
    total = 0.99**4 * start + (1 - 0.99**4) * 16 * 16
    assert float(n.sum()) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__[20:])
def test_recipes_can_be_built(recipe):
    config = recipe.get_config()
    shape = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
    model = autoencoder.model(config, shape[config.data["name"]], 256)
    shapes = autoencoder.shapes(config, model)
    x = jax.ShapeDtypeStruct((2, *model.shape), np.float32)
    raw = jax.eval_shape(lambda p, x: model.decode(p, model.encode(p, x)), shapes, x)
    assert raw.shape == x.shape


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("bottleneck", ("sq(4)",), "bottleneck must be one of vq"),
        (
            "bottleneck",
            ("normal()", "residual(2)"),
            r"bottleneck must be normal\(\) alone",
        ),
        (
            "reconstruction",
            "gaussian",
            'reconstruction must be "squared_error" for codes',
        ),
        ("encoder", "UNet(8)", "encoder must be one of ConvEncoder"),
    ],
)
def test_entries_that_name_nothing_are_refused(entry, value, message):
    config = digits_vqvae.get_config("smoke")
    config[entry] = value
    build = lambda: autoencoder.shapes(config, autoencoder.model(config, (8, 8, 1), 17))
    with pytest.raises(ValueError, match=message):
        build()


def test_pixels_of_a_vae_are_counted_in_bits():
    config = digits_vae.get_config("smoke")
    model = autoencoder.model(config, (8, 8, 1), 17)
    split = data.Split(*(rows[:16] for rows in data.load("digits").test))
    params = autoencoder.initial(config, model, split)(jax.random.key(0))
    row = autoencoder_report.measure(config, model, params, split, 2)
    assert 0 <= row["kl"] < row["bits_per_dim"] < 50
    assert row["importance_weighted"] < row["bits_per_dim"] + 0.1
    # The decoder's mean is that of the 17 levels, whose probabilities add up to 1.
    raw = np.float32([[[[0.3, -1.0]]], [[[-7.0, 2.0]]]])
    levels = np.linspace(-1, 1, 17, dtype=np.float32)
    probability = np.exp(
        [model.emission.log_prob(np.full((2, 1, 1, 1), x), raw) for x in levels]
    )
    np.testing.assert_allclose(probability.sum(0), 1, rtol=1e-5)
    mean = model.emission.image(raw).ravel()
    np.testing.assert_allclose(mean, levels @ probability, atol=1e-5)


def test_a_dead_channel_cannot_be_standardised():
    config = digits_vae.get_config("smoke")
    model = autoencoder.model(config, (8, 8, 1), 17)
    split = data.load("digits").test
    params = autoencoder.initial(config, model, split)(jax.random.key(0))
    params["encoder"] = jax.tree.map(np.zeros_like, params["encoder"])
    with pytest.raises(ValueError, match="autoencoder must use all of its latents"):
        latents.fitted(config, model, params, split)


def test_a_prior_needs_codes(flow_run):
    config = digits_code_prior.get_config("smoke")
    config.autoencoder = digits_vae.get_config("smoke")
    config.autoencoder_workdir = str(flow_run / "autoencoder")
    with pytest.raises(ValueError, match="autoencoder must have codes for a prior"):
        train.train_and_evaluate(config, flow_run.parent / "none")
