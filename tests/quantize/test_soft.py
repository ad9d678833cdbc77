"""Gumbel-softmax, SimVQ and projections: closed forms, and small trainings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws.registry import jit_once

from genlib import quantize

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(32, 4)).astype("f")


def near(got, want, bound=1e-5):
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound)


def soft(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_gumbel_kl_to_the_uniform():
    quantizer = quantize.gumbel(3)
    params = {"weights": jnp.eye(3), "codebook": jnp.eye(3)}
    z = np.log([[0.7, 0.2, 0.1], [0.2, 0.2, 0.2]]).astype("f")
    made = quantizer.quantize(params, z)
    near(made.losses["kl"], [0.296794, 0])
    assert made.indices.tolist() == [0, 0]  # ties go to the lowest


def test_gumbel_draws_codes_as_often_as_they_are_likely():
    logits, codebook = np.log([0.7, 0.2, 0.1]), RNG.normal(size=(3, 3)).astype("f")
    params = {"weights": jnp.eye(3), "codebook": jnp.asarray(codebook)}
    z = jnp.broadcast_to(jnp.asarray(logits, "float32"), (20000, 3))
    draw = lambda hard: (
        lambda t: quantize.gumbel(3, temperature=t, hard=hard).quantize(
            params, z, key=jax.random.key(0)
        )
    )

    @jit_once
    def run(t):
        return draw(True)(t), draw(False)(t), draw(False)(t / 1e4)

    hard, mixed, cold = run(0.5)
    counts = np.bincount(hard.indices, minlength=3)
    near(counts / 20000, [0.7, 0.2, 0.1], 0.013)  # 4 standard errors
    near(hard.codes, codebook[np.asarray(hard.indices)], 0)
    # The same noise, mixed codes, which low temperatures make single again.
    np.testing.assert_array_equal(mixed.indices, hard.indices)
    assert np.abs(mixed.codes - hard.codes).max(-1).mean() > 0.1
    assert (np.abs(cold.codes - hard.codes).max(-1) < 1e-3).mean() > 0.99
    near(hard.perplexity, np.exp(-np.sum(counts / 2e4 * np.log(counts / 2e4))))


def test_gumbel_gradients_are_those_of_the_softmax(x64):
    rng = np.random.default_rng(1)
    z, t = rng.normal(size=(5, 4)), 0.7
    params = {"weights": rng.normal(size=(4, 6)), "codebook": rng.normal(size=(6, 4))}
    quantizer, slope = quantize.gumbel(6, temperature=t), rng.normal(size=(5, 4))
    loss = lambda params, z: (quantizer.quantize(params, z).codes * slope).sum()
    of_params, of_z = jit_once(jax.grad(loss, (0, 1)))(params, z)
    logits = z @ params["weights"]
    y, picked = soft(logits / t), np.eye(6)[logits.argmax(-1)]
    upstream = slope @ params["codebook"].T
    of_logits = y * (upstream - (y * upstream).sum(-1, keepdims=True)) / t
    near(of_z, of_logits @ params["weights"].T, 1e-12)
    near(of_params["weights"], z.T @ of_logits, 1e-12)
    near(of_params["codebook"], picked.T @ slope, 1e-12)


def test_gumbel_is_finite_where_logits_overflow():
    quantizer = quantize.gumbel(6, temperature=1e-3)
    params = jit_once(quantizer.init)(jax.random.key(0), Z)
    largest = float(jnp.finfo(jnp.bfloat16).max)

    def loss(params, z, key):
        made = quantizer.quantize(params, z, key=key)
        return (made.codes.astype("float32").sum() + made.losses["kl"].sum()), made

    run = jit_once(jax.grad(loss, (0, 1), has_aux=True))
    for z in (jnp.sign(Z) * largest, 0 * Z):
        grads, made = run(params, jnp.asarray(z, jnp.bfloat16), jax.random.key(1))
        assert made.codes.dtype == jnp.bfloat16
        assert made.losses["kl"].dtype == jnp.float32
        for leaf in jax.tree.leaves((grads, made.codes, made.losses)):
            assert np.isfinite(np.asarray(leaf, "f")).all()
    near(made.losses["kl"], 0)


def test_schedules_of_the_temperature_trace_once():
    traces = []

    @jax.jit
    def run(t, z):
        traces.append(t)
        quantizer = quantize.gumbel(6, temperature=t, hard=False)
        params = quantizer.init(jax.random.key(0), z)
        return quantizer.quantize(params, z, key=jax.random.key(1)).codes

    assert np.abs(run(1.0, Z) - run(0.1, Z)).max() > 0.1
    assert len(traces) == 1


def test_simvq_moves_every_code_and_no_basis():
    quantizer = quantize.simvq(16)
    params = jit_once(quantizer.init)(jax.random.key(0), 3 * Z)
    near(params["projection"], 3 * np.sqrt(np.square(Z).mean()) * np.eye(4))
    loss = lambda params: quantizer.quantize(params, Z[:1]).losses["codebook"].sum()
    grads = jit_once(jax.grad(loss))(params)
    assert not grads["frozen"]["basis"].any()
    assert not quantize.trainable("quantizer/frozen/basis")
    assert quantize.trainable("quantizer/projection")
    moved = params | {"projection": params["projection"] - 0.1 * grads["projection"]}
    codes = [quantizer.lookup(each, jnp.arange(16)) for each in (params, moved)]
    assert np.abs(codes[1] - codes[0]).max(-1).min() > 1e-4  # by one vector


def test_simvq_starts_in_the_scale_of_what_is_not_masked():
    mask = np.arange(32) < 20
    z = np.where(mask[:, None], np.full((32, 4), 2), np.nan).astype("f")
    init = jit_once(
        lambda z, mask: quantize.simvq(4).init(jax.random.key(0), z, mask=mask)
    )
    near(init(z, mask)["projection"], 2 * np.eye(4))
    near(init(z, np.zeros(32, bool))["projection"], np.eye(4))  # nothing to go by


def test_simvq_trains_stably_with_both_estimators_and_uses_all_codes():
    x = RNG.normal(size=(512, 8)).astype("f") @ RNG.normal(size=(8, 8)).astype("f")
    x = x / x.std()
    encoder = RNG.normal(size=(8, 4)).astype("f") / 3

    def train(quantizer):
        def loss_fn(params, x):
            made = quantizer.quantize(params["q"], x @ params["encoder"])
            error = jnp.square(x - made.codes @ params["decoder"]).mean(-1)
            losses = made.losses["codebook"] + 0.25 * made.losses["commitment"]
            return (error + losses).mean(), (error.mean(), made.indices)

        def step(carry, _):
            params, state = carry
            (loss, (error, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                params, x
            )
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), (loss, error)

        tx = optax.adam(1e-2)
        q = quantizer.init(jax.random.key(0), x @ encoder)
        params = {"q": q, "encoder": jnp.asarray(encoder), "decoder": encoder.T * 2.0}
        carry, traces = jax.lax.scan(step, (params, tx.init(params)), length=300)
        indices = loss_fn(carry[0], x)[1][1]
        return traces, quantize.usage(quantize.histogram(indices, 32))

    quantizers = [
        quantize.simvq(32),
        quantize.simvq(32, estimator=quantize.rotate),
    ]
    results = jit_once(lambda: [train(each) for each in quantizers])()
    for (losses, errors), used in results:
        assert losses.max() < 1.5 * losses[0]
        assert errors[-1] < 0.6 * errors[0]
        assert used >= 0.95


def test_simvq_follows_vectors_that_leave_codes_of_vq_behind():
    z, tx = RNG.normal(size=(1024, 2)).astype("f"), optax.adam(0.01)

    def fit(quantizer):
        # They gather where few of the codes are that were fitted to them.
        make = lambda params: quantizer.quantize(params, 0.1 * z)
        loss_fn = lambda params: make(params).losses["codebook"].mean()

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params), state)
            return (optax.apply_updates(params, updates), state), None

        params = quantizer.init(jax.random.key(0), z)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=300)
        used = quantize.usage(quantize.histogram(make(params).indices, 32))
        return used, loss_fn(params)

    quantizers = [quantize.simvq(32), quantize.vq(32)]
    both = lambda: [fit(each) for each in quantizers]
    (used, loss), (few, higher) = jit_once(both)()
    assert used >= 0.9
    assert few < 0.25
    assert loss < 0.5 * higher


def test_projections_as_wide_as_the_vectors_change_nothing():
    inner = quantize.vq(8, init="data")
    quantizer = quantize.projected(inner, 4)

    @jit_once
    def run(z):
        params = quantizer.init(jax.random.key(0), z)
        rotated = params["inner"]["codebook"] @ params["up"]
        made = quantizer.quantize(params, z)
        plain = inner.quantize({"codebook": rotated}, z)
        return params, made, plain, quantizer.lookup(params, jnp.full((3,), -1))

    params, made, plain, none = run(Z)
    near(params["down"] @ params["up"], np.eye(4))
    np.testing.assert_array_equal(made.indices, plain.indices)
    near(made.codes, plain.codes)
    near(made.losses["commitment"], plain.losses["commitment"])
    assert not none.any()


@pytest.mark.parametrize("width", [2, 6])
def test_projections_compare_in_the_space_of_codes(width):
    quantizer = quantize.projected(quantize.ema_vq(8, init="data"), width)

    @jit_once
    def run(z):
        params = quantizer.init(jax.random.key(0), z)
        made = quantizer.quantize(params, z)
        low = quantize.ema_codebook(params["inner"]["statistics"])
        return params, low, made, quantizer.update(params, made.statistics)

    params, low, made, updated = run(Z)
    low = np.asarray(low)
    down, up = np.asarray(params["down"]), np.asarray(params["up"])
    assert (down.shape, up.shape) == ((4, width), (width, 4))
    gram = down.T @ down if width < 4 else down @ down.T
    near(gram, np.eye(min(width, 4)))
    distances = np.square((Z @ down)[:, None] - low).mean(-1)
    np.testing.assert_array_equal(made.indices, distances.argmin(1))
    near(made.losses["commitment"], distances.min(1))
    near(made.codes, low[np.asarray(made.indices)] @ up)
    assert np.abs(updated["inner"]["statistics"]["n"] - 1).max() > 0
    np.testing.assert_array_equal(updated["up"], up)


def test_wrong_arguments_are_named():
    for make, words in [
        (lambda: quantize.gumbel(0), "size must be at least 1; it is 0"),
        (lambda: quantize.gumbel(4, temperature=0.0), "temperature must be positive"),
        (lambda: quantize.simvq(0), "size must be at least 1; it is 0"),
        (lambda: quantize.projected(quantize.vq(4), 0), "width must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()
    narrow = np.ones((2, 3), "f")
    soft = quantize.gumbel(4)
    quantizers = [soft, quantize.simvq(4), quantize.projected(soft, 2)]
    init = jit_once(lambda z: [each.init(jax.random.key(0), z) for each in quantizers])
    for quantizer, params in zip(quantizers, init(Z), strict=True):
        with pytest.raises(ValueError, match=r"with D = 4, the width .* is \[2, 3\]"):
            quantizer.quantize(params, narrow)
        with pytest.raises(ValueError, match=r"mask must be bool\[32\]"):
            quantizer.quantize(params, Z, mask=np.ones((32, 1), bool))
        with pytest.raises(ValueError, match="one is 4"):
            quantizer.lookup(params, jnp.array([4]))
    with pytest.raises(ValueError, match="typed key"):
        soft.quantize({"weights": jnp.ones((4, 4))}, Z, key=7)
