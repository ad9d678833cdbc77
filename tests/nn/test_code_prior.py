"""Priors over codes, against enumeration and loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import nn
from genlib.nn._code_prior import _lost
from genlib.nn._code_sampling import _truncated, masked_after
from genlib.types import example_keys

K, T, CLASSES = 3, 3, 2
SIZES = dict(depth=2, num_heads=2, mlp_ratio=1)
ALL = np.array(list(itertools.product(range(K), repeat=T)))
small = functools.partial(nn.code_prior, K, (T,), 4, num_classes=CLASSES, **SIZES)
masked = functools.partial(small, mode="masked")
double = dict(dtype=jnp.float64, param_dtype=jnp.float64)


def filled(prior, scale=0.7):
    """Return parameters as `init` would, with every number random."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype),
        jax.eval_shape(prior.init, jax.random.key(0)),
    )


def close_to(counts, p):
    """Within four standard errors of what a multinomial distribution gives."""
    n = counts.sum()
    assert (n * p).min() > 5  # or the errors are far from normal
    assert (abs(counts - n * p) <= 4 * np.sqrt(n * p * (1 - p))).all()


def frequencies(indices):
    return np.bincount(indices @ K ** np.arange(T)[::-1], minlength=K**T)


def test_probabilities_add_up_and_are_those_of_the_samples(x64):
    prior = small(**double)
    params, count = filled(prior, 0.4), 6000
    labels = jnp.arange(count) % CLASSES

    @jit_once
    def exact(params):
        # The classes and the null class, for every sequence.
        own = jnp.repeat(jnp.arange(CLASSES + 1), len(ALL))
        every = jnp.tile(jnp.asarray(ALL), (CLASSES + 1, 1))
        return prior.logits(params, every, own), prior.loss(None, params, every, own)

    @jit_once
    def sample(key, params, guidance):
        return prior.sample(key, params, count, labels, guidance=guidance)

    logits, loss = exact(params)
    log_p = nn.code_log_prob(logits, jnp.tile(jnp.asarray(ALL), (CLASSES + 1, 1)))
    assert log_p.dtype == jnp.float64
    np.testing.assert_allclose(loss, -log_p / T, rtol=1e-12)
    total = np.exp(log_p).reshape(CLASSES + 1, -1).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-12)

    logits = logits.reshape(CLASSES + 1, len(ALL), T, K)
    for seed, guidance in ((0, 1.0), (1, 2.0)):
        indices = sample(jax.random.key(seed), params, guidance)
        assert indices.dtype == jnp.int32
        for label in range(CLASSES):
            guided = logits[-1] + guidance * (logits[label] - logits[-1])
            p = np.exp(nn.code_log_prob(guided, jnp.asarray(ALL)))
            close_to(frequencies(np.asarray(indices[label::CLASSES])), p)


def test_cache_changes_nothing_and_places_see_the_past_only(x64):
    prior = small(**double)
    params = filled(prior)
    call = nn.lazy(
        lambda rngs: nn.CodeTransformer(
            K, T, 4, causal=True, num_classes=CLASSES, rngs=rngs, **SIZES, **double
        )
    )[1]
    every, labels = jnp.asarray(ALL), jnp.arange(len(ALL)) % (CLASSES + 1)

    @jit_once
    def everything(params):
        zeros = jnp.zeros((2, len(ALL), T, 2, 2))

        def body(cache, row):
            before, t = row
            logits, cache = call(params, before[:, None], labels, None, cache, t)
            return cache, logits[:, 0]

        before = jnp.concatenate([jnp.full((1, len(ALL)), -1), every.T[:-1]])
        steps = jax.lax.scan(body, (zeros, zeros), (before, jnp.arange(T)))[1]
        one_label = prior.logits(params, every, jnp.zeros(len(ALL), int))
        absent = prior.logits(params, every.at[:, 1].set(-1), labels)
        return prior.logits(params, every, labels), steps, one_label, absent

    logits, steps, one_label, absent = map(np.asarray, everything(params))
    np.testing.assert_allclose(steps.swapaxes(0, 1), logits, atol=1e-12)
    # Sequences are ordered by their first code, then by their second.
    first, second = (one_label[:, t].reshape(K, K, K, K) for t in (1, 2))
    assert (one_label[:, 0] == one_label[0, 0]).all()
    assert (first == first[:, :1, :1]).all()
    assert (second == second[:, :, :1]).all()
    assert (first[0] != first[1]).all()
    assert (second[:, 0] != second[:, 1]).all()
    # Without a code at place 1, place 2 sees another row.
    np.testing.assert_array_equal(absent[:, :2], logits[:, :2])
    assert (absent[:, 2] != logits[:, 2]).all()


