"""Autoencoders assembled from parts: their losses are what they say."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from laws.registry import jit_once

from genlib import likelihood, losses, nn, quantize, train
from tests.train.toy import assert_close

X = np.random.default_rng(3).normal(size=(8, 5, 6)).astype(np.float32)


def linear(inputs, outputs):
    return lambda rngs: nnx.Linear(inputs, outputs, rngs=rngs)


def codes(quantizer=None, **settings):
    quantizer = quantize.vq(4) if quantizer is None else quantizer
    return nn.vqvae(linear(6, 2), linear(2, 6), quantizer, **settings)


def test_the_loss_is_the_sum_of_its_terms(key):
    absolute = lambda x_hat, x: jnp.abs(x_hat - x).mean((1, 2))
    model = codes(
        perceptual=absolute, perceptual_weight=3.0, weights={"commitment": 2.0}
    )
    params = model.init(key, X)
    made = jit_once(model.loss)(None, params, X)

    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"][None]
    z = np.asarray(dense("encoder", X.reshape(-1, 6)))
    book = np.asarray(params["quantizer"]["codebook"])
    nearest = np.square(z[:, None] - book[None]).sum(-1).argmin(1)
    x_hat = np.asarray(dense("decoder", book[nearest])).reshape(X.shape)
    error = np.square(z - book[nearest]).reshape(8, -1).mean(1)
    terms = {
        "reconstruction": np.square(x_hat - X).mean((1, 2)),
        "perceptual": np.abs(x_hat - X).mean((1, 2)),
        "commitment": error,
        "codebook": error,
    }
    for name, value in terms.items():
        np.testing.assert_allclose(made.terms[name], value, rtol=1e-5)
    total = terms["reconstruction"] + 3 * terms["perceptual"] + (2 + 1) * error
    np.testing.assert_allclose(made.loss, total, rtol=1e-5)
    np.testing.assert_allclose(made.x_hat, x_hat, atol=1e-5)
    indices = model.encode(params, X).indices
    np.testing.assert_array_equal(indices.ravel(), nearest)
    np.testing.assert_allclose(model.lookup(params, indices), x_hat, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_codebooks_learn_in_the_train_step(key, accumulate):
    model = codes(quantize.ema_vq(4, decay=0.5))

    def loss_fn(params, batch, key):
        made = model.loss(key, params, batch)
        return made.loss.sum(), made.loss.size, {}, made.statistics

    tx, trainable = optax.sgd(0.1), quantize.trainable
    state = train.init(key, model.init(key, X), tx, ema=False, trainable=trainable)
    step = train.make_step(
        loss_fn,
        tx,
        ema=None,
        accumulate=accumulate,
        trainable=trainable,
        absorb=model.update,
    )
    new, _ = jit_once(step)(state, X)
    own = model.encode(state.params, X).statistics
    expected = model.update(state.params, own)["quantizer"]
    assert_close(new.params["quantizer"], expected, 1e-5)
    moved = new.params["encoder"]["kernel"] - state.params["encoder"]["kernel"]
    assert float(jnp.abs(moved).max()) > 1e-4


STD = 0.5


def normal(**settings):
    log_likelihood = lambda x, raw: likelihood.gaussian(x, raw, math.log(STD))
    return nn.vae(linear(6, 4), linear(2, 6), log_likelihood, **settings)


def test_the_bound_of_a_linear_vae_is_a_closed_form(key):
    model, x = normal(beta=0.7), X[:, 0]
    params = model.init(key, x)
    keys = jax.random.split(key, 4000)
    made = jit_once(jax.vmap(lambda key: model.loss(key, params, x, 0.5)))(keys)

    mean, log_std = (np.asarray(m, np.float64) for m in model.posterior(params, x))
    weights, bias = (np.asarray(params["decoder"][k]) for k in ("kernel", "bias"))
    squares = np.square(x - mean @ weights - bias).sum(1)
    squares += (np.exp(2 * log_std) @ np.square(weights)).sum(1)
    nats = 0.5 * squares / STD**2 + 6 * (math.log(STD) + 0.5 * math.log(2 * math.pi))
    kl = 0.5 * (np.square(mean) + np.exp(2 * log_std) - 1 - 2 * log_std).sum(1)
    error = np.asarray(made.loss).std(0) / math.sqrt(len(keys))
    off = np.asarray(made.loss).mean(0) - (nats + 0.35 * kl)
    assert (np.abs(off) < 4 * error).all()
    np.testing.assert_allclose(made.terms["kl"][0], kl, rtol=1e-5)

    z = model.encode(params, x)
    np.testing.assert_allclose(z, mean, rtol=1e-5)
    joint = -0.5 * np.square(x - mean @ weights - bias).sum(1) / STD**2
    joint -= 0.5 * np.square(mean).sum(1) + 0.5 * 8 * math.log(2 * math.pi)
    joint -= 6 * math.log(STD)
    np.testing.assert_allclose(model.log_joint(params, z, x), joint, rtol=1e-5)


def test_free_bits_cost_nothing(key):
    model, x = normal(free_bits=100.0), X[:, 0]
    params = model.init(key, x)
    made = model.loss(key, params, x)
    np.testing.assert_allclose(
        made.loss, made.terms["reconstruction"] + 2 * 100.0, rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.bool, jnp.uint8])
def test_latents_of_bits_are_no_bits(key, dtype):
    model = nn.vae(linear(6, 4), linear(2, 6), likelihood.bernoulli)
    x = X[:, 0] > 0
    params, bits = model.init(key, x), jnp.asarray(x, dtype)
    z = model.encode(params, bits, key)
    np.testing.assert_array_equal(z, model.encode(params, x.astype(np.float32), key))
    for of in (
        lambda x: model.loss(key, params, x).loss,
        lambda x: model.log_joint(params, z, x),
    ):
        np.testing.assert_allclose(of(bits), of(x.astype(np.float32)), rtol=1e-6)


def gan(autoencoder, **settings):
    return nn.vqgan(autoencoder, linear(6, 1), adaptive="kernel", **settings)


@pytest.mark.parametrize("autoencoder", [codes(), normal()], ids=["codes", "normal"])
def test_both_gradients_of_the_last_layer_have_one_length(key, autoencoder):
    model, x = gan(autoencoder, weight=0.5), X[:, 0]
    params = model.init(key, x)

    @jit_once
    def gradients(params):
        def loss(kernel, adversarial):
            own = params["autoencoder"]
            decoder = own["decoder"] | {"kernel": kernel}
            changed = params | {"autoencoder": own | {"decoder": decoder}}
            return model.autoencoder_loss(key, changed, x, adversarial).loss.sum()

        kernel = params["autoencoder"]["decoder"]["kernel"]
        both, own = (jax.grad(loss)(kernel, factor) for factor in (1.0, 0.0))
        return jnp.linalg.norm(both - own), jnp.linalg.norm(own)

    adversarial, own = gradients(params)
    assert float(own) > 0.1
    assert float(adversarial) == pytest.approx(0.5 * float(own), rel=1e-3)


def test_a_discriminator_and_an_autoencoder_take_turns(key):
    x = X[:, 0]
    model = gan(
        codes(quantize.ema_vq(4)),
        regularizer=lambda key, d, x, x_hat: losses.r1(d, x, gamma=0.1),
    )

    def own(params, batch, key):
        made = model.autoencoder_loss(key, params, batch)
        return made.loss.sum(), made.loss.size, {}, made.statistics

    def judge(params, batch, key):
        made = model.discriminator_loss(key, params, batch)
        margin = (made.terms["real"] - made.terms["fake"]).sum()
        return made.loss.sum(), made.loss.size, {"margin": (margin, made.loss.size)}

    tx = {"autoencoder": optax.adam(1e-3), "discriminator": optax.adam(1e-2)}
    state = train.init(
        key, model.init(key, x), tx, ema=False, trainable=quantize.trainable
    )
    step = train.make_step(
        {"autoencoder": own, "discriminator": judge},
        tx,
        ema=None,
        trainable=quantize.trainable,
        absorb={"autoencoder": model.update},
    )
    step, margins = jit_once(step), []
    for _ in range(30):
        state, metrics = step(state, x)
        margins.append(float(metrics["discriminator/margin"]))
    assert margins[-1] > margins[0] + 0.1
    n = state.params["autoencoder"]["quantizer"]["statistics"]["n"]
    assert float(n.sum()) == pytest.approx(4 * 0.99**30 + 8 * (1 - 0.99**30), rel=1e-3)


def odd_quantizer():
    fsq = quantize.fsq((3, 3))

    def run(*args, **kwargs):
        return fsq.quantize(*args, **kwargs)._replace(losses={"odd": jnp.zeros((8, 5))})

    return fsq._replace(quantize=run)


WRONG = {
    r"decoder must return the shape \(8, 5, 6\)": nn.vqvae(
        linear(6, 2), linear(2, 3), quantize.fsq((3, 3))
    ),
    "reconstruction must return one number": codes(
        reconstruction=lambda x_hat, x: jnp.square(x_hat - x).mean()
    ),
    "weights must have an entry 'odd'": codes(odd_quantizer()),
    r"encoder must return \[B, ..., 2 D\]": nn.vae(
        linear(6, 3), linear(1, 6), lambda x, raw: raw.sum((1, 2))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_refused(key, message):
    model = WRONG[message]
    params = model.init(key, X)
    with pytest.raises(ValueError, match=message):
        model.loss(key, params, X)


def test_the_last_layer_must_be_one_of_the_decoder(key):
    model = nn.vqgan(codes(), linear(6, 1))
    params = model.init(key, X)
    with pytest.raises(ValueError, match="adaptive must be a parameter of the decoder"):
        model.autoencoder_loss(key, params, X)
