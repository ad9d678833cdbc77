"""Binary codes and their entropies against enumeration, and where others fail."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once, traced_once

from genlib import quantize
from genlib.quantize._entropy import index_perplexity

Z = jnp.array([[0.5, -0.5, 0.2, -0.1], [1.0, 1.0, -1.0, -1.0]])


def enumerated(z, codes, temperature):
    """Return p(c | z) over listed codes, by their distances."""
    z, codes = np.asarray(z, np.float64), np.asarray(codes, np.float64)
    logits = -((z[:, None] - codes) ** 2).sum(-1) / temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def test_codes_and_losses_of_the_fixture():
    def quantized_by(**options):
        return quantize.lookup_free(4, **options).quantize({}, Z)

    quantized, without, single = jit_once(
        lambda: [quantized_by(**o) for o in ({}, {"gamma": 0.0}, {"group_size": 1})]
    )()
    assert quantized.indices.tolist() == [10, 12]
    np.testing.assert_allclose(quantized.losses["commitment"].mean(), 0.24375)
    each = without.losses["entropy"]
    np.testing.assert_allclose(each.mean(), 1.1918540, rtol=1e-6)
    # Of the joint distribution over 16 codes, where bits on their own give 2.101372.
    batch = each - quantized.losses["entropy"]
    np.testing.assert_allclose(batch, 1.7730509, rtol=1e-6)
    bits = each - single.losses["entropy"]
    np.testing.assert_allclose(bits, 2.1013717, rtol=1e-6)


@pytest.mark.parametrize("make", [quantize.lookup_free, quantize.binary_spherical])
def test_entropies_are_those_of_all_codes_listed(make, key, x64):
    temperature, gamma = 0.3, 0.7
    z = jax.random.normal(key, (9, 6), jnp.float64)
    mask = jnp.arange(9) < 7
    codes = make(6).lookup({}, jnp.arange(64))
    assert codes.dtype == jnp.float64

    @jit_once
    def run(z):
        return [
            make(6, gamma=gamma, temperature=temperature, group_size=size)
            .quantize({}, z, mask=mask)
            .losses["entropy"]
            for size in (None, 3, 1)
        ]

    joint, groups, single = run(z)
    u = z if make is quantize.lookup_free else z / np.linalg.norm(z, axis=-1)[:, None]
    p = enumerated(u[:7], codes, temperature)
    each = entropy(p)
    np.testing.assert_allclose(joint[:7], each - gamma * entropy(p.mean(0)), atol=1e-12)
    # The marginals of three bits, and of one.
    table = p.mean(0).reshape(8, 8)
    halves = entropy(table.sum(1)) + entropy(table.sum(0))
    np.testing.assert_allclose(groups[:7], each - gamma * halves, atol=1e-12)
    table = p.mean(0).reshape((2,) * 6)
    others = [tuple(a for a in range(6) if a != b) for b in range(6)]
    bits = sum(entropy(table.sum(axes)) for axes in others)
    np.testing.assert_allclose(single[:7], each - gamma * bits, atol=1e-12)
    # Groups bound the entropy of the mean from above.
    assert (single[:7] < groups[:7]).all()
    assert (groups[:7] < joint[:7]).all()
    assert not np.concatenate([joint[7:], groups[7:], single[7:]]).any()


def test_the_gradient_of_the_entropies_is_that_of_the_listed_one(key, x64):
    z = jax.random.normal(key, (5, 4), jnp.float64)
    bottleneck = quantize.lookup_free(4, temperature=0.8)
    codes = bottleneck.lookup({}, jnp.arange(16))

    def listed(z):
        distances = jnp.square(z[:, None] - codes[None]).sum(-1)
        p = jax.nn.softmax(-distances / 0.8)
        entropies = jax.scipy.special.entr(p).sum(-1)
        return (entropies - jax.scipy.special.entr(p.mean(0)).sum()).sum()

    ours, theirs = jit_once(
        lambda z: [
            jax.grad(lambda z: bottleneck.quantize({}, z).losses["entropy"].sum())(z),
            jax.grad(listed)(z),
        ]
    )(z)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def sizes(jaxpr):
    """Yield the sizes of all arrays of a program, with those of its parts."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def test_the_curvature_of_sure_bits_is_finite(key):
    """1/p^2, where a product rule of p log p meets it, is not."""
    bottleneck = quantize.binary_spherical(4)  # probabilities down to e^-400
    loss = lambda z: bottleneck.quantize({}, z).losses["entropy"].sum()
    z = jax.random.normal(key, (6, 4))
    curvature = jit_once(lambda z: jax.jvp(jax.grad(loss), (z,), (z,))[1])(z)
    assert np.isfinite(curvature).all()
    assert np.abs(curvature).max() > 0


