"""Boundary conditions of consistency models."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import LINEAR_BETAS, MORE_PATHS, PATHS, inner_times

from genlib import noise, prediction, samplers

FILE = Path(__file__).parent.parent / "golden/prediction.json"
GOLDEN = json.loads(FILE.read_text())
EDM, KIND = noise.EDM(), prediction.Consistency(0.5, sigma_min=0.002)


def scalings(sigma):
    """Return c_skip and c_out as the answers to (1, 0) and (0, 1)."""
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    return [
        prediction.convert(EDM, value, x, sigma, KIND, prediction.X0).item()
        for value, x in ((zero, one), (one, zero))
    ]


@pytest.mark.parametrize("sigma", GOLDEN["consistency"])
def test_scalings_are_those_of_consistency_models(sigma):
    got = scalings(float(sigma))
    np.testing.assert_allclose(got, GOLDEN["consistency"][sigma], rtol=1e-5)
    if sigma == "0.002":
        assert got == [1.0, 0.0]


@pytest.mark.parametrize("sigma", [0.0021, 0.5, 7.0])
def test_scalings_are_the_published_formulas(sigma, x64):
    gap, c_in = sigma - 0.002, (sigma**2 + 0.25) ** -0.5
    want = [0.25 / (gap**2 + 0.25), 0.5 * gap * c_in]
    np.testing.assert_allclose(scalings(sigma), want, rtol=1e-12)
    x_in, t_in = KIND.inputs(EDM(sigma), jnp.ones((1, 1)), jnp.asarray(sigma))
    np.testing.assert_allclose(x_in, c_in, rtol=1e-12)
    np.testing.assert_allclose(t_in, np.log(sigma) / 4, rtol=1e-12)


def test_the_boundary_holds_on_every_path():
    """At sigma_min and below, x_t / alpha, whatever the network says."""
    x = jnp.array([[0.3, -2.0]])
    for name, path in (PATHS | MORE_PATHS).items():
        f = prediction.denoiser(lambda x, t: 1e3 + x, path, KIND)
        log_snr = jnp.array([-2 * np.log(0.0019)], jnp.float32)
        below = jnp.clip(noise.time_at(path, log_snr), path.t_min, path.t_max)
        if path(below).sigma / path(below).alpha > 0.002:
            continue  # VE starts above
        for t in (below, jnp.full(1, path.t_min, jnp.float32)):
            want = x / path(t).alpha[:, None]
            np.testing.assert_allclose(f(x, t), want, rtol=1e-6, err_msg=name)


def test_it_is_edm_without_a_boundary(key):
    for path in (EDM, noise.Cosine(), noise.DiscreteBetas(LINEAR_BETAS)):
        value, x_t = jax.random.normal(key, (2, 8, 3))
        t = inner_times(path)
        answers = [
            prediction.convert(path, value, x_t, t, kind, prediction.X0)
            for kind in (prediction.Consistency(0.7, 0.0), prediction.EDM(0.7))
        ]
        np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_at_the_boundary():
    def loss(kind, t):
        f = prediction.denoiser(lambda x, t: jnp.tanh(x), noise.Cosine(), kind)
        return f(jnp.ones((2, 2)), t).sum()

    for t in (0.0, 1.0):
        slope = jax.jit(jax.grad(loss))(KIND, jnp.float32(t))
        assert all(jnp.isfinite(leaf) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("timestep", GOLDEN["lcm"])
def test_latent_consistency_has_the_scalings_of_its_models(timestep, x64):
    """At timestep k of a chain of 1000, which is t = k + 1 here.

    huggingface/diffusers#8547 asks for a factor sigma_data in c_out, as the network of
    `Consistency` has. Models predict x_0 here: it would halve every image.
    """
    x, t = jnp.ones((1, 1)), float(timestep) + 1
    c_skip, c_out = (
        prediction.latent_consistency(denoise, start=1)(x, t).item()
        for denoise in (lambda x, t: 0 * x, lambda x, t: 1 + 0 * x)
    )
    want_skip, want_out = GOLDEN["lcm"][timestep]
    np.testing.assert_allclose(c_skip, want_skip, rtol=1e-8)
    np.testing.assert_allclose(c_out - c_skip, want_out, rtol=1e-8)
    np.testing.assert_allclose(want_skip + want_out**2, 1, rtol=1e-8)


def test_latent_consistency_boundary_and_start():
    path = noise.DiscreteBetas(LINEAR_BETAS)
    x = jnp.array([[0.3, -2.0]], jnp.bfloat16)
    f = prediction.latent_consistency(lambda x, t: 9 + x, start=1)
    assert (f(x, 1.0) == x).all()
    assert f(x, 1.0).dtype == jnp.bfloat16
    zero_snr = noise.DiscreteBetas(np.append(LINEAR_BETAS[:-1], 1.0))
    blind = prediction.denoiser(lambda x, t: x, zero_snr, prediction.EPS)
    f = prediction.latent_consistency(blind, start=1)
    with pytest.raises(ValueError, match="X0 is not determined by EPS"):
        samplers.sample(samplers.ddim(), f, zero_snr, [1000, 500, 1], x)
    f = prediction.latent_consistency(
        prediction.denoiser(lambda x, t: x, path, prediction.EPS), start=1
    )
    assert jnp.isfinite(f(x, jnp.array([700.0]))).all()