def test_no_code_counts_nothing():
    logits = jnp.log(jnp.array([[[0.7, 0.2, 0.1]] * 3] * 2))
    indices = jnp.array([[0, -1, 2], [-1, -1, -1]])
    expected = [np.log(0.07), 0]
    np.testing.assert_allclose(
        nn.code_log_prob(logits, indices), expected, rtol=1e-6, atol=1e-7
    )
    # An index that does not exist is known only where nothing is traced.
    traced = jit_once(nn.code_log_prob)(logits, jnp.array([[0, 3, 1], [0, 1, -2]]))
    assert np.isnan(traced).all()


def test_masked_prior(x64):
    prior = masked(remat=True, **double)
    params = filled(prior)
    labels = jnp.array([0, 1, 2, 1])
    indices = jnp.array([[0, 1, 2], [2, -1, 0], [-1, -1, -1], [1, -1, -1]])
    key = jax.random.key(3)

    @jit_once
    def everything(params):
        none = jnp.full((4, T), -1)
        logits = prior.logits(params, none, labels)
        greedy = prior.sample(key, params, 4, labels, temperature=0.0, steps=1)
        drawn = prior.sample(key, params, 4, labels, steps=2)
        loss = jax.value_and_grad(
            lambda params: (
                lambda loss: (jnp.where(jnp.arange(4) < 2, loss, 0).sum(), loss)
            )(prior.loss(key, params, indices, labels)),
            has_aux=True,
        )(params)
        lost = _lost(example_keys(jax.random.split(key)[0], indices), indices >= 0)
        hidden = prior.logits(params, jnp.where(lost, -1, indices), labels)
        return logits, greedy, drawn, loss, lost, hidden

    logits, greedy, drawn, ((_, loss), gradient), lost, hidden = everything(params)
    np.testing.assert_array_equal(greedy, logits.argmax(-1))
    assert ((drawn >= 0) & (drawn < K)).all()
    log_p = np.asarray(jax.nn.log_softmax(hidden))
    for b in range(4):
        terms = [-log_p[b, t, indices[b, t]] for t in range(T) if lost[b, t]]
        assert len(terms) >= (b != 2)
        np.testing.assert_allclose(loss[b], np.mean(terms or [0]), rtol=1e-12)
    assert lost[3].tolist() == [True, False, False]
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert leaf.any(), path


def test_one_masked_step_draws_independently():
    logits = 0.5 * np.random.default_rng(0).standard_normal((1, T, K))
    count = 6000

    @jit_once
    def sample(key):
        predict = lambda indices: jnp.broadcast_to(logits, (count, T, K))
        return nn.sample_masked_codes(key, predict, (count, T), steps=1)

    each = np.exp(logits[0]) / np.exp(logits[0]).sum(1, keepdims=True)
    p = each[np.arange(T), ALL].prod(1)
    for seed in (0, 1):
        close_to(frequencies(np.asarray(sample(jax.random.key(seed)))), p)


