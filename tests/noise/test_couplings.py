"""Couplings: exact assignments, entropic plans, and what they keep."""

import itertools
import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from laws.registry import jit_once

from genlib import noise
from genlib.noise._couplings import _sinkhorn

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/noise.json").read_text())
DATA, SOURCE = (np.array(GOLDEN["torchcfm"][k]) for k in ("x1", "x0"))
COUPLINGS = {
    "independent": noise.independent_coupling,
    "optimal": noise.optimal_coupling,
    "conditional": noise.conditional_coupling(),
    "sinkhorn": noise.sinkhorn_coupling(0.5),
    "schroedinger": noise.schroedinger_coupling(0.5),
}
PERMUTES = ("independent", "optimal", "conditional")
every_coupling = pytest.mark.parametrize("name", COUPLINGS)
LABELS = np.arange(8) % 3


def batch(shape=(8, 2, 3), seed=0):
    x_0, x_1 = np.random.default_rng(seed).standard_normal((2, *shape))
    return jnp.asarray(x_0, jnp.float32), jnp.asarray(x_1, jnp.float32)


def squared_distances(x_0, x_1):
    x_0, x_1 = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x_0, x_1))
    return np.square(x_0[:, None] - x_1[None]).sum(-1)


def test_exact_transport_of_torchcfm(key, x64):
    pairs = noise.optimal_coupling(key, jnp.asarray(DATA), jnp.asarray(SOURCE))
    # There each source sample has its data; here each data sample has its source.
    assert np.argsort(pairs.index_1).tolist() == GOLDEN["pairs"]["permutation"]
    cost = np.square(pairs.x_0 - pairs.x_1).sum(1).mean()
    np.testing.assert_allclose(cost, 5.91566992, rtol=1e-8)
    np.testing.assert_allclose(cost**0.5, GOLDEN["pairs"]["w2"], rtol=1e-8)


@hypothesis.given(seed=st.integers(0, 2**16))
@hypothesis.settings(max_examples=10)
def test_exact_transport_beats_every_permutation(seed):
    x_0, x_1 = batch((5, 2, 3), seed)
    x_1 = x_1 + 1000  # a common shift costs digits, and changes no plan
    got = noise.optimal_coupling(jax.random.key(0), x_0, x_1).index_1
    cost = squared_distances(x_0, x_1 - 1000)
    best = min(itertools.permutations(range(5)), key=lambda p: cost[range(5), p].sum())
    assert got.tolist() == list(best)


@every_coupling
def test_pairs_are_taken_at_their_indices_and_images_are_flattened(name, key):
    """Labels follow the data: those of a pair are `labels[index_0]`."""
    x_0, x_1 = batch()
    couple = jit_once(lambda x_0, x_1: COUPLINGS[name](key, x_0, x_1, LABELS))
    pairs = couple(x_0, x_1)
    np.testing.assert_array_equal(pairs.x_0, x_0[pairs.index_0])
    np.testing.assert_array_equal(pairs.x_1, x_1[pairs.index_1])
    assert pairs.index_0.tolist() == list(range(8))
    flat = couple(x_0.reshape(8, 6), x_1.reshape(8, 6))
    np.testing.assert_array_equal(flat.index_1, pairs.index_1)
    if name in PERMUTES:
        assert sorted(pairs.index_1.tolist()) == list(range(8))


@every_coupling
def test_jit_and_vmap_pair_as_eager_code_does(name, key):
    couple = COUPLINGS[name]
    keys = jax.random.split(key, 2)
    x_0, x_1 = (jnp.stack(x) for x in zip(batch(), batch(seed=1), strict=True))
    together = jit_once(jax.vmap(lambda *row: couple(*row, LABELS)))(keys, x_0, x_1)
    eager = couple(keys[1], x_0[1], x_1[1], LABELS)
    np.testing.assert_array_equal(together.index_1[1], eager.index_1)
    alone = jit_once(lambda *row: couple(*row, LABELS))(keys[0], x_0[0], x_1[0])
    np.testing.assert_array_equal(together.index_1[0], alone.index_1)


def test_a_large_batch_under_jit(key):
    x_0, x_1 = batch((512, 64))
    pairs = jax.jit(noise.optimal_coupling)(key, x_0, x_1)
    cost = squared_distances(x_0, x_1)
    assert sorted(pairs.index_1.tolist()) == list(range(512))
    assert cost[range(512), np.asarray(pairs.index_1)].sum() < 0.9 * np.trace(cost)


def test_a_sharded_batch_is_paired_as_a_whole(key):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x_0, x_1 = batch((16, 2))
    want = noise.optimal_coupling(key, x_0, x_1)
    rows = NamedSharding(mesh, PartitionSpec("x"))
    got = jax.jit(noise.optimal_coupling)(key, *jax.device_put((x_0, x_1), rows))
    np.testing.assert_array_equal(got.index_1, want.index_1)
    np.testing.assert_array_equal(got.x_1, want.x_1)


def test_independent_pairs_forget_their_order(key):
    x = jnp.arange(4.0)[:, None]
    keys = jax.random.split(key, 4000)
    draw = jax.vmap(lambda k: noise.independent_coupling(k, x, x).index_1)
    share = (np.asarray(jit_once(draw)(keys))[..., None] == np.arange(4)).mean(0)
    np.testing.assert_allclose(share, 0.25, atol=4 * (0.1875 / 4000) ** 0.5)


