"""What diffusers computed from the same two predictions, and the spaces they are in.

Its projected guidance is u + w update where the paper has c + (w - 1) update, which is
the conditional model at w = 1. One is the other at w + 1, less c - u.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import KINDS, PATHS, each, inner_times, jit_once

from genlib import guidance, noise, prediction

FILE = Path(__file__).parent.parent / "golden/guidance.json"
GOLDEN = {name: np.array(value) for name, value in json.loads(FILE.read_text()).items()}
C, U = GOLDEN["cond"], GOLDEN["uncond"]
PATH, T = noise.Rectified(), 0.4
X0 = {"kind": prediction.X0}


def constant(value):
    return lambda x, t: jnp.asarray(value, x.dtype)


def both(method, *args, **kwargs):
    return method(constant(C), constant(U), *args, **kwargs)


def cfg(scale):
    return both(guidance.classifier_free, scale)


def projected(**settings):
    return both(guidance.adaptive_projected, 8.5, **settings), U - C


CASES = {
    "cfg": (cfg(7.5), 0.0),
    "cfg_original": (cfg(8.5), 0.0),
    "cond": (cfg(1.0), 0.0),
    "uncond": (cfg(0.0), 0.0),
    "autoguidance": (both(guidance.autoguidance, 2.0), 0.0),
    "rescale": (guidance.rescale(cfg(7.5), constant(C), 0.7), 0.0),
    "apg": projected(),
    "apg_eta_1": projected(eta=1.0),
    "apg_norm_2.5": projected(norm_threshold=2.5),
    "cfg_zero_star": (both(guidance.cfg_zero_star, 7.5, PATH, **X0), 0.0),
    "tcfg": (both(guidance.tangential, 7.5, PATH, **X0), 0.0),
}
# Computed in float32 there.
SINGLE = {"cfg_zero_star", "tcfg"}


@pytest.mark.parametrize("name", CASES)
def test_published_values(name, x64):
    guided, less = CASES[name]
    for dtype in (np.float64, np.float32):
        got = guided(jnp.zeros(C.shape, dtype), T) + less
        rtol = 1e-8 if dtype is np.float64 and name not in SINGLE else 1e-5
        np.testing.assert_allclose(got, GOLDEN[name], rtol=rtol, atol=rtol)


def test_the_sums_of_the_table():
    want = {"cfg": 76.979374, "cfg_original": 87.343956, "apg": 19.610751}
    want |= {"apg_norm_2.5": 8.405900, "rescale": 28.418335, "tcfg": 50.050575}
    for name, total in want.items():
        np.testing.assert_allclose(GOLDEN[name].sum(), total, atol=2e-6)


def test_momentum_in_the_second_call(x64):
    """With c 1.1 and u 0.9 times those of the first."""
    grown = lambda value, by: lambda x, t: jnp.asarray(value) * (1 + by * x)
    settings = {"momentum": -0.75, "norm_threshold": 15.0}
    guided = guidance.adaptive_projected(grown(C, 0.1), grown(U, -0.1), 8.5, **settings)
    first, second = jnp.zeros(C.shape), jnp.ones(C.shape)
    _, memory = guided.apply(first, T, guided.init(first))
    x_0, _ = guided.apply(second, T, memory)
    want = GOLDEN["apg_momentum_second_call"]
    np.testing.assert_allclose(x_0 - (1.1 * C - 0.9 * U), want, rtol=1e-8, atol=1e-8)
    # The first call has no past.
    plain = guidance.adaptive_projected(*map(constant, (C, U)), 8.5, norm_threshold=15)
    np.testing.assert_allclose(guided(first, T), plain(first, T), rtol=1e-12)


def test_eta_1_is_classifier_free(x64):
    x = jnp.zeros(C.shape)
    guided = both(guidance.adaptive_projected, 7.5, eta=1.0)
    np.testing.assert_allclose(guided(x, T), cfg(7.5)(x, T), rtol=1e-12)


def test_the_fit_of_cfg_zero_star(x64):
    """At scale=0 only the fitted unconditional prediction a u is left."""
    x = jnp.zeros(C.shape)
    got = both(guidance.cfg_zero_star, 0.0, PATH, **X0)(x, T)
    want = GOLDEN["cfg_zero_star_alpha"] * U
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_cfg_zero_star_stands_still_below_a_log_snr(x64):
    """A velocity of 0 until log-SNR is -1.39, at t = 2/3 of the straight path."""
    guided = both(guidance.cfg_zero_star, 7.5, PATH, zero_below=-2 * np.log(2))
    free = both(guidance.cfg_zero_star, 7.5, PATH)
    x = jnp.ones(C.shape)
    for t in (0.7, 0.9, 1.0):
        v = lambda x_0, t=t: prediction.convert(
            PATH, x_0, x, t, prediction.X0, prediction.VELOCITY
        )
        np.testing.assert_allclose(v(guided(x, t)), 0 * x, atol=1e-12)
        assert (jnp.abs(v(free(x, t))) > 1e-3).any()
    np.testing.assert_array_equal(guided(x, 0.6), free(x, 0.6))


def converters(path, x_t, t, kind):
    """Return the maps from predictions of a kind to x_0 and back."""
    to = lambda value: prediction.convert(path, value, x_t, t, kind, prediction.X0)
    back = lambda x_0: prediction.convert(path, x_0, x_t, t, prediction.X0, kind)
    return to, back


@pytest.mark.parametrize("path", **each(PATHS))
def test_classifier_free_guidance_is_the_same_in_every_space(path, x64):
    """Guiding x_0 is guiding eps, v, score, velocity or EDM's F, to 1e-6."""
    x_t, c, u = jax.random.normal(jax.random.key(0), (3, 3, 2), jnp.float64)
    t = jnp.asarray(inner_times(path, 4), jnp.float64)
    by_x_0 = guidance.classifier_free(lambda x, t: c, lambda x, t: u, 3.0)(x_t, t)
    for name, kind in KINDS.items():
        to, back = converters(path, x_t, t, kind)
        got = to(back(u) + 3.0 * (back(c) - back(u)))
        np.testing.assert_allclose(got, by_x_0, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", **each(KINDS))
def test_the_others_work_in_the_space_they_are_told(kind, x64):
    """As on bare predictions of that kind, which is something else than on x_0."""
    path = noise.VPLinear()
    x_t, c, u = jax.random.normal(jax.random.key(0), (3, 4, 5), jnp.float64)
    t = jnp.asarray([0.2, 0.4, 0.6, 0.8])
    to, back = converters(path, x_t, t, kind)
    models = lambda c, u: (lambda x, t: c, lambda x, t: u)
    methods = {
        "adaptive_projected": lambda c, u, kind: guidance.adaptive_projected(
            c, u, 3.0, eta=0.2, norm_threshold=0.5, path=path, kind=kind
        ),
        "cfg_zero_star": lambda c, u, kind: guidance.cfg_zero_star(
            c, u, 3.0, path, kind=kind
        ),
        "tangential": lambda c, u, kind: guidance.tangential(
            c, u, 3.0, path, kind=kind
        ),
        "rescale": lambda c, u, kind: guidance.rescale(u, c, path=path, kind=kind),
    }

    @jit_once
    def run(t):
        bare = models(back(c), back(u))
        return {
            name: (
                method(*models(c, u), kind)(x_t, t),
                to(method(*bare, prediction.X0)(x_t, t)),
                method(*models(c, u), prediction.X0)(x_t, t),
            )
            for name, method in methods.items()
        }

    for name, (told, on_values, on_x_0) in run(t).items():
        np.testing.assert_allclose(told, on_values, rtol=1e-8, err_msg=name)
        differs = (jnp.abs(told - on_x_0) > 1e-3).any()
        assert differs == (kind != prediction.X0), name