def test_masked_steps_keep_what_is_most_certain():
    rng = np.random.default_rng(0)
    length, size, steps, batch = 9, 5, 4, 6
    place = rng.standard_normal((length, size)).astype(np.float32)
    other = rng.standard_normal((size, size)).astype(np.float32)

    def predict(xp, indices):
        # Each place is decided by the sum over all codes that are known.
        known = indices[..., None] >= 0
        rows = xp.where(known, xp.asarray(other)[xp.maximum(indices, 0)], 0)
        return place[None] + rows.sum(1)[:, None]

    @jit_once
    def sample(key):
        call = functools.partial(predict, jnp)
        settings = dict(steps=steps, temperature=0.0)
        certain = nn.sample_masked_codes(
            key, call, (batch, length), choice_temperature=0.0, **settings
        )
        return certain, nn.sample_masked_codes(key, call, (batch, length), **settings)

    indices = np.full((1, length), -1)
    for left in (8, 6, 3, 0):  # floor(9 cos(pi n / 8))
        logits = predict(np, indices)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        sure = np.where(indices >= 0, np.inf, log_p.max(-1))
        indices = np.where(indices >= 0, indices, logits.argmax(-1))
        indices[0, np.argsort(sure[0], kind="stable")[:left]] = -1
    certain, random = sample(jax.random.key(0))
    assert certain.tolist() == indices.tolist() * batch
    assert len(np.unique(random, axis=0)) > 1


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_schedule_decides_on_something_at_every_step(length):
    for steps in range(1, length + 1):
        left = masked_after(steps, length)
        assert len(left) == steps
        assert left[-1] == 0
        assert (np.diff([length, *left]) < 0).all()
    assert masked_after(length, length).tolist() == [*range(length)][::-1]


def test_share_of_lost_codes():
    length, count = 200, 2000
    present = jnp.ones((count, length), bool).at[:, 100:].set(False)
    keys = jax.random.split(jax.random.key(0), count)
    lost = np.asarray(jit_once(_lost)(keys, present))
    assert not lost[:, 100:].any()
    grid = np.ceil(100 * np.cos(np.pi / 2 * (np.arange(10_000) + 0.5) / 10_000))
    counts = lost.sum(1)
    assert counts.min() >= 1
    assert abs(counts.mean() - grid.mean()) < 4 * grid.std() / np.sqrt(count)
    # Every place as often as any other.
    p = counts.mean() / 100
    assert (abs(lost[:, :100].mean(0) - p) < 5 * np.sqrt(p / count)).all()


def test_truncation_keeps_the_most_probable():
    p = np.array([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]])
    logits = jnp.log(jnp.asarray(p, jnp.float32))
    kept = lambda **settings: (
        np.isfinite(_truncated(logits, **{"top_k": None, "top_p": None, **settings}))
    ).tolist()
    assert kept(top_k=2) == [[False, True, False, True], [True, True, False, False]]
    assert kept(top_p=0.6) == [[False, True, False, True], [True, True, True, False]]
    assert kept(top_p=1e-9) == [
        [False, True, False, False],
        [True, False, False, False],
    ]
    assert kept(top_p=1.0) == kept(top_k=4) == [[True] * 4] * 2
    assert kept(top_k=1, top_p=0.9) == kept(top_p=1e-9)


def test_draws_of_an_example_do_not_depend_on_the_others():
    keys = jax.random.split(jax.random.key(0), 3)
    table = jnp.asarray(np.random.default_rng(0).standard_normal((K + 1, K)))
    step = lambda cache, index, t: (table[index], cache)

    @jit_once
    def both(keys):
        hot = jnp.array([1.0, 0.0, 5.0])
        draw = functools.partial(nn.sample_codes, step=step, cache=())
        return (
            draw(keys, shape=(3, 20), temperature=hot),
            draw(keys[2:], shape=(1, 20), temperature=5.0),
            draw(keys[1:], shape=(2, 20), top_k=1),
        )

    together, alone, top = both(keys)
    assert together[2].tolist() == alone[0].tolist()
    assert together[1].tolist() == top[0].tolist() == top[1].tolist()