def test_conditional_transport_is_exact_within_each_label(key):
    x_0, x_1 = batch((9, 2))
    labels = np.array([0, 1, 2, 2, 1, 0, 0, 1, 2])
    got = noise.conditional_coupling()(key, x_0, x_1, labels).index_1
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        within = noise.optimal_coupling(key, x_0[rows], x_1[rows]).index_1
        np.testing.assert_array_equal(got[rows], rows[within])


def test_the_weight_goes_from_plain_transport_to_within_labels(key):
    x_0, x_1 = batch((9, 2))
    labels = np.arange(9) % 3
    plain = noise.optimal_coupling(key, x_0, x_1).index_1
    pair = lambda weight, c: noise.conditional_coupling(weight)(key, x_0, x_1, c)
    np.testing.assert_array_equal(pair(0.0, labels).index_1, plain)
    assert (labels[pair(1e4, labels).index_1] == labels).all()
    assert (labels[plain] != labels).any()
    one_hot = np.eye(3, dtype=np.float32)[labels]
    weighted = pair(1.5, one_hot).index_1
    np.testing.assert_array_equal(weighted, pair(3.0, labels).index_1)


def scaled_kernel(cost, reg):
    """Return the plan by scaling exp(-cost / reg) in turns, times the batch size."""
    kernel, u = np.exp(-cost / reg), np.ones(len(cost))
    for _ in range(20_000):
        u = 1 / (kernel @ (1 / (kernel.T @ u)))
    return u[:, None] * kernel / (kernel.T @ u)


def test_sinkhorn_plan_against_plain_scaling(x64):
    cost = squared_distances(*batch((6, 2)))
    # Terms of one index alone, which the coupling leaves out, must not matter.
    shifted = jnp.asarray(cost + np.arange(6.0)[:, None] - np.arange(6.0))
    plan = jit_once(lambda reg: jnp.exp(_sinkhorn(shifted, reg, 1e-13, 20_000)))
    for reg in (0.3, 1.0, 30.0):
        got = plan(reg)
        np.testing.assert_allclose(got, scaled_kernel(cost, reg), atol=1e-9)
        np.testing.assert_allclose(got.sum(1), 1, rtol=1e-12)


def test_pairs_of_sinkhorn_are_drawn_from_its_plan(key):
    """Those of a Schroedinger bridge of sigma 1 are: reg is then 2."""
    x_0, x_1 = batch((3, 2))
    plan = scaled_kernel(squared_distances(x_0, x_1), 2.0)
    assert ((plan > 0.02) & (plan < 0.98)).any()
    keys = jax.random.split(key, 8000)
    for couple in (noise.sinkhorn_coupling(2.0), noise.schroedinger_coupling(1.0)):
        draw = jax.vmap(lambda k, couple=couple: couple(k, x_0, x_1).index_1)
        share = (np.asarray(jit_once(draw)(keys))[..., None] == np.arange(3)).mean(0)
        error = 1e-3 + 4 * (plan * (1 - plan) / 8000) ** 0.5
        assert (np.abs(share - plan) < error).all()


def test_limits_of_sinkhorn(key):
    """Exact transport as reg goes to 0, independent pairs as it grows."""
    x_0, x_1 = batch((32, 2))
    cost = jnp.asarray(squared_distances(x_0, x_1), jnp.float32)
    plan = jit_once(lambda reg: jnp.exp(_sinkhorn(cost, reg, 1e-3, 2000)))
    exact = noise.optimal_coupling(key, x_0, x_1).index_1
    assert (plan(1e-3).argmax(1) == exact).mean() > 0.9
    np.testing.assert_allclose(plan(1e6), 1 / 32, rtol=1e-3)


def test_gradients_pass_through_the_pairs_and_not_the_choice(key):
    x_0, x_1 = batch((8, 2))
    for couple in (noise.optimal_coupling, noise.sinkhorn_coupling(0.5)):
        total = lambda x, couple=couple: couple(key, x_0, x).x_1.sum()
        taken = np.bincount(jit_once(couple)(key, x_0, x_1).index_1, minlength=8)
        got = jit_once(jax.grad(total))(x_1)
        np.testing.assert_array_equal(got, np.repeat(taken[:, None], 2, 1))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: noise.optimal_coupling(None, x, x[:3]), "x_1 must have"),
        (lambda x: noise.optimal_coupling(None, x, x[:, :1]), "x_1 must have"),
        (lambda x: noise.independent_coupling(None, x, x[:3]), "x_1 must have"),
        (lambda x: noise.sinkhorn_coupling(1.0)(None, x, x[:3]), "x_1 must have"),
        (lambda x: noise.sinkhorn_coupling(0.0), "reg must be positive"),
        (lambda x: noise.schroedinger_coupling(-1.0), "sigma must be positive"),
        (lambda x: noise.conditional_coupling()(None, x, x), "condition must be"),
        (
            lambda x: noise.conditional_coupling()(None, x, x, np.ones(3)),
            "condition must be",
        ),
        (
            lambda x: noise.conditional_coupling()(None, x, x, x),
            "weight must be finite",
        ),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.ones((4, 2)))
