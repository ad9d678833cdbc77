"""The discriminator of patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import losses, nn
from tests.nn.networks import build, jit
from tests.nn.oracles import group_norm


def discriminator(*args, **kwargs):
    return build(lambda: nn.PatchDiscriminator(*args, rngs=nnx.Rngs(0), **kwargs))


def conv(p, x, stride):
    kernel = p["kernel"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (side - 3 for side in padded.shape[1:3])
    windows = (
        padded[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
        for i in range(4)
        for j in range(4)
    )
    return sum(windows) + p.get("bias", 0)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def test_equals_the_formula_and_penalises_each_alone(x64):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    params, apply = discriminator(2, 4, layers=2, **wide)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 18, 2)))
    logits, all_at_once, alone = jit(
        lambda x: (
            apply(params, x),
            losses.r1(lambda x: apply(params, x), x),
            losses.r1(lambda x: apply(params, x), x[1:]),
        )
    )(x)
    convs, norms = (
        jax.tree.map(np.asarray, params[name]) for name in ("convs", "norms")
    )
    h = conv(convs["0"], np.asarray(x), 2)
    h = conv(convs["1"], leaky(h), 2)
    h = conv(convs["2"], leaky(group_norm(norms["0"], h)), 1)
    expected = conv(convs["3"], leaky(group_norm(norms["1"], h)), 1)
    assert logits.shape == (2, 1, 2, 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-9)
    np.testing.assert_allclose(all_at_once[1:], alone, rtol=1e-9)


def test_patches_have_the_published_size():
    params, apply = discriminator(1, 1, norm=None)
    middle = lambda x: apply(params, x)[0, 4, 4, 0]
    seen = jit(jax.grad(middle))(jnp.ones((1, 88, 88, 1)))[0, :, :, 0] != 0
    for places in (np.flatnonzero(seen.any(axis)) for axis in (0, 1)):
        assert places[-1] - places[0] + 1 == 70


def test_published_parameters():
    def count(channels, **kwargs):
        make = lambda: nn.PatchDiscriminator(channels, **kwargs, rngs=nnx.Rngs(0))
        leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(make)))
        return sum(leaf.size for leaf in leaves)

    assert (count(3), count(6)) == (2_765_633, 2_768_705)
    # Biases instead of scales and shifts.
    assert count(3) - count(3, norm=None) == 128 + 256 + 512


@pytest.mark.parametrize("size", [(24, 24), (31, 47), (256, 256)])
def test_sizes_and_dtypes(size):
    params, apply = discriminator(1, 2, dtype=jnp.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        logits = jax.eval_shape(apply, params, jnp.zeros((1, *size, 1), dtype))
        assert logits.shape == (1, size[0] // 8 - 2, size[1] // 8 - 2, 1)
        assert logits.dtype == dtype


@pytest.mark.parametrize(
    ("settings", "shape", "match"),
    [
        ({"layers": 0}, None, "layers must be positive, got 0"),
        ({"features": 0}, None, "features must be positive, got 0"),
        ({"norm": "batch"}, None, "norm must be 'group' or None, got 'batch'"),
        ({}, (1, 24, 24, 3), r"C = 1, got shape \(1, 24, 24, 3\)"),
        ({}, (1, 24, 23, 1), r"at least 24 for 3 layers, got shape \(1, 24, 23, 1\)"),
    ],
)
def test_refusals(settings, shape, match):
    def call():
        params, apply = discriminator(1, **{"features": 2, **settings})
        return jax.eval_shape(apply, params, jnp.zeros(shape))

    with pytest.raises(ValueError, match=match):
        call()
