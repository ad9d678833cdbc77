"""Residual stages: what they leave, their gradients, and how many are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import quantize

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(64, 3)).astype("f")
# Each finer than the one before.
CODEBOOKS = (RNG.normal(size=(4, 8, 3)) * 0.5 ** np.arange(4)[:, None, None]).astype(
    "f"
)
PARAMS = {"codebook": jnp.asarray(CODEBOOKS)}
RVQ = quantize.residual(quantize.vq(8), 4)


def by_hand(z, codebooks):
    """Return the indices [..., S], what each stage sees and what it makes of it."""
    indices, inputs, codes, left = [], [], [], z.astype(np.float64)
    for codebook in codebooks.astype(np.float64):
        chosen = np.square(left[:, None] - codebook).sum(-1).argmin(1)
        indices.append(chosen)
        inputs.append(left)
        codes.append(codebook[chosen])
        left = left - codebook[chosen]
    return np.stack(indices, -1), np.stack(inputs), np.stack(codes)


def near(got, want, bound=1e-5):
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound)


@pytest.fixture(scope="module")
def steps():
    """The values and the gradients of RVQ, from one program."""

    def naive(params, z):  # straight-through in every stage, as if that were enough
        left, total = z, 0
        commitments = []
        for i in range(4):
            own = {"codebook": params["codebook"][i]}
            made = quantize.vq(8).quantize(own, left)
            fixed = jax.lax.stop_gradient(made.codes)
            commitments.append(jnp.square(left - fixed).mean(-1))
            left = left - made.codes
            total = total + made.codes
        return total, commitments

    def summed(params, z):
        left, total = z, 0
        for i in range(4):
            own = {"codebook": params["codebook"][i]}
            made = quantize.vq(8).quantize(own, left)
            left = left - jax.lax.stop_gradient(made.codes)
            total = total + made.codes
        return total

    @jit_once
    def run(z):
        make = lambda params, z: RVQ.quantize(params, z)
        weight = lambda codes: (codes * jnp.array([[1.0, 2.0, 3.0]])).sum()
        made = make(PARAMS, z)
        of_loss = lambda name: jax.grad(
            lambda params, z: make(params, z).losses[name].sum(), (0, 1)
        )(PARAMS, z)
        first = jnp.where(jnp.arange(4) < 2, made.indices, -1)
        return dict(
            made=made,
            looked_up=RVQ.lookup(PARAMS, made.indices),
            first=RVQ.lookup(PARAMS, first),
            codes=jax.grad(lambda p, z: weight(make(p, z).codes), (0, 1))(PARAMS, z),
            summed=jax.grad(lambda z: weight(summed(PARAMS, z)))(z),
            naive=jax.grad(lambda z: naive(PARAMS, z)[1][1].sum())(z),
            commitment=of_loss("commitment"),
            codebook=of_loss("codebook"),
        )

    return run(Z)


def test_codes_are_the_sum_of_the_stages(steps):
    indices, _, codes = by_hand(Z, CODEBOOKS)
    np.testing.assert_array_equal(steps["made"].indices, indices)
    near(steps["made"].codes, codes.sum(0), 1e-6)
    np.testing.assert_array_equal(steps["looked_up"], steps["made"].codes)
    exact = np.float32(0) + CODEBOOKS[0][indices[:, 0]]
    for stage in range(1, 4):
        exact = exact + CODEBOOKS[stage][indices[:, stage]]
    np.testing.assert_array_equal(steps["made"].codes, exact)
    near(steps["first"], codes[:2].sum(0), 1e-6)


def test_the_gradient_of_the_codes_is_that_of_one_estimator(steps):
    of_params, of_z = steps["codes"]
    near(of_z, np.broadcast_to([1, 2, 3], Z.shape))
    assert not of_params["codebook"].any()
    near(steps["summed"], 4 * np.broadcast_to([1, 2, 3], Z.shape))  # what it is not


def test_every_stage_has_losses_with_gradients(steps):
    indices, inputs, codes = by_hand(Z, CODEBOOKS)
    errors = inputs - codes
    for name in ("commitment", "codebook"):
        near(steps["made"].losses[name], np.square(errors).mean(-1).sum(0))
    of_codebook, of_z = steps["commitment"]
    near(of_z, 2 / 3 * errors.sum(0))  # of all stages: the naive second one has none
    assert not steps["naive"].any()
    assert not of_codebook["codebook"].any()
    of_codebook, of_z = steps["codebook"]
    want = np.zeros_like(CODEBOOKS)
    for stage in range(4):
        np.add.at(want[stage], indices[:, stage], -2 / 3 * errors[stage])
    near(of_codebook["codebook"], want)
    assert np.abs(want).max((1, 2)).min() > 0.01
    assert not of_z.any()


def test_residuals_shrink():
    # Each vector's, where every codebook holds 0.
    zeros = CODEBOOKS.copy()
    zeros[:, 0] = 0
    _, inputs, codes = by_hand(Z, zeros)

    @jit_once
    def run(codebook, z):
        params = {"codebook": codebook}
        indices = RVQ.quantize(params, z).indices
        first = lambda n: jnp.where(jnp.arange(4)[None] < n, indices, -1)
        return jnp.stack([z - RVQ.lookup(params, first(n)) for n in range(5)])

    norms = np.linalg.norm(run(zeros, Z), axis=-1)
    near(norms[:4], np.linalg.norm(inputs, axis=-1))
    near(norms[4], np.linalg.norm(inputs[-1] - codes[-1], axis=-1))
    assert (np.diff(norms, axis=0) <= 1e-6).all()
    assert norms[4].mean() < 0.6 * norms[0].mean()


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_codebooks_start_fitted_to_what_is_left(shared):
    quantizer = quantize.residual(quantize.vq(8), 4, shared=shared)

    @jit_once
    def fit(z):
        params = quantizer.init(jax.random.key(0), z)
        indices = quantizer.quantize(params, z).indices
        first = lambda n: jnp.where(jnp.arange(4)[None] < n, indices, -1)
        errors = [z - quantizer.lookup(params, first(n)) for n in range(5)]
        return params, jnp.stack([jnp.square(error).mean() for error in errors])

    params, errors = fit(Z)
    assert params["codebook"].shape == ((8, 3) if shared else (4, 8, 3))
    # Of a shared one, stages soon have nothing left that is as fine as they need.
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < (0.25 if shared else 0.03) * errors[0]


def test_a_stage_starts_from_what_the_others_left():
    quantizer = quantize.residual(quantize.vq(64, init="data"), 2)
    codebooks = jit_once(quantizer.init)(jax.random.key(0), Z)["codebook"]
    near(np.sort(codebooks[0], 0), np.sort(Z, 0), 0)  # all of the batch, so that
    assert not codebooks[1].any()  # nothing is left of it


def test_examples_use_as_many_stages_as_drawn():
    depth, keep, z = 4, 2, np.broadcast_to(Z[:1], (4000, 3)).reshape(2000, 2, 3)
    mask = np.arange(2000)[:, None] + np.zeros((1, 2), int) != 7
    inner = quantize.ema_vq(8)

    @jit_once
    def run(dropout, z):
        quantizer = quantize.residual(inner, depth, dropout=dropout, keep=keep)
        params = {"statistics": jax.vmap(quantize.init_ema)(CODEBOOKS)}
        made = quantizer.quantize(params, z, mask=mask, key=jax.random.key(1))
        plain = quantizer.quantize(params, z, mask=mask)
        return made, quantizer.lookup(params, made.indices), plain

    made, codes, plain = run(0.6, z)
    used = np.asarray(made.indices >= 0)
    counts = used.sum(-1)
    np.testing.assert_array_equal(used, np.arange(depth) < counts[..., None])
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])  # of one example
    assert not counts[7].any()
    # 0.2 of the examples for each of 2, 3 and 4 stages, and the rest for all.
    shares = [(counts[:, 0] == n).mean() for n in range(depth + 1)]
    near(shares, [0.0005, 0, 0.2, 0.2, 0.5995], 0.04)
    np.testing.assert_array_equal(made.codes, codes)
    np.testing.assert_array_equal(made.statistics.n.sum(-1), used.sum((0, 1)))
    _, inputs, stages = by_hand(Z[:1], CODEBOOKS)
    each = np.square(inputs - stages).mean(-1)[:, 0]
    near(made.losses["commitment"], (used * each).sum(-1))
    assert (plain.indices >= 0).all(-1).sum() == 2 * 1999
    everything, _, _ = run(0.0, z)
    np.testing.assert_array_equal(everything.indices, plain.indices)


def test_shared_stages_restart_dead_codes_at_what_one_of_them_saw():
    quantizer = quantize.residual(
        quantize.ema_vq(8, reset=0.5, parts=1), 3, shared=True
    )
    codebook = CODEBOOKS[0].copy()
    codebook[4:] = 100
    params = {"statistics": quantize.init_ema(codebook)}
    params["statistics"]["n"] = jnp.array([1.0] * 4 + [0.01] * 4)
    params["statistics"]["sum"] = jnp.array(codebook).at[4:].multiply(0.01)

    @jit_once
    def run(z):
        made = [quantizer.quantize(params, z, key=jax.random.key(i)) for i in range(4)]
        return made, [quantizer.update(params, each.statistics) for each in made]

    _, inputs, _ = by_hand(Z, np.stack([codebook] * 3))
    stages = []
    for made, updated in zip(*run(Z), strict=True):
        assert made.statistics.n.sum() == 3 * len(Z)
        near(made.statistics.sum.sum(0), inputs.sum((0, 1)), 1e-3)
        assert (made.statistics.drawn == 1).all()
        codes = np.asarray(quantize.ema_codebook(updated["statistics"]))[4:]
        distances = np.abs(codes[:, None, None] - inputs).max(-1)  # [code, stage, row]
        assert distances.min((1, 2)).max() < 1e-3
        stages.append(distances.min(2).argmin(1).tolist())
    assert all(len(set(each)) == 1 for each in stages)
    assert len({each[0] for each in stages}) > 1


def test_a_gradient_of_its_own_is_that_of_the_first_stage():
    fsq, soft = quantize.fsq((5, 5, 5)), quantize.gumbel(8)

    @jit_once
    def run(z):
        quantizer = quantize.residual(fsq, 3, estimator=None)
        of_codes = lambda made: made.codes.sum()
        rest = (
            jax.grad(lambda z: of_codes(quantizer.quantize({}, z)))(z),
            jax.grad(lambda z: of_codes(fsq.quantize({}, z)))(z),
        )
        quantizer = quantize.residual(soft, 3, estimator=None)
        params = quantizer.init(jax.random.key(0), z)
        return *rest, jax.grad(lambda p: of_codes(quantizer.quantize(p, z)))(params)

    residual, single, of_params = run(0.3 * Z)
    near(residual, single, 1e-6)
    # Each code is trained by the sum of the codes, as often as it is chosen.
    near(of_params["codebook"].sum((1, 2)), [3 * len(Z)] * 3)


def test_the_program_does_not_grow_with_the_depth():
    def size(depth):
        quantizer = quantize.residual(quantize.vq(8), depth)
        call = lambda key, z: quantizer.quantize(quantizer.init(key, z), z)
        return str(jax.make_jaxpr(call)(jax.random.key(0), Z)).count("\n")

    assert size(12) == size(3)


def test_wrong_arguments_are_named():
    for settings, words in [
        ({"depth": 0}, "depth must be at least 1; it is 0"),
        ({"depth": 2, "keep": 3}, r"keep must be within 1 .. 2, the depth; it is 3"),
        ({"depth": 2, "keep": 0}, r"keep must be within 1 .. 2, the depth; it is 0"),
        ({"depth": 2, "dropout": 1.5}, r"dropout must be within \[0, 1\]; it is 1.5"),
    ]:
        with pytest.raises(ValueError, match=words):
            quantize.residual(quantize.vq(8), **settings)
    with pytest.raises(ValueError, match=r"one for each of depth = 4; they are \[5\]"):
        RVQ.lookup(PARAMS, jnp.zeros(5, int))
    with pytest.raises(ValueError, match="one is 8"):
        RVQ.lookup(PARAMS, jnp.full((5, 4), 8))