def test_images_of_codes_and_dtypes():
    sizes = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat=True)
    for mode in ("autoregressive", "masked"):
        prior = nn.code_prior(K, (2, 2), 4, mode=mode, **SIZES, **sizes)
        key = jax.random.key(0)
        params = jax.eval_shape(prior.init, key)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        indices = jax.ShapeDtypeStruct((5, 2, 2), jnp.int16)
        logits = jax.eval_shape(prior.logits, params, indices)
        assert (logits.shape, logits.dtype) == ((5, 2, 2, K), jnp.float32)
        loss = jax.eval_shape(prior.loss, key, params, indices)
        assert (loss.shape, loss.dtype) == ((5,), jnp.float32)
        settings = {"steps": 2} if mode == "masked" else {}
        sample = functools.partial(
            prior.sample, count=5, top_k=2, top_p=0.9, **settings
        )
        drawn = jax.eval_shape(lambda key, p, s=sample: s(key, p), key, params)
        assert (drawn.shape, drawn.dtype) == ((5, 2, 2), jnp.int32)


def test_dropout_needs_a_key():
    prior = small(dropout=0.5)
    params = filled(prior)

    @jit_once
    def losses(params, key):
        indices = jnp.asarray(ALL)
        still = small().loss(key, params, indices), prior.loss(None, params, indices)
        return *still, prior.loss(key, params, indices)

    plain, still, dropped = losses(params, jax.random.key(0))
    np.testing.assert_allclose(still, plain, rtol=1e-6)
    assert (dropped != plain).all()


def test_new_prior_is_uniform(key):
    prior = nn.code_prior(K, (T,), 4, depth=1, num_heads=1, mlp_ratio=1)
    loss = jit_once(lambda key: prior.loss(None, prior.init(key), jnp.asarray(ALL)))
    np.testing.assert_allclose(loss(key), np.log(K), rtol=1e-6)


def test_refusals(key):
    prior, without = small(), nn.code_prior(K, (T,), 4, **SIZES)
    params = filled(prior)
    codes = jnp.zeros((2, T), int)
    table = {
        r"mode must be .*, got 'gpt'": lambda: small(mode="gpt"),
        r"num_heads must divide the 4 features, got 3": lambda: small(num_heads=3),
        r"shape\[0\] must be positive, got 0": lambda: nn.code_prior(
            K, (0,), 4, **SIZES
        ),
        r"dropout must be in \[0, 1\), got 1": lambda: small(dropout=1),
        r"indices must be \[B, \.\.\.\] with \(3,\)": lambda: prior.logits(
            params, codes[:, :2]
        ),
        r"indices must be within 0 .. 2.* one is 3": lambda: prior.logits(
            params, codes + 3
        ),
        r"indices must be integers": lambda: prior.loss(key, params, codes + 0.5),
        r"labels must be in 0\.\.2": lambda: prior.logits(
            params, codes, jnp.array([0, 3])
        ),
        r"labels must be None": lambda: without.logits(
            filled(without), codes, jnp.array([0, 1])
        ),
        r"labels must have shape \(2,\)": lambda: prior.sample(
            key, params, 2, jnp.zeros(3, int)
        ),
        r"guidance must be None without": lambda: prior.sample(
            key, params, 2, guidance=2.0
        ),
        r"temperature must not be negative, got -1": lambda: prior.sample(
            key, params, 2, temperature=-1
        ),
        r"top_k must be within 1 .. 3, got 4": lambda: prior.sample(
            key, params, 2, top_k=4
        ),
        r"top_p must be within \(0, 1\], got 0": lambda: prior.sample(
            key, params, 2, top_p=0
        ),
        r"steps must be within 1 .. 3, got 4": lambda: masked().sample(
            key, params, 2, steps=4
        ),
        r"key must be a typed key": lambda: masked().loss(None, params, codes),
        r"logits must be \[B, \.\.\., K\]": lambda: nn.code_log_prob(
            jnp.zeros((2, 4, K)), codes
        ),
    }
    for message, call in table.items():
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call) if "sample" in call.__code__.co_names else call()
