"""Ladder VAEs, against closed forms and blocks run one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from laws.registry import jit_once

from genlib import nn
from tests.nn.oracles import gelu, linear

double = dict(dtype=jnp.float64, param_dtype=jnp.float64)
SIGMA = 0.5


def gaussian(x, raw):
    squares = jnp.square((raw - x) / SIGMA) + np.log(2 * np.pi * SIGMA**2)
    return -0.5 * squares.sum((1, 2, 3))


def filled(init, *args, scale=0.3):
    """Return parameters as `init` would, with every number random."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype),
        jax.eval_shape(init, jax.random.key(0), *args),
    )


class LinearGaussian:
    """Two latents z_l ~ N(m_l, s_l^2), x ~ N(mu + sum_l z_l p_l, SIGMA^2), p_1 p_2 = 0.

    The posteriors do not depend on each other, so constants are exact for one x.
    """

    columns = np.array([[1.2, -0.4, 0.8], [0.5, 1.5, 0.0]])
    mean, std = np.array([0.3, -0.7]), np.array([0.6, 1.4])
    mu = np.array([0.2, -0.1, 0.4])
    x = np.array([0.9, -1.1, 0.3])

    def posterior(self, x):
        precision = self.std**-2.0 + (self.columns**2).sum(1) / SIGMA**2
        shift = self.mean / self.std**2 + self.columns @ (x - self.mu) / SIGMA**2
        return shift / precision, precision**-0.5

    def log_prob(self, x):
        covariance = (self.columns.T * self.std**2) @ self.columns
        covariance += SIGMA**2 * np.eye(3)
        delta = x - self.mu - self.mean @ self.columns
        distance = delta @ np.linalg.solve(covariance, delta)
        return -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])

    def params(self, model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 1, 3)))
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
        level = params["levels"]["0"]
        blocks = level["descent"]
        blocks["project"]["kernel"][:, 0] = self.columns
        moments = np.stack([self.mean, np.log(self.std)], 1)
        offset = np.array([[0.1, 0.0, -0.3], [0.0, 0.5, 0.2]])  # of h, beside p(z)
        blocks["prior"]["output"]["bias"][:] = np.concatenate([moments, offset], 1)
        own, std = self.posterior(self.x)
        blocks["posterior"]["output"]["bias"][:] = np.stack([own, np.log(std)], 1)
        level["start"][:] = self.mu - offset.sum(0)
        params["output"]["kernel"][:] = np.eye(3)
        return jax.tree.map(jnp.asarray, params)


def log_normal(z, mean, std):
    squares = ((z - mean) / std) ** 2 + np.log(2 * np.pi * std**2)
    return -0.5 * squares.sum(1)


def test_bound_is_exact_for_the_exact_posterior(x64, key):
    make = functools.partial(
        nn.ladder_vae, (1, 1, 3), 3, gaussian, blocks=(2,), latent=1, **double
    )
    fixture, model = LinearGaussian(), make()
    params = fixture.params(model)
    count = 2000
    other = fixture.x + np.array([0.6, 0.4, -0.8])
    x = jnp.asarray(np.stack([fixture.x] * count + [other] * count))[:, None, None]

    @jit_once
    def loss(params, beta, free_bits, annealing):
        weighed = make(beta=beta, free_bits=free_bits)
        return weighed.loss(key, params, x, annealing)

    sample = jit_once(lambda t: model.sample(key, params, count, temperature=t))
    result = loss(params, 1.0, 0.0, 1.0)

    # ln p(x | z) + ln p(z) - ln q(z) is ln p(x) for every z that is drawn.
    own, std = fixture.posterior(fixture.x)
    raw = np.asarray(result.x_hat)[:, 0, 0]
    z = (raw - fixture.mu) @ fixture.columns.T / (fixture.columns**2).sum(1)
    ratio = log_normal(z, fixture.mean, fixture.std) - log_normal(z, own, std)
    exact = fixture.log_prob(fixture.x)
    weights = ratio - result.terms["reconstruction"]
    np.testing.assert_allclose(weights[:count], exact, rtol=1e-12)
    nats = np.log(fixture.std / std) + 0.5 * (
        (std**2 + (own - fixture.mean) ** 2) / fixture.std**2 - 1
    )
    np.testing.assert_allclose(result.terms["kl"], nats.sum(), rtol=1e-12)

    # The bound has their mean; elsewhere it is lower by KL(q || exact posterior).
    true, same = fixture.posterior(other)
    np.testing.assert_allclose(std, same)
    gap = 0.5 * (((own - true) / std) ** 2).sum()
    for draws, bound in (
        (-result.loss[:count], exact),
        (-result.loss[count:], fixture.log_prob(other) - gap),
    ):
        error = np.std(draws) / np.sqrt(count)
        assert abs(draws.mean() - bound) < 4 * error
        assert gap > 12 * error  # so that the test can tell

    groups = np.stack([result.terms[f"kl/{i}"] for i in range(2)], 1)
    np.testing.assert_allclose(groups.sum(1), result.terms["kl"], rtol=1e-12)
    assert groups[0].min() < 0.7 < groups[0].max()
    total = result.terms["reconstruction"] + 0.2 * np.maximum(groups, 0.7).sum(1)
    weighted = loss(params, 0.5, 0.7, 0.4).loss
    np.testing.assert_allclose(weighted, total, rtol=1e-12)

    mean = fixture.mu + fixture.mean @ fixture.columns
    still, samples = (np.asarray(sample(t))[:, 0, 0] for t in (0.0, 1.0))
    np.testing.assert_allclose(still, np.stack([mean] * count), rtol=1e-12)
    spread = np.sqrt((fixture.std**2) @ fixture.columns**2)
    assert (abs(samples.mean(0) - mean) < 4 * spread / np.sqrt(count)).all()
    np.testing.assert_allclose(samples.std(0), spread, rtol=4 / np.sqrt(2 * count))
    means = model.reconstruct(params, x[:1])
    np.testing.assert_allclose(means[0, 0, 0], fixture.mu + own @ fixture.columns)


