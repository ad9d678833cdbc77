"""Times drawn where the loss is: what is learned, and that the mean stays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import ADAPTIVE_TIMES, each, jit_once

from genlib import losses, noise, prediction

COSINE, V = noise.Cosine(), prediction.V
every_scheme = pytest.mark.parametrize("name", ADAPTIVE_TIMES)

N = 100_000


def midpoints(key, path, n, dtype):
    return ((jnp.arange(n) + 0.5) / n).astype(dtype)


def rising(path, t):
    """A loss that is 40 times larger at one end of the path than at the other."""
    return 0.1 + 4 * jax.nn.sigmoid(-noise.log_snr(path, t)) ** 2


def scheme(name, draw=losses.uniform):
    if name == "loss_second_moment":
        return losses.loss_second_moment(16, history=3, draw=draw)
    return losses.adaptive_log_snr(-8.0, 9.0, 16, decay=0.9, draw=draw)


def uniform_times(name, path, dtype=jnp.float64):
    if name == "loss_second_moment":
        return midpoints(None, path, N, dtype)  # paths over [0, 1]
    return losses.uniform_log_snr(-8.0, 9.0, draw=midpoints)(None, path, N, dtype)


def trained(adaptive, path, updates=20):
    """Return the state after batches of losses at random times."""

    @jit_once
    def train(state):
        def update(state, key):
            t = losses.uniform(key, path, 256)
            return adaptive.update(state, path, t, rising(path, t)), None

        keys = jax.random.split(jax.random.key(3), updates)
        return jax.lax.scan(update, state, keys)[0]

    return train(adaptive.init())


@every_scheme
@pytest.mark.parametrize("path", [COSINE, noise.VE(0.3, 4.0)], ids=["cosine", "ve"])
def test_weighted_losses_have_the_mean_of_uniform_ones(name, path, x64):
    adaptive = scheme(name, midpoints)
    state = trained(adaptive, path)
    value = lambda t: jax.nn.sigmoid(-noise.log_snr(path, t))

    @jit_once
    def run(state):
        t = adaptive.times(state)(None, path, N, jnp.float64)
        weight = adaptive.weight(state)(path, V, t)
        means = [x.mean() for x in (value(t), weight * value(t), weight)]
        return t, means, value(uniform_times(name, path)).mean()

    t, (unweighted, weighted, weight), want = run(state)
    assert ((t >= path.t_min) & (t <= path.t_max)).all()
    np.testing.assert_allclose(weighted, want, rtol=2e-4)
    np.testing.assert_allclose(weight, 1.0, rtol=2e-4)
    assert abs(unweighted - want) > 0.02 * want


@every_scheme
def test_weighted_losses_have_less_variance(name):
    adaptive = scheme(name)
    state = trained(adaptive, COSINE)

    @jit_once
    def spreads(key):
        t = adaptive.times(state)(key, COSINE, 4000)
        weighted = adaptive.weight(state)(COSINE, V, t) * rising(COSINE, t)
        before = rising(COSINE, uniform_times(name, COSINE, jnp.float32))
        return [loss.std() / loss.mean() for loss in (weighted, before)]

    after, before = spreads(jax.random.key(0))
    assert after < 0.25 * before


@every_scheme
def test_before_any_loss_times_are_uniform(name, x64):
    adaptive = scheme(name, midpoints)

    @jit_once
    def run(state):
        t = adaptive.times(state)(None, COSINE, N, jnp.float64)
        return t, adaptive.weight(state)(COSINE, V, t), uniform_times(name, COSINE)

    for state in (
        adaptive.init(),
        adaptive.update(adaptive.init(), COSINE, jnp.full(2, 0.4), jnp.zeros(2)),
    ):
        t, weight, uniform = run(state)
        np.testing.assert_allclose(t, np.sort(t)[:: 1 if t[0] < t[-1] else -1])
        np.testing.assert_allclose(np.sort(t), np.sort(uniform), atol=1e-9)
        np.testing.assert_allclose(weight, 1.0, rtol=1e-9)


def test_the_history_is_that_of_a_loop(key):
    """Also where a bin gets more losses in one batch than it keeps."""
    adaptive, kept = losses.loss_second_moment(4, history=3, floor=0.0), [[]] * 4
    update, state = jax.jit(adaptive.update), adaptive.init()
    rng = np.random.default_rng(0)
    for _ in range(9):
        t, loss = rng.random(7) ** 2, rng.random(7)
        state = update(state, COSINE, jnp.asarray(t, "f4"), jnp.asarray(loss, "f4"))
        for k, value in zip((t * 4).astype(int), loss, strict=True):
            kept[k] = [*kept[k], value][-3:]
    assert [len(values) for values in kept] == [3] * 4
    np.testing.assert_allclose(np.sort(state.losses), np.sort(kept), rtol=1e-6)
    assert (state.count < 6).all()

    rms = np.sqrt(np.mean(np.square(kept), axis=1))
    middle = (jnp.arange(4) + 0.5) / 4
    got = adaptive.weight(state)(COSINE, V, middle)
    np.testing.assert_allclose(got, rms.sum() / (4 * rms), rtol=1e-5)


def test_the_history_must_be_full():
    adaptive = losses.loss_second_moment(2, history=2)
    t, loss = jnp.array([0.2, 0.3, 0.7]), jnp.array([1.0, 2.0, 9.0])
    state = adaptive.update(adaptive.init(), COSINE, t, loss)
    assert (adaptive.weight(state)(COSINE, V, t) == 1).all()
    state = adaptive.update(state, COSINE, t[2:], loss[2:])
    assert adaptive.weight(state)(COSINE, V, t)[0] > 1


def test_the_average_is_that_of_a_loop():
    adaptive = losses.adaptive_log_snr(-4.0, 4.0, 4, decay=0.8, floor=0.0)
    t = lambda *log_snr: noise.time_at(COSINE, jnp.array(log_snr))
    state = adaptive.update(
        adaptive.init(), COSINE, t(-3.0, -3.5, 1.0), jnp.array([1.0, 3.0, 5.0])
    )
    np.testing.assert_allclose(state.losses, [2.0, 0.0, 5.0, 0.0])
    # The unseen bins have the average of the others, 3.5.
    got = adaptive.weight(state)(COSINE, V, t(-3.0, -1.0, 1.0, 3.0))
    np.testing.assert_allclose(got, 3.5 / np.array([2.0, 3.5, 5.0, 3.5]), rtol=1e-5)
    state = adaptive.update(state, COSINE, t(1.5, -20.0), jnp.array([9.0, 4.0]))
    np.testing.assert_allclose(state.losses, [2.4, 0.0, 5.8, 0.0], rtol=1e-6)
    assert state.seen.tolist() == [True, False, True, False]


@every_scheme
def test_gradients_do_not_pass_through_the_state(name, key):
    adaptive = ADAPTIVE_TIMES[name]

    def later(loss):
        t = jnp.linspace(0.1, 0.9, 40)
        state = adaptive.update(adaptive.init(), COSINE, t, loss)
        return adaptive.weight(state)(COSINE, V, t).sum()

    assert (jit_once(jax.grad(later))(jnp.linspace(0.1, 2.0, 40)) == 0).all()


def test_it_trains_with_the_denoising_loss(key):
    """As the room says: draw, compute, update, weigh."""
    adaptive, x_0 = losses.adaptive_log_snr(-6, 6, 8), jnp.ones((32, 2))

    @jax.jit
    def step(state, key):
        t = adaptive.times(state)(key, COSINE, 32)
        loss = losses.denoising(
            key,
            lambda x, t: x,
            COSINE,
            x_0,
            kind=V,
            weight=losses.sigmoid(),
            times=lambda *_: t,
        )
        weighted = adaptive.weight(state)(COSINE, V, t) * loss
        return adaptive.update(state, COSINE, t, loss), weighted

    state = adaptive.init()
    for i in range(3):
        state, weighted = step(state, jax.random.fold_in(key, i))
        assert weighted.shape == (32,)
        assert jnp.isfinite(weighted).all()
    assert state.seen.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.loss_second_moment(0), "bins must be at least 1; it is 0"),
        (lambda: losses.loss_second_moment(history=0), "history must be at least 1"),
        (lambda: losses.adaptive_log_snr(bins=0), "bins must be at least 1"),
        (lambda: losses.adaptive_log_snr(3.0, 1.0), "low must be less than high"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("adaptive", **each(ADAPTIVE_TIMES))
def test_a_loss_that_is_not_finite_is_left_out(adaptive):
    t = jnp.array([0.2, 0.2, 0.7])
    with_it = adaptive.update(
        adaptive.init(), COSINE, t, jnp.array([jnp.nan, 1.0, 3.0])
    )
    without = adaptive.update(adaptive.init(), COSINE, t[1:], jnp.array([1.0, 3.0]))
    chex.assert_trees_all_close(with_it, without)