def test_nothing_is_counted_of_an_empty_batch_of_many_codes():
    assert index_perplexity(jnp.zeros(0, jnp.int32), 2**17) == 0


def test_memory_does_not_grow_with_the_number_of_codes():
    z = jax.ShapeDtypeStruct((256, 18), jnp.float32)

    def largest(group_size):
        bottleneck = quantize.lookup_free(18, group_size=group_size)
        loss = lambda z: bottleneck.quantize({}, z).losses["entropy"].sum()
        return max(sizes(jax.make_jaxpr(jax.value_and_grad(loss))(z).jaxpr))

    assert largest(1) <= 2 * 256 * 18
    # All codes once, but not for each vector: that would be 2^26.
    assert largest(None) == 2**18


@pytest.mark.parametrize("bits", [1, 16, 31])
def test_indices_and_codes_are_one_to_one(bits):
    size = 2**bits
    indices = jnp.array([0, 1, size // 3, size // 2, size - 2, size - 1, -1], jnp.int32)
    bottleneck = quantize.lookup_free(bits, group_size=1)
    assert bottleneck.size == size

    @jit_once
    def run(indices):
        codes = bottleneck.lookup({}, indices)
        return codes, bottleneck.quantize({}, codes, mask=indices >= 0)

    codes, quantized = run(indices)
    np.testing.assert_array_equal(quantized.indices, indices)
    np.testing.assert_array_equal(quantized.codes, codes)
    assert (np.abs(codes[:-1]) == 1).all()
    counts = np.unique(np.asarray(indices[:-1]), return_counts=True)[1] / 6
    np.testing.assert_allclose(quantized.perplexity, np.exp(entropy(counts)), rtol=1e-6)


def test_perplexity_of_many_codes_is_counted_over_devices(key):
    """The parts of a mapped axis stand for devices."""
    bits = 17
    bottleneck = quantize.binary_spherical(bits, group_size=1, temperature=1.0)
    z = jnp.repeat(jax.random.normal(key, (10, bits)), 2, axis=0)
    mask = jnp.arange(20) < 15

    @jit_once
    def run(z):
        parts = jax.vmap(
            lambda z, mask: bottleneck.quantize({}, z, mask=mask, axis_name="i"),
            axis_name="i",
        )(z.reshape(4, 5, bits), mask.reshape(4, 5))
        return bottleneck.quantize({}, z, mask=mask), parts

    whole, parts = run(z)
    np.testing.assert_allclose(parts.perplexity, whole.perplexity, rtol=1e-6)
    np.testing.assert_allclose(
        parts.losses["entropy"].ravel(), whole.losses["entropy"], rtol=1e-5
    )
    p = np.array([2] * 7 + [1]) / 15
    np.testing.assert_allclose(whole.perplexity, np.exp(entropy(p)), rtol=1e-6)


def test_spherical_codes_are_the_nearest_and_know_no_length(key):
    bottleneck = quantize.binary_spherical(5)
    z = jax.random.normal(key, (200, 5))
    codes = np.array(list(itertools.product([-1, 1], repeat=5))) / np.sqrt(5)
    u = np.asarray(z) / np.linalg.norm(z, axis=-1, keepdims=True)
    nearest = ((u[:, None] - codes) ** 2).sum(-1).argmin(-1)
    run = jit_once(lambda z: bottleneck.quantize({}, z))
    for scale in (1e-30, 1.0, 5e37):  # some of the last are beyond 1 / tiny
        quantized = run(z * scale)
        np.testing.assert_array_equal(quantized.indices, nearest)
        np.testing.assert_allclose(
            quantized.losses["commitment"],
            ((u - codes[nearest]) ** 2).mean(-1),
            rtol=1e-4,
        )


def test_gradients_are_straight_through_from_the_sphere():
    z = jnp.array([[3.0, -4.0], [0.0, 0.0], [3e30, -4e30]])
    upstream = jnp.array([[1.0, 2.0]])

    @jit_once
    def grads(z):
        def loss(make):
            return lambda z: (make(2).quantize({}, z).codes * upstream).sum()

        return [
            jax.grad(loss(make))(z)
            for make in (quantize.lookup_free, quantize.binary_spherical)
        ]

    free, spherical = grads(z)
    np.testing.assert_array_equal(free, jnp.broadcast_to(upstream, (3, 2)))
    # (I - u u^T)/|z| of u = (.6, -.8): 2 of (1, 2) is left along (.8, .6).
    np.testing.assert_allclose(spherical[0], [0.32, 0.24], rtol=1e-6)
    np.testing.assert_array_equal(spherical[1], upstream[0])
    np.testing.assert_allclose(spherical[2] * 1e30, [0.32, 0.24], rtol=1e-6)


def test_losses_are_finite_in_half_precision():
    """Entropies in half precision are NaN where probabilities are 0 or 1."""
    dtype = jnp.float16
    z = jnp.array([[0.0, -0.0], [3e4, -3e4], [1e-6, -1e-6], [0.01, 5.0]], dtype)

    @jit_once
    def run(z):
        def loss(make):
            def total(z):
                quantized = make(2, temperature=1e-3).quantize({}, z)
                return quantized.losses["entropy"].sum(), quantized

            return total

        return [
            jax.value_and_grad(loss(make), has_aux=True)(z)
            for make in (quantize.lookup_free, quantize.binary_spherical)
        ]

    for (_, quantized), grads in run(z):
        # Zero is positive, whatever its sign: the same for the index and the code.
        assert quantized.indices.tolist() == [3, 2, 2, 3]
        assert (quantized.codes[0] > 0).all()
        assert quantized.codes.dtype == dtype
        assert quantized.losses["entropy"].dtype == jnp.float32
        assert np.isfinite(quantized.losses["entropy"]).all()
        assert np.isfinite(grads.astype(jnp.float32)).all()


def test_nan_is_negative_and_its_loss_is_nan():
    z = Z.at[0, 2].set(jnp.nan)
    quantized = jit_once(lambda z: quantize.lookup_free(4).quantize({}, z))(z)
    assert quantized.indices.tolist() == [8, 12]
    assert np.isfinite(quantized.codes).all()
    assert np.isnan(quantized.losses["commitment"]).tolist() == [True, False]
    assert np.isnan(quantized.losses["entropy"]).all()


def test_temperature_and_gamma_are_traced():
    @jit_once
    @traced_once
    def run(temperature, gamma):
        bottleneck = quantize.lookup_free(4, temperature=temperature, gamma=gamma)
        return bottleneck.quantize({}, Z).losses["entropy"]

    for temperature, gamma in [(0.5, 1.0), (2.0, 0.3)]:
        codes = np.array(list(itertools.product([-1, 1], repeat=4)))
        p = enumerated(Z, codes, temperature)
        exact = entropy(p) - gamma * entropy(p.mean(0))
        np.testing.assert_allclose(run(temperature, gamma), exact, rtol=1e-5)


@pytest.mark.parametrize("make", [quantize.lookup_free, quantize.binary_spherical])
@pytest.mark.parametrize(
    ("bits", "options", "message"),
    [
        (0, {}, "bits must be within 1 .. 31"),
        (32, {"group_size": 1}, "bits must be within 1 .. 31, for int32.*; it is 32"),
        (24, {}, "group_size must be at most 20, .*; it is 24"),
        (8, {"group_size": 3}, "group_size must divide bits, 8; it is 3"),
        (8, {"temperature": 0.0}, "temperature must be positive"),
        (8, {"gamma": -1.0}, "gamma must not be negative; it is -1.0"),
    ],
)
def test_settings_without_meaning_are_refused(make, bits, options, message):
    with pytest.raises(ValueError, match=message):
        make(bits, **options)