def bottleneck(p, h):
    """Four convolutions of one pixel."""
    for name in ("input", "conv_1", "conv_2", "output"):
        layer = p[name]
        h = linear({**layer, "kernel": np.squeeze(layer["kernel"])}, gelu(h))
    return h


def test_block_is_its_formulas(x64):
    features, latent, context = 4, 2, 3
    init, apply = nn.lazy(
        lambda rngs: nn.LadderBlock(
            features,
            latent,
            context=context,
            hidden=2,
            kernel_size=1,
            rngs=rngs,
            **double,
        )
    )
    params = filled(init, scale=0.6)
    rng = np.random.default_rng(1)
    h = rng.standard_normal((2, 3, 2, features))
    given = rng.standard_normal((2, 3, 2, context))

    @jit_once
    def everything(h, given):
        return apply(params, h, given), apply(params, h)

    p = jax.tree.map(np.asarray, params)
    mean, log_std, more = np.split(bottleneck(p["prior"], h), [2, 4], -1)
    both = bottleneck(p["posterior"], np.concatenate([h, given], -1))
    own_mean, own_log_std = np.split(both, 2, -1)
    for (y, kl), z in zip(everything(h, given), (own_mean, mean), strict=True):
        path = h + more + linear(p["project"], z)
        np.testing.assert_allclose(
            y, path + bottleneck(p["residual"], path), rtol=1e-10
        )
        ratio, shift = np.exp(own_log_std - log_std), own_mean - mean
        nats = 0.5 * (ratio**2 + (shift / np.exp(log_std)) ** 2 - 1) - np.log(ratio)
        nats = nats.sum((1, 2, 3)) if z is own_mean else np.zeros(2)
        np.testing.assert_allclose(kl, nats, rtol=1e-10)


def one_by_one(params, x, keys):
    """Run every block alone, from the coarsest; two levels of one and two blocks."""
    conv = nn.lazy(lambda rngs: nn.LadderBlock(4, 2, depth=3, rngs=rngs, **double))[1]
    single = nn.lazy(
        lambda rngs: nn.LadderBlock(4, 2, kernel_size=1, depth=3, rngs=rngs, **double)
    )[1]
    row = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)
    fine, coarse = params["levels"]["0"], params["levels"]["1"]
    same = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def residual(p, h):
        y = h
        for name in ("input", "conv_1", "conv_2", "output"):
            kernel = p[name]["kernel"]
            kernel = kernel[None, None] if kernel.ndim == 2 else kernel
            y = same(jax.nn.gelu(y), kernel) + p[name]["bias"][None, None, None]
        return h + y

    up = same(x, params["input"]["kernel"]) + params["input"]["bias"][None, None, None]
    up = residual(row(fine["ascent"]["bottleneck"], 0), up)
    top = up.reshape(2, 2, 2, 2, 2, 4).mean((2, 4))
    for i in range(2):
        top = residual(row(coarse["ascent"]["bottleneck"], i), top)
    h = jnp.broadcast_to(coarse["start"], top.shape)
    kls = []
    fold = lambda i: jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    for i in range(2):
        h, kl = single(row(coarse["descent"], i), h, top, fold(i))
        kls.append(kl)
    h = fine["start"][None] + h.repeat(2, 1).repeat(2, 2)
    h, kl = conv(row(fine["descent"], 0), h, up, fold(2))
    raw = h @ params["output"]["kernel"] + params["output"]["bias"][None, None, None]
    return raw, jnp.stack([*kls, kl], 1)


