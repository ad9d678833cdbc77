"""Distributions of pairs of times s <= t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtr
from laws.registry import PATHS, jit_once

from genlib import losses, noise

STEPS = {
    "uniform": losses.uniform_steps(8),
    "random": losses.random_steps(losses.logit_normal(-0.4, 1.0)),
    "dyadic": losses.dyadic_steps(),
    "karras": losses.karras_steps(8, sigma_min=0.02, sigma_max=5.0),
    "log_normal": losses.log_normal_steps(8, sigma_min=0.02, sigma_max=5.0),
}


@pytest.mark.parametrize("name", ["vp", "rectified", "edm", "betas"])
def test_steps_are_within_the_path(name, key):
    path = PATHS[name]
    # The chain's first noise level is above 0.02, where these grids start.
    chain = isinstance(path, noise.DiscreteBetas)
    names = ("uniform", "random", "dyadic") if chain else STEPS
    draw = lambda key: {name: STEPS[name](key, path, 7) for name in names}
    for name, (s, t) in jit_once(draw)(key).items():
        assert s.shape == t.shape == (7,), name
        assert s.dtype == t.dtype == jnp.float32, name
        assert ((s >= path.t_min) & (s <= t) & (t <= path.t_max)).all(), name
        assert (t > path.t_min).all(), name


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_deterministic_in_the_key_and_wide(name, key):
    draw = lambda key, dtype: STEPS[name](key, noise.EDM(), 64, dtype)
    first, again = draw(key, jnp.float32), draw(key, jnp.bfloat16)
    np.testing.assert_array_equal(first, again)
    assert again[0].dtype == jnp.float32
    assert (draw(jax.random.key(1), jnp.float32)[1] != first[1]).any()


def karras_edges(steps):
    root = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), steps + 1)
    return root**7


@pytest.mark.parametrize("steps", [1, 18, 1280])
def test_log_normal_steps_are_the_published_ones(steps, key):
    """The probabilities of improved consistency training, to 5 standard errors."""
    count = 200_000
    draw = losses.log_normal_steps(steps)
    s, t = (np.asarray(x) for x in draw(key, noise.EDM(), count))
    edges = karras_edges(steps)
    cell = np.searchsorted(edges, 0.5 * (s + t)) - 1
    np.testing.assert_allclose(s, edges[cell], rtol=2e-5)
    np.testing.assert_allclose(t, edges[cell + 1], rtol=2e-5)
    mass = np.diff(ndtr((np.log(edges) + 1.1) / 2.0))
    share = mass / mass.sum()
    bins = np.arange(steps) * min(steps, 18) // steps  # 1280 steps are too many bins
    want = np.bincount(bins, share)
    got = np.bincount(bins[cell], minlength=len(want)) / count
    error = np.sqrt(want * (1 - want) / count)
    assert (abs(got - want) <= 5 * error + 1e-12).all()


def test_karras_and_uniform_steps_are_drawn_equally_often(key):
    for draw, edges in [
        (losses.karras_steps(5), karras_edges(5)),
        (losses.uniform_steps(5), np.linspace(0, 80, 6)),
    ]:
        s, t = draw(key, noise.EDM(), 50_000)
        cell = np.searchsorted(edges, 0.5 * (s + t)) - 1
        np.testing.assert_allclose(s, edges[cell], rtol=1e-5)
        np.testing.assert_allclose(t, edges[cell + 1], rtol=1e-5)
        np.testing.assert_allclose(np.bincount(cell) / 50_000, 0.2, atol=0.01)


def test_random_steps_keep_their_share(key):
    draw = losses.random_steps(losses.logit_normal(-0.4, 1.0), share=0.25)
    s, t = (np.asarray(x) for x in draw(key, noise.Rectified(), 20_000))
    apart = s < t
    np.testing.assert_allclose(apart.mean(), 0.25, atol=0.015)
    # t is the later of two draws, whether s is the earlier one or t itself.
    below = jax.nn.sigmoid(-0.4)  # the median of a draw
    np.testing.assert_allclose((t < below).mean(), 0.25, atol=0.015)
    np.testing.assert_allclose((t[apart] < below).mean(), 0.25, atol=0.03)
    np.testing.assert_allclose((s[apart] < below).mean(), 0.75, atol=0.03)
    for share in (0.0, 1.0):
        s, t = losses.random_steps(share=share)(key, noise.Rectified(), 100)
        assert ((s < t) == bool(share)).all()


def test_dyadic_steps_are_on_their_grids(key):
    draw = losses.dyadic_steps(4, share=0.5)
    s, t = (np.asarray(x) / 8 for x in draw(key, noise.EDM(8.0), 8000))
    apart = s < t
    np.testing.assert_allclose(apart.mean(), 0.5, atol=0.03)
    length, start = (t - s)[apart], s[apart]
    np.testing.assert_array_equal(start % length, 0)
    for k in range(4):
        of_level = length == 2.0**-k
        np.testing.assert_allclose(of_level.mean(), 0.25, atol=0.04)
        places = np.round(start[of_level] * 2**k).astype(int)
        share = np.bincount(places, minlength=2**k) / places.size
        np.testing.assert_allclose(share, 2.0**-k, atol=0.05)


def test_the_published_curriculum():
    total = 400_000
    length = total // 8  # 10 to 1280 in seven doublings
    got = losses.step_curriculum(np.arange(10) * length, total)
    assert got.tolist() == [10, 20, 40, 80, 160, 320, 640, 1280, 1280, 1280]
    before = losses.step_curriculum(length - 1, total)
    assert before.dtype == jnp.int32
    assert before == 10
    # Where the ends are no power of two apart, the last doubling stops at the end.
    odd = losses.step_curriculum(np.arange(400), 400, start=3, end=20)
    assert sorted(set(odd.tolist())) == [3, 6, 12, 20]
    assert int(losses.step_curriculum(2**31 - 1, 10, start=10, end=10)) == 10


def test_a_curriculum_traces_once(key):
    traces = []

    @jax.jit
    def draw(step):
        traces.append(step)
        steps = losses.step_curriculum(step, 80)
        return [
            sampler(steps)(key, noise.EDM(), 4)
            for sampler in (
                losses.uniform_steps,
                losses.karras_steps,
                losses.log_normal_steps,
            )
        ]

    early, late = draw(0), draw(79)
    assert len(traces) == 1
    for (s, t), (later_s, later_t) in zip(early, late, strict=True):
        assert (later_t - later_s < t - s).any()


MISTAKES = {
    "no steps": (lambda: losses.uniform_steps(0), r"steps must be .* 0"),
    "half steps": (lambda: losses.karras_steps(1.5), r"steps must be .* 1\.5"),
    "negative": (lambda: losses.log_normal_steps(-1), r"steps must be .* -1"),
    "share": (lambda: losses.random_steps(share=1.5), r"share must be .* 1\.5"),
    "levels": (lambda: losses.dyadic_steps(0), r"levels must be .* 0"),
    "curriculum": (
        lambda: losses.step_curriculum(0, 100, start=10, end=5),
        r"start and end must be .* 10 and 5",
    ),
    "short": (lambda: losses.step_curriculum(0, 7), r"total must be at least 8.* 7"),
    "grid leaves": (
        lambda: losses.karras_steps(4)(jax.random.key(0), noise.VE(0.01, 50.0), 2),
        r"sigma_min < sigma_max .* \[0\.01, 50\]; they are 0\.002 and 80\.0",
    ),
    "grid turned": (
        lambda: losses.log_normal_steps(4, sigma_min=3.0, sigma_max=1.0)(
            jax.random.key(0), noise.EDM(), 2
        ),
        r"sigma_min < sigma_max .*3\.0 and 1\.0",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()
