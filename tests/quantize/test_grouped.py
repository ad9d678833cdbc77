"""Product quantisation and heads, against the quantizers that they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import quantize

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(5, 3, 4)).astype("f")
MASK = RNG.random((5, 3)) < 0.7
CODEBOOKS = RNG.normal(size=(2, 6, 2)).astype("f")


def near(got, want, bound=1e-6):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=bound, atol=bound)
    jax.tree.map(compare, got, want)


@pytest.fixture(scope="module")
def pieces():
    """What each piece of Z becomes on its own."""
    piece = quantize.vq(6)
    call = jit_once(lambda c, z: piece.quantize({"codebook": c}, z, mask=MASK))
    return [call(CODEBOOKS[g], Z[..., 2 * g : 2 * g + 2]) for g in range(2)]


def test_groups_are_quantizers_of_pieces(pieces):
    quantizer, params = (
        quantize.grouped(quantize.vq(6), 2),
        {"codebook": jnp.asarray(CODEBOOKS)},
    )
    made = jit_once(lambda z: quantizer.quantize(params, z, mask=MASK))(Z)
    join = lambda name: [getattr(piece, name) for piece in pieces]
    near(made.codes, np.concatenate(join("codes"), -1))
    near(made.indices, np.stack(join("indices"), -1))
    near(made.perplexity, np.stack(join("perplexity")))
    assert set(made.losses) == {"commitment", "codebook"}
    for name, loss in made.losses.items():
        near(loss, np.mean([piece.losses[name] for piece in pieces], 0))
    # The losses are still means over all of D.
    near(made.losses["codebook"], np.square(Z - made.codes).mean(-1) * MASK)
    near(quantizer.lookup(params, made.indices), made.codes, 0)


def test_the_codes_are_the_product_of_the_codebooks():
    quantizer, params = (
        quantize.grouped(quantize.vq(6), 2),
        {"codebook": jnp.asarray(CODEBOOKS)},
    )
    pairs = np.indices((6, 6), np.int32).reshape(2, 36).T

    @jit_once
    def run(pairs):
        codes = quantizer.lookup(params, pairs)
        return codes, quantizer.quantize(params, codes)

    codes, made = run(pairs)
    assert len(np.unique(codes, axis=0)) == 36
    near(made.indices, pairs, 0)
    near(made.losses["commitment"], np.zeros(36), 0)


def test_heads_share_a_codebook_and_add_up_their_statistics():
    each = quantize.ema_vq(6)
    quantizer = quantize.grouped(each, 2, shared=True)

    @jit_once
    def both(z):
        state = quantize.init_ema(CODEBOOKS[0])
        params = {"statistics": state}
        made = quantizer.quantize(params, z, mask=MASK)
        alone = [
            each.quantize(params, z[..., 2 * g : 2 * g + 2], mask=MASK)
            for g in range(2)
        ]
        return made, alone, quantizer.update(params, made.statistics)

    made, alone, updated = both(Z)
    near(made.statistics, jax.tree.map(jnp.add, *[a.statistics for a in alone]))
    assert made.statistics.n.sum() == 2 * MASK.sum()
    near(made.indices, np.stack([a.indices for a in alone], -1))
    near(made.perplexity, np.stack([a.perplexity for a in alone]))
    assert updated["statistics"]["sum"].shape == (6, 2)


def test_heads_restart_dead_codes_at_pieces_of_the_batch():
    quantizer = quantize.grouped(quantize.ema_vq(6, reset=0.5, parts=1), 2, shared=True)
    codebook = np.full((6, 2), 100.0, "f")
    codebook[0] = 0  # the only one that is chosen
    n = np.array([1] + [0.01] * 5, "f")
    params = {"statistics": {"n": jnp.asarray(n), "sum": codebook * n[:, None]}}

    @jit_once
    def run(z):
        made = quantizer.quantize(params, z, key=jax.random.key(0))
        updated = quantizer.update(params, made.statistics)
        return made, quantize.ema_codebook(updated["statistics"])

    made, codes = run(Z)
    assert (made.indices == 0).all()
    assert (made.statistics.drawn == 1).all()
    codes = np.asarray(codes)[1:]
    distances = np.abs(codes[:, None] - Z.reshape(1, -1, 2)).max(-1)
    assert distances.min(1).max() < 1e-4
    assert len(np.unique(codes, axis=0)) == 5


def test_composites_compose_both_ways():
    z = RNG.normal(size=(40, 6)).astype("f")
    piece = quantize.vq(4, init="data")
    inside = quantize.grouped(quantize.residual(piece, 3), 2)
    outside = quantize.residual(quantize.grouped(piece, 2), 3)

    @jit_once
    def both(z):
        results = []
        for quantizer in (inside, outside):
            params = quantizer.init(jax.random.key(0), z)
            made = quantizer.quantize(params, z)
            results.append((made, quantizer.lookup(params, made.indices)))
        return results

    for (made, codes), shape in zip(both(z), [(3, 2), (2, 3)], strict=True):
        assert made.indices.shape == (40, *shape)  # the outer axis is the last
        assert made.perplexity.shape == shape
        assert (made.perplexity > 1).all()
        near(codes, made.codes, 0)
        assert np.square(z - codes).mean() < 0.5 * np.square(z).mean()


def test_quantizers_without_parameters_stay_without():
    quantizer = quantize.grouped(quantize.fsq((3, 3)), 2)

    @jit_once
    def run(z):
        params = quantizer.init(jax.random.key(0), z)
        made = quantizer.quantize(params, z)
        updated = quantizer.update(params, made.statistics)
        return params, made, quantizer.lookup(updated, made.indices)

    params, made, codes = run(Z)
    assert jax.tree.leaves(params) == []
    assert made.indices.shape == (5, 3, 2)
    assert made.losses == {}
    near(codes, made.codes, 0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="groups must be at least 1; it is 0"):
        quantize.grouped(quantize.gumbel(4), 0)
    quantizer = quantize.grouped(quantize.gumbel(4), 3)
    with pytest.raises(ValueError, match="groups must divide D = 4; it is 3"):
        quantizer.init(jax.random.key(0), Z)
    with pytest.raises(ValueError, match=r"indices must be \[..., 3\], one for each"):
        quantizer.lookup({}, jnp.zeros((5, 2), int))
    with pytest.raises(ValueError, match=r"mask must be bool\[5, 3\]"):
        quantizer.quantize({}, np.ones((5, 3, 6), "f"), mask=np.ones((5, 3, 6), bool))