def test_model_is_its_blocks_one_by_one(x64, key):
    make = functools.partial(nn.ladder_vae, (4, 4, 1), 4, gaussian, **double)
    model = make(blocks=(1, 2), latent=2, hidden=1, remat=True)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 4, 4, 1)))
    params = filled(model.init, x)

    @jit_once
    def everything(params):
        def loss(params):
            result = model.loss(jax.random.split(key), params, x)
            kl = jnp.stack([result.terms[f"kl/{i}"] for i in range(3)], 1)
            return result.loss.sum(), (result.x_hat, kl)

        (total, own), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return total, own, gradient, one_by_one(params, x, jax.random.split(key))

    total, (raw, kl), gradient, expected = everything(params)
    np.testing.assert_allclose(raw, expected[0], rtol=1e-9)
    np.testing.assert_allclose(kl, expected[1], rtol=1e-9)
    np.testing.assert_allclose(total, kl.sum() - gaussian(x, raw).sum(), rtol=1e-12)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        blocks = leaf if "descent" in str(path) else leaf[None]
        assert all(block.any() for block in blocks), path


def test_new_model_knows_nothing(key):
    model = nn.ladder_vae((1, 2, 1), 4, gaussian, blocks=(1,), latent=2)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((3, 1, 2, 1)), jnp.float32)
    result = jit_once(lambda key: model.loss(key, model.init(key, x), x))(key)
    assert not any(result.terms[name].any() for name in ("kl", "kl/0"))
    assert not result.x_hat.any()
    np.testing.assert_allclose(result.loss, -gaussian(jnp.zeros(x.shape), x), rtol=1e-6)


def test_program_does_not_grow_with_blocks_and_keeps_dtypes():
    def traced(blocks):
        sizes = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, out_channels=2)
        likelihood = lambda x, raw: gaussian(x.astype(raw.dtype), raw[..., :1])
        model = nn.ladder_vae((4, 2, 1), 4, likelihood, blocks=blocks, **sizes)
        x, key = jnp.zeros((3, 4, 2, 1), jnp.bfloat16), jax.random.key(0)
        params = jax.eval_shape(model.init, key, x)
        jaxpr, result = jax.make_jaxpr(model.loss, return_shape=True)(key, params, x)
        sample = jax.eval_shape(lambda params: model.sample(key, params, 5), params)
        return len(jaxpr.eqns), params, result, sample

    count, params, result, sample = traced((2,))
    # A slice and a reshape for the term of each of four more groups.
    assert traced((6,))[0] - count == 2 * 4
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert (result.loss.shape, result.loss.dtype) == ((3,), jnp.float32)
    assert {term.dtype.name for term in result.terms.values()} == {"float32"}
    assert (sample.shape, sample.dtype) == ((5, 4, 2, 2), jnp.float32)


def test_refusals(key):
    make = functools.partial(nn.ladder_vae, log_likelihood=gaussian)
    model = make((4, 4, 1), 4, blocks=(1, 1))
    wrong = make((4, 4, 1), 4, blocks=(1,), log_likelihood=lambda x, raw: raw.sum())
    x = jnp.zeros((2, 4, 4, 1))
    params = functools.partial(jax.eval_shape, model.init, key)
    table = {
        r"shape \(4, 3, 1\) be divisible by 2.*\(1, 1\)": lambda: make(
            (4, 3, 1), 4, blocks=(1, 1)
        ),
        r"blocks must name at least one level": lambda: make((4, 4, 1), 4, blocks=()),
        r"blocks\[1\] must be positive, got 0": lambda: make(
            (4, 4, 1), 4, blocks=(1, 0)
        ),
        r"latent must be positive, got 0": lambda: make(
            (4, 4, 1), 4, blocks=(1,), latent=0
        ),
        r"remat must be": lambda: make((4, 4, 1), 4, blocks=(1,), remat="all"),
        r"x must be \[B, H, W, C\] of \(4, 4, 1\), got shape \(2, 4, 1\)": lambda: (
            model.init(key, x[:, 0])
        ),
        r"log_likelihood must return one number for each of 2": lambda: jax.eval_shape(
            wrong.loss, key, jax.eval_shape(wrong.init, key, x), x
        ),
        r"params must have the structure": lambda: wrong.sample(key, params(x), 2),
        r"temperature must be None with a context": lambda: jax.eval_shape(
            lambda h: nn.LadderBlock(4, 2, rngs=nnx.Rngs(0))(h, h, key, 0.5),
            x[..., [0] * 4],
        ),
    }
    for message, call in table.items():
        with pytest.raises(ValueError, match=message):
            call()
