"""diffrax's adaptive steps on the exact mixture."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE, X_UNIT, jit_once

from genlib import noise, prediction, samplers

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/adaptive.json").read_text())
EDM = noise.EDM()


def test_the_ode_ends_at_the_reference(x64):
    """DOP853 at 1e-12 from sigma = 80 to 0.002."""
    pytest.importorskip("diffrax")
    run = jit_once(
        lambda x: samplers.adaptive_ode(
            MIXTURE.denoiser(EDM), EDM, x, t_end=0.002, rtol=1e-8, atol=1e-8
        )
    )
    x, steps = run(80.0 * jnp.asarray(X_UNIT))
    np.testing.assert_allclose(x, GOLDEN["ode_reference"], atol=1e-8)
    assert steps < 120


def test_any_diffrax_solver_and_path_in_float32():
    """Two paths between the same noise levels end at the same points."""
    diffrax = pytest.importorskip("diffrax")
    path = noise.Rectified()
    denoise = prediction.retime(MIXTURE.denoiser(EDM), EDM, path)
    start, end = (float(path.time_at(-2 * math.log(s))) for s in (80.0, 0.002))
    x = jnp.asarray(X_UNIT, jnp.float32) * path(start).sigma
    run = jit_once(
        lambda x: samplers.adaptive_ode(
            denoise, path, x, t_start=start, t_end=end, solver=diffrax.Dopri5()
        )
    )
    got = run(x).x / path(end).alpha
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, GOLDEN["ode_reference"], atol=2e-3)


@pytest.fixture(scope="module")
def sde():
    """Samples of the mixture on VP, for keys, starts and a tolerance."""
    pytest.importorskip("diffrax")
    path = noise.VPLinear()

    @jit_once
    def run(keys, x, tolerance):
        settings = dict(rtol=tolerance, atol=tolerance, max_steps=128)
        return samplers.adaptive_sde(keys, MIXTURE.denoiser(path), path, x, **settings)

    keys = jax.random.split(jax.random.key(3), 256)
    x = noise.prior(jax.random.key(1), path, (256, 2))
    return run, keys, x, run(keys, x, 0.1)


def test_the_sde_draws_from_the_mixture(sde):
    x = sde[-1].x
    weights, share = np.asarray(MIXTURE.weights), MIXTURE.responsibilities(x)
    error = np.sqrt(weights * (1 - weights) / 256)
    assert (np.abs(share.mean(0) - weights) < 3 * error).all()
    component = np.asarray(share).argmax(1)
    for k, (mean, std) in enumerate(zip(MIXTURE.means, MIXTURE.stds, strict=True)):
        inside = np.asarray(x)[component == k]
        error = std / math.sqrt(len(inside))
        np.testing.assert_allclose(inside.mean(0), mean, atol=4 * error)
        np.testing.assert_allclose(inside.std(0), std, rtol=0.25)


def test_the_sde_converges_for_each_key(sde):
    """The Brownian motion belongs to the key: tolerances approach one sample."""
    run, keys, x, fine = sde
    rough, middle = run(keys, x, 0.5), run(keys, x, 0.2)
    assert rough.steps < middle.steps < fine.steps < 128
    gap = lambda other: float(jnp.abs(other.x - fine.x).mean())
    assert gap(middle) < 0.6 * gap(rough) < 0.05
    # Swapping two examples swaps their samples, and nothing else.
    swap = np.arange(256)
    swap[:2] = [1, 0]
    swapped = run(keys[swap], x[swap], 0.5).x
    np.testing.assert_allclose(swapped[swap], rough.x, atol=1e-5)


X = jnp.ones((2, 3))
KEY = jax.random.key(0)
BLIND = prediction.denoiser(lambda x, t: x, noise.Cosine(), prediction.EPS)


def ode(path=EDM, x=X, denoise=lambda x, t: x, **settings):
    return samplers.adaptive_ode(denoise, path, x, **settings)


def sde_of(key=KEY, path=EDM, **settings):
    return samplers.adaptive_sde(key, lambda x, t: x, path, X, **settings)


TABLE = {
    "to no noise": (lambda: ode(t_end=0.0), r"t_end must be where sigma > 0.* 0\.0"),
    "outside": (lambda: ode(t_start=90.0), r"t_start must be within .* 90"),
    "order": (lambda: ode(t_start=1.0, t_end=2.0), r"t_end must come before .* 2\.0"),
    "integers": (lambda: ode(x=jnp.ones(2, int)), r"x must be a floating batch"),
    "blind": (lambda: ode(noise.Cosine(), denoise=BLIND), r"X0 is not determined"),
    "no signal": (
        lambda: sde_of(path=noise.Rectified()),
        r"t_start must be where alpha > 0.* t = 1\.0 of Rectified",
    ),
    "raw key": (lambda: sde_of(jnp.zeros(2)), r"key must be a typed key"),
    "keys": (lambda: sde_of(jax.random.split(KEY, 3)), r"each of 2 .* \(3,\)"),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("traced", [False, True])
def test_mistake(name, traced):
    run, message = TABLE[name]
    with pytest.raises(ValueError, match=message):
        jax.jit(run)() if traced else run()
