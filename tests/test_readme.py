"""The code that the README shows runs as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE
from sklearn.datasets import load_digits

from genlib import (
    attention,
    flows,
    losses,
    metrics,
    nn,
    noise,
    prediction,
    quantize,
    samplers,
    train,
)

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_opening_trains_and_samples():
    keys = jax.random.split(jax.random.key(0), 400)
    scope = {
        "batches": [MIXTURE.sample(key, 256) for key in keys],
        "x_T": noise.prior(jax.random.key(1), noise.Cosine(), (1024, 2)),
    }
    exec(PYTHON[0], scope)
    truth = MIXTURE.sample(jax.random.key(2), 1024)
    distance = metrics.sliced_wasserstein(jax.random.key(3), scope["x"], truth)
    start = metrics.sliced_wasserstein(jax.random.key(3), scope["x_T"], truth)
    assert scope["x"].shape == (1024, 2)
    assert distance < 0.3 * start


@pytest.fixture(scope="module")
def own():
    scope = {}
    exec(PYTHON[1], scope)
    return scope


def test_own_path_kind_weight_and_solver_work_with_everything(own, key):
    path, kind = own["Bent"](), own["Noisy"]()
    exact = MIXTURE.denoiser(path)

    def network(x_t, t):
        return prediction.convert(path, exact(x_t, t), x_t, t, prediction.X0, kind)

    denoise = prediction.denoiser(network, path, kind)
    times = samplers.uniform_log_snr(path, 40, sigma_min=0.05)
    x_T = noise.prior(key, path, (4096, 2), t=times[0])
    truth = MIXTURE.sample(jax.random.key(2), 4096)
    for solver in (own["exponential_euler"](), samplers.dpmpp_2m(), samplers.heun()):
        x = samplers.sample(solver, denoise, path, times, x_T)
        assert metrics.sliced_wasserstein(jax.random.key(3), x, truth) < 0.1
    loss = losses.denoising(
        key, network, path, truth, kind=kind, weight=own["soft_min_snr"]
    )
    assert jnp.isfinite(loss).all()


def test_own_solver_is_ddim(own):
    path, x = noise.EDM(), jnp.full((2, 2), 80.0)
    times = samplers.karras(path, 9)
    get = lambda solver: samplers.sample(solver, MIXTURE.denoiser(path), path, times, x)
    np.testing.assert_array_equal(get(own["exponential_euler"]()), get(samplers.ddim()))


def test_exact_densities():
    x = metrics.TwoMoons().sample(jax.random.key(0), 64)
    images = np.random.default_rng(0).integers(0, 17, (32, 8, 8, 1))
    scope = {"x": x, "labels": np.arange(64) % 2, "images": images}
    exec(PYTHON[2], scope)
    assert scope["samples"].shape == (1000, 2)
    assert jnp.isfinite(scope["samples"]).all()
    assert scope["log_p"].shape == (32,)
    assert scope["digits"].dtype == jnp.int32
    assert scope["digits"].shape == (16, 8, 8, 1)


def test_own_layer_passes_the_law(key):
    x = jax.random.normal(key, (5, 3))
    scope = {"jax": jax, "jnp": jnp, "x": x}
    scope["params"] = {"0": {"s": jnp.float32(-1.0)}, "2": {"s": jnp.float32(0.5)}}
    rng = np.random.default_rng(0)
    scope["params"]["1"] = {"lu": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)}
    exec(PYTHON[3], scope)
    assert jnp.abs(scope["error"]).max() < 1e-5
    assert jnp.abs(scope["flow"].forward(scope["params"], x)[1]).min() > 0.1


def test_codes_and_latents():
    images = load_digits().images[:64, ..., None].astype(np.float32) / 8 - 1
    scope = {"images": images, "batches": [images] * 2}
    exec(PYTHON[4], scope)
    assert int(scope["state"].step) == 2
    assert scope["indices"].shape == (64, 4, 4, 2)
    assert scope["again"].shape == scope["rough"].shape == images.shape
    assert scope["new"].shape == (4, 8, 8, 1)
    n = scope["params"]["quantizer"]["statistics"]["n"]
    assert n.shape == (2, 64)
    assert float(n.sum()) > 2 * 64  # it moves from one a code to its share of 1024


def test_attention():
    """Decoding over caches gives what the whole sequence gives."""
    x = jax.random.normal(jax.random.key(0), (2, 16, 12, 64))
    ids = np.repeat([[1, 2]], 8, 1).repeat(2, 0)
    prompt = jax.random.randint(jax.random.key(1), (2, 9), 0, 256)
    scope = {"q": x[:, :, :8], "k": x[:, :, 8:10], "v": x[:, :, 10:], "ids": ids}
    scope["prompt"] = prompt
    exec(PYTHON[5], scope)
    alone = scope["attention"].attention(
        x[:, 8:, :8], x[:, 8:, 8:10], x[:, 8:, 10:], mask=scope["causal"]()
    )
    np.testing.assert_allclose(scope["out"][:, 8:], alone, atol=1e-5)
    logits, caches = scope["logits"], scope["caches"]
    assert logits.shape == (2, 1, 256)
    assert caches.length.tolist() == [[13, 13]] * 2


def test_the_way_to_a_pod(tmp_path, monkeypatch):
    """On eight devices; the run that was saved goes on in the same way."""
    monkeypatch.chdir(tmp_path)

    def batches(index):
        rng = np.random.default_rng(index)
        latent = rng.normal(size=(16, 8, 8, 4)).astype(np.float32)
        return {"latent": latent, "label": rng.integers(0, 10, 16)}

    scope = {"batches": batches}
    exec(PYTHON[6], scope)
    state = scope["state"]
    assert int(state.step) == 4
    kernel = state.params["blocks"]["feedforward"]["hidden"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 32, 128)
    assert (tmp_path / "runs/dit/checkpoints/4").is_dir()


def test_every_public_name_of_a_room_is_in_the_table_of_rooms():
    rooms = (noise, prediction, losses, samplers, metrics, nn, train, flows, quantize)
    rooms += (attention,)
    for room in rooms:
        name = room.__name__
        line = next(row for row in README.splitlines() if row.startswith(f"| `{name}`"))
        for word in re.findall(r"`(\w+)", line)[1:]:
            assert hasattr(room, word), f"{name}.{word}"
