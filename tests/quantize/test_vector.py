"""Vector quantisation, with trained codes and with moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once, jit_optimized
from sklearn.datasets import load_digits

from genlib import quantize

CODES = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
Z = np.array([[0.1, 0.1], [0.9, -0.2], [1.2, 0.1], [0, 1.5], [0.2, 2.2], [-0.1, 0]])
INDICES = [0, 1, 1, 2, 2, 0]
MAKERS = {"vq": quantize.vq, "ema_vq": quantize.ema_vq}


def params_of(name, codes):
    if name == "vq":
        return {"codebook": jnp.asarray(codes)}
    return {"statistics": quantize.init_ema(codes)}


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_of_known_numbers(name, x64):
    layer = MAKERS[name](4)
    params = params_of(name, CODES)
    out = jit_once(layer.quantize)(params, jnp.asarray(Z))
    assert out.indices.tolist() == INDICES
    np.testing.assert_allclose(out.codes, CODES[INDICES], atol=1e-15)
    for loss in out.losses.values():
        np.testing.assert_allclose(loss, np.square(Z - CODES[INDICES]).mean(1))
        np.testing.assert_allclose(loss.mean(), 0.03833333, atol=5e-9)
    np.testing.assert_allclose(out.perplexity, 3.0, rtol=1e-6)
    assert quantize.usage(quantize.histogram(out.indices, 4)) == 0.75
    assert sorted(out.losses) == ["codebook", "commitment"][name == "ema_vq" :]


def test_codes_are_those_from_before_the_update():
    """An average that has moved to its vectors first understates their distance."""
    layer = quantize.ema_vq(4, decay=0.8)
    params = params_of("ema_vq", jnp.float32(CODES))

    @jit_once
    def step(params, z):
        out = layer.quantize(params, z)
        return layer.update(params, out.statistics), out

    moved, out = step(params, jnp.float32(Z))
    np.testing.assert_allclose(out.codes, CODES[INDICES], atol=1e-6)
    _, after = step(moved, jnp.float32(Z))
    np.testing.assert_allclose(after.codes[0], [0, 0.0166667], atol=1e-6)
    assert after.losses["commitment"].mean() < out.losses["commitment"].mean() - 1e-3


@pytest.mark.parametrize("name", MAKERS)
def test_reconstruction_trains_the_vectors_and_the_losses_their_own_side(name):
    layer = MAKERS[name](4)
    z, target = jnp.float32(Z), jnp.array([1.0, 2.0])

    def parts(params, z):
        out = layer.quantize(params, z)
        losses = {name: loss.sum() for name, loss in out.losses.items()}
        return {"reconstruction": (out.codes * target[None]).sum()} | losses

    params = params_of(name, jnp.float32(CODES))
    gradients = jit_once(jax.jacrev(parts, (0, 1)))(params, z)
    to_params = {loss: both[0] for loss, both in gradients.items()}
    to_z = {loss: both[1] for loss, both in gradients.items()}
    np.testing.assert_array_equal(to_z["reconstruction"], np.tile([1, 2], (6, 1)))
    np.testing.assert_allclose(to_z["commitment"], Z - CODES[INDICES], atol=1e-6)
    for loss in ("reconstruction", "commitment"):
        for leaf in jax.tree.leaves(to_params[loss]):
            np.testing.assert_array_equal(leaf, 0)
    if name == "vq":
        want = np.zeros((4, 2))
        np.add.at(want, INDICES, CODES[INDICES] - Z)
        np.testing.assert_array_equal(to_z["codebook"], 0)
        np.testing.assert_allclose(to_params["codebook"]["codebook"], want, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_nan_and_ties(name):
    layer = MAKERS[name](4)
    z = jnp.array([[np.nan, 1.0], [3.0, 4.0], [0.0, 0.0]])
    params = params_of(name, jnp.array([[2.0, 2], [3, 4], [3, 4], [1, 1]]))
    out = jit_once(layer.quantize)(params, z)
    assert 0 <= out.indices[0] < 4
    assert out.indices[1:].tolist() == [1, 3]
    assert np.isfinite(out.losses["commitment"][1:]).all()


@pytest.mark.parametrize("name", MAKERS)
def test_cosine_has_unit_vectors_everywhere(name, key):
    """In lookup, losses, codes and statistics, not in some of them."""
    layer = MAKERS[name](3, metric="cosine", init="normal")
    z = np.array([[3.0, 4.0], [0.0, -2.0], [50.0, 0.1], [0.0, 0.0]], "f")

    @jit_once
    def run(key, z):
        params = layer.init(key, z)
        if name == "vq":  # lengths of trained codes do not matter
            params = {"codebook": params["codebook"] * jnp.array([[9.0], [1], [1e-2]])}

        def loss(params, z):
            out = layer.quantize(params, z)
            return (out.codes[:, 0] + sum(out.losses.values())).sum(), out

        gradient, out = jax.grad(loss, (0, 1), has_aux=True)(params, z)
        moved = layer.update(params, out.statistics)
        return gradient, out, [layer.lookup(p, jnp.arange(3)) for p in (params, moved)]

    gradient, out, (codes, moved) = jax.tree.map(np.asarray, run(key, z))
    for some in (codes, moved):
        np.testing.assert_allclose(np.linalg.norm(some, axis=-1), 1, rtol=1e-6)
    units = z[:3] / np.linalg.norm(z[:3], axis=-1, keepdims=True)
    assert out.indices[:3].tolist() == (units @ codes.T).argmax(-1).tolist()
    np.testing.assert_array_equal(out.codes, codes[out.indices])
    want = np.square(units - codes[out.indices[:3]]).mean(-1)
    np.testing.assert_allclose(out.losses["commitment"][:3], want, atol=1e-6)
    if name == "ema_vq":
        total = np.zeros((3, 2))
        np.add.at(total, out.indices[:3], units)
        np.testing.assert_allclose(out.statistics.sum, total, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", MAKERS)
def test_dead_codes_come_back_only_with_a_key(name, key):
    layer = MAKERS[name](8, init="uniform", reset=0.5)
    z = np.random.default_rng(0).normal(size=(64, 2)).astype("f") + 5

    @jit_once
    def run(key, z):
        def step(params, key):
            out = layer.quantize(params, z, key=key)
            return layer.update(params, out.statistics), ()

        start = layer.init(key, z)
        without, _ = jax.lax.scan(lambda p, _: step(p, None), start, length=50)
        reset, _ = jax.lax.scan(step, start, jax.random.split(key, 200))
        return [
            (layer.lookup(p, jnp.arange(8)), layer.quantize(p, z).indices)
            for p in (start, without, reset)
        ]

    (start, chosen), (without, _), (reset, in_the_end) = run(key, z)
    unused = np.setdiff1d(np.arange(8), chosen)
    assert len(unused) >= 5
    np.testing.assert_allclose(without[unused], start[unused], rtol=1e-4)
    assert set(np.asarray(in_the_end).tolist()) == set(range(8))
    # `vq` moves codes to vectors of the batch themselves.
    near = np.abs(np.asarray(reset)[unused, None] - z).max(-1).min(1)
    assert near.max() < (1e-5 if name == "vq" else 0.5)


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_without_vectors_changes_nothing(name, key):
    layer = MAKERS[name](4, init="normal", reset=0.9)

    @jit_once
    def run(key, z):
        params = layer.init(key, z)
        out = layer.quantize(params, z, mask=jnp.zeros(5, bool), key=key)
        return params, out, layer.update(params, out.statistics)

    params, out, moved = run(key, jnp.full((5, 3), jnp.nan))
    assert out.indices.tolist() == [-1] * 5
    for leaf in (out.codes, out.perplexity, *out.losses.values()):
        np.testing.assert_array_equal(leaf, 0)
    jax.tree.map(np.testing.assert_array_equal, moved, params)


@pytest.mark.parametrize("name", MAKERS)
def test_host_arrays_have_the_width_of_the_session(name, key):
    z, mask = np.arange(6.0).reshape(3, 2), [True, True, False]
    layer = MAKERS[name](2, init="normal")

    @jit_once
    def run(key):
        params = layer.init(key, z, mask=mask)
        return layer.quantize(params, z, mask=mask)

    out = run(key)
    assert out.codes.dtype == jnp.float32
    assert out.indices[2] == -1
    np.testing.assert_array_equal(out.losses["commitment"][2], 0)


def test_starts(key):
    z = np.random.default_rng(0).normal(size=(4, 50, 3)).astype("f")

    @jit_once
    def run(key, z):
        start = lambda init, **rest: quantize.vq(8, init=init, **rest).init(key, z)
        starts = {init: start(init) for init in ("uniform", "normal")}
        starts |= {"data": start("data", reset=0.1), "kmeans": start("kmeans", steps=2)}
        unit = start("normal", metric="cosine")
        return starts | {"unit": unit, "fit": quantize.kmeans(key, z, 8, steps=2)}

    starts = jax.tree.map(np.asarray, run(key, z))
    rows = np.abs(starts["data"]["codebook"][:, None] - z.reshape(1, -1, 3)).max(-1)
    assert (rows == 0).any(1).all()
    np.testing.assert_array_equal(starts["data"]["statistics"]["n"], np.ones(8))
    assert 0.08 < np.abs(starts["uniform"]["codebook"]).max() <= 1 / 8
    assert 0.7 < starts["normal"]["codebook"].std() < 1.3
    np.testing.assert_array_equal(starts["kmeans"]["codebook"], starts["fit"])
    lengths = np.linalg.norm(starts["unit"]["codebook"], axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_digits(key):
    """k-means of scikit-learn has 0.01036 and 232, other libraries 0.42 of usage."""
    images = load_digits().images.astype("f") / 16
    patches = images.reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16)
    layer = quantize.ema_vq(256)

    @jit_optimized
    def train(key, patches):
        start = layer.init(key, patches)

        def step(params, key):
            rows = jax.random.randint(key, (1024,), 0, len(patches))
            out = layer.quantize(params, patches[rows])
            return layer.update(params, out.statistics), ()

        params, _ = jax.lax.scan(step, start, jax.random.split(key, 300))
        outs = [layer.quantize(p, patches) for p in (start, params)]
        mse = [jnp.square(out.codes - patches).mean() for out in outs]
        return mse, outs[1].indices, outs[1].perplexity

    mse, indices, perplexity = train(key, patches)
    assert mse[0] < 0.0112
    assert mse[1] <= 0.0110
    assert quantize.usage(quantize.histogram(indices, 256)) >= 0.99
    assert perplexity >= 225


def test_what_does_not_fit_is_refused(key):
    z = jnp.ones((6, 2))
    cases = [
        (dict(size=0), "size must be at least 1; it is 0"),
        (dict(metric="manhattan"), "metric must be one of .*'manhattan'"),
        (dict(init="zeros"), "init must be one of .*'zeros'"),
        (dict(steps=-1), "steps must not be negative"),
        (dict(reset=0.0), "reset must be above 0 and below 1"),
        (dict(parts=0), "parts must be at least 1"),
    ]
    for make in MAKERS.values():
        for settings, message in cases:
            with pytest.raises(ValueError, match=message):
                make(**({"size": 4} | settings))
        layer = make(4)
        with pytest.raises(ValueError, match="z must have at least size = 4 vectors"):
            layer.init(key, z[:3])
        params = layer.init(key, z)
        with pytest.raises(ValueError, match="with D = 2, the width of the codes"):
            layer.quantize(params, jnp.ones((6, 3)))
        with pytest.raises(ValueError, match=r"mask must be bool\[6\]"):
            layer.quantize(params, z, mask=jnp.ones((6, 2), bool))
        with pytest.raises(ValueError, match="one is 4"):
            layer.lookup(params, jnp.array([4]))
    with pytest.raises(ValueError, match="decay must be from 0 to 1"):
        quantize.ema_vq(4, decay=1.5)
    with pytest.raises(ValueError, match="eps must be positive"):
        quantize.ema_vq(4, eps=0.0)
