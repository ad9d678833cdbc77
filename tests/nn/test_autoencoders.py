"""Convolutional and patch autoencoders: formulas, sizes, settings."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import nn
from tests.nn import oracles
from tests.nn.networks import build, equations, jit
from tests.nn.oracles import conv, gelu, group_norm, linear, silu, standardise

F64 = jnp.float64
WIDE = {"dtype": F64, "param_dtype": F64}
NARROW = {"dtype": jnp.bfloat16, "dropout": 0.5, "remat": True}
CHECKPOINT = jax.make_jaxpr(jax.checkpoint(jnp.sin))(1.0).eqns[0].primitive.name
CONV = {"multipliers": (1, 2), "blocks": 1, "attention_at": (4,), "image_size": 8}
PATCH = {"patch_size": 2, "depth": 2, "num_heads": 2}


NETWORKS = {
    "conv encoder": (nn.ConvEncoder, 3, 8, 5),
    "conv decoder": (nn.ConvDecoder, 5, 8, 3),
    "patch encoder": (nn.PatchEncoder, 3, 8, 5),
    "patch decoder": (nn.PatchDecoder, 5, 8, 3),
}
NAMES = tuple(NETWORKS)
network = pytest.mark.parametrize("name", NAMES)


def make(name, **kwargs):
    cls, *channels = NETWORKS[name]
    settings = {"head_dim": 8, **CONV} if "conv" in name else PATCH
    return cls(*channels, rngs=nnx.Rngs(0), **{**settings, **kwargs})


def images(name, dtype=jnp.float32):
    """Two that are not square; latents have half the sides."""
    shape = (2, 4, 8, 3) if "encoder" in name else (2, 2, 4, 5)
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)


@functools.cache
def built(name, **kwargs):
    return build(lambda: make(name, **kwargs))


def block(p, x):
    h = conv(p["conv_1"], silu(group_norm(p["norm_1"], x)))
    h = conv(p["conv_2"], silu(group_norm(p["norm_2"], h)))
    h = h + (conv(p["skip"], x) if "skip" in p else x)
    if "attention" in p:
        channels = h.shape[-1]
        tokens = group_norm(p["attention"]["norm"], h).reshape(len(h), -1, channels)
        y = oracles.attention(p["attention"]["attention"], tokens, channels // 8)
        h = h + y.reshape(h.shape)
    return h


def halve(p, x):
    """The window of each pixel begins there: only the far edges are padded."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return p["bias"] + sum(
        padded[:, i : i + height : 2, j : j + width : 2] @ p["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )


def conv_encoder(p, x):
    h = block(p["down"]["0"], conv(p["input"], x))
    h = block(p["down"]["2"], halve(p["down"]["1"], h))
    h = block(p["middle"]["1"], block(p["middle"]["0"], h))
    return conv(p["output"], silu(group_norm(p["norm"], h)))


def conv_decoder(p, z):
    up = p["up"]
    h = block(p["middle"]["0"], conv(p["input"], z))
    h = block(up["1"], block(up["0"], block(p["middle"]["1"], h)))
    h = conv(up["2"], h.repeat(2, 1).repeat(2, 2))
    h = block(up["4"], block(up["3"], h))
    return conv(p["output"], silu(group_norm(p["norm"], h)))


def norm(p, x):
    return standardise(x, -1) * p["scale"] + p["bias"]


def transformer(p, tokens, height, width):
    h = linear(p["input"], tokens) + oracles.positions(height, width, 8)
    for layer in range(2):
        row = jax.tree.map(lambda leaf, i=layer: leaf[i], p["blocks"])
        h = h + oracles.attention(row["attention"], norm(row["attention_norm"], h), 2)
        mlp = row["feedforward"]
        y = gelu(linear(mlp["hidden"], norm(row["feedforward_norm"], h)))
        h = h + linear(mlp["out"], y)
    return linear(p["output"], norm(p["norm"], h))


def patch_encoder(p, x):
    corners = [(i, j) for i in range(0, 4, 2) for j in range(0, 8, 2)]
    cuts = [x[:, i : i + 2, j : j + 2].reshape(2, -1) for i, j in corners]
    return transformer(p, np.stack(cuts, 1), 2, 4).reshape(2, 2, 4, 5)


def patch_decoder(p, z):
    patches = transformer(p, z.reshape(2, 8, 5), 2, 4).reshape(2, 2, 4, 2, 2, 3)
    return patches.swapaxes(2, 3).reshape(2, 4, 8, 3)


ORACLES = {
    "conv encoder": conv_encoder,
    "conv decoder": conv_decoder,
    "patch encoder": patch_encoder,
    "patch decoder": patch_decoder,
}


@network
def test_equals_the_formulas_in_float64(name, x64):
    params, apply = built(name, **WIDE)
    x = images(name, F64)
    jaxpr = jax.make_jaxpr(apply)(params, x)
    dtypes = {v.aval.dtype for eqn in equations(jaxpr.jaxpr) for v in eqn.outvars}
    floats = {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
    assert floats == {jnp.dtype(F64)}
    expected = ORACLES[name](*jax.tree.map(np.asarray, (params, x)))
    np.testing.assert_allclose(jit(apply)(params, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES[::3])
def test_gradient_reaches_every_parameter(name, x64):
    params, apply = built(name, **WIDE)
    x = images(name, F64)
    gradient = jax.grad(lambda p, apply: (apply(p, x) ** 2).sum())
    applies = [apply]
    if "patch" in name:  # convolutions under remat are those of the UNet
        applies.append(built(name, remat=True, **WIDE)[1])
    found = jit(lambda p: [gradient(p, each) for each in applies])(params)
    for path, leaf in jax.tree.leaves_with_path(found[0]):
        assert np.isfinite(leaf).all(), path
        assert (np.abs(leaf) > 1e-9).mean() > 0.6, path  # of qkv, k's bias has none
    for a, b in zip(*map(jax.tree.leaves, (found[0], found[-1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@network
def test_dtypes(name):
    params, apply = built(name, **NARROW)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    for dtype in (jnp.bfloat16, jnp.float32):
        x = images(name, dtype)
        assert jax.eval_shape(apply, params, x).dtype == dtype
    # The products of attention are those of the UNet's.
    product = "dot_general" if "patch" in name else "conv_general_dilated"
    found = equations(jax.make_jaxpr(apply)(params, x).jaxpr)
    products = [eqn for eqn in found if eqn.primitive.name == product]
    assert {eqn.invars[0].aval.dtype for eqn in products} == {jnp.dtype(jnp.bfloat16)}


@network
def test_dropout_and_remat_stand_at_each_block(name):
    params, apply = built(name, **NARROW)
    # Of these, one halves and one doubles an image; a transformer's are one scan.
    blocks, plain = {"conv encoder": (5, 1), "conv decoder": (7, 1)}.get(name, (1, 0))

    def count(**kwargs):
        call = functools.partial(apply, **kwargs)
        found = equations(jax.make_jaxpr(call)(params, images(name)).jaxpr)
        names = [eqn.primitive.name for eqn in found]
        return names.count("random_bits"), names.count(CHECKPOINT)

    assert count() == (0, blocks)
    assert count(key=jax.random.key(0)) == (blocks - plain, blocks)


def test_dropout_is_a_function_of_its_key():
    params, apply = built("patch decoder", **NARROW)
    x = images("patch decoder")
    call = jit(lambda seed: apply(params, x, key=jax.random.key(seed)))
    np.testing.assert_array_equal(call(0), call(0))
    assert jnp.abs(call(0) - call(1)).max() > 1e-3


@pytest.mark.parametrize("kind", ["conv", "patch"])
def test_a_decoder_gives_back_the_size(kind):
    """At a factor of 4, and with channels that no group of four divides."""
    size, settings = (12, 20), {"multipliers": (1, 2, 1), "features": 6, "blocks": 1}
    if kind == "patch":
        settings = {"features": 4, "patch_size": 4, "depth": 1, "num_heads": 1}
    encoder, decoder = {
        "conv": (nn.ConvEncoder, nn.ConvDecoder),
        "patch": (nn.PatchEncoder, nn.PatchDecoder),
    }[kind]

    def both(x):
        rngs = nnx.Rngs(0)
        z = encoder(3, out_channels=7, rngs=rngs, **settings)(x)
        return z, decoder(7, out_channels=2, rngs=rngs, **settings)(z)

    z, x = jax.eval_shape(both, jnp.zeros((1, *size, 3)))
    assert z.shape == (1, size[0] // 4, size[1] // 4, 7)
    assert x.shape == (1, *size, 2)


def test_parameters_of_latent_diffusion():
    """Of the public KL-f8, without its two 1x1 convolutions between the two."""

    def count(cls, *channels):
        make = lambda: cls(*channels, multipliers=(1, 2, 4, 4), rngs=nnx.Rngs(0))
        state = nnx.state(nnx.eval_shape(make))
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    assert count(nn.ConvEncoder, 3, 128, 8) == 34_163_592
    assert count(nn.ConvDecoder, 4, 128, 3) == 49_490_179


def test_attention_stands_at_the_chosen_resolutions():
    def attending(name, part, **kwargs):
        blocks = built(name, **(kwargs or NARROW))[0][part].items()
        return sorted(key for key, each in blocks if "attention" in each)

    assert attending("conv encoder", "down") == ["2"]
    assert attending("conv decoder", "up") == ["0", "1"]
    assert attending("conv encoder", "middle") == ["0"]
    local = {"attention_at": (), "middle_attention": False}
    for part in ("down", "middle"):
        assert attending("conv encoder", part, **local) == []


def test_branches_start_at_zero():
    def initial():
        params, _ = nn.from_nnx(make("conv encoder"))
        middle = params["middle"]["0"]
        return middle["conv_2"], middle["attention"]["attention"]["out"]

    assert not any(leaf.any() for leaf in jax.tree.leaves(jit(initial)()))


def test_program_does_not_grow_with_depth():
    def count(depth):
        params, apply = built("patch decoder", **NARROW, depth=depth)
        loss = lambda params: apply(params, images("decoder")).sum()
        return len(equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))

    assert count(2) == count(5)


CALLS = {
    "channels": ("conv encoder", (1, 4, 4, 1), "x must be .* C = 3", "(1, 4, 4, 1)"),
    "rank": ("patch encoder", (4, 4, 3), "x must be .* C = 3", "(4, 4, 3)"),
    "latents": ("conv decoder", (1, 2, 2, 3), "z must be .* C = 5", "(1, 2, 2, 3)"),
    "tokens": ("patch decoder", (1, 4, 5), "z must be .* C = 5", "(1, 4, 5)"),
    "halves": ("conv encoder", (1, 4, 5, 3), "divisible by 2 for 2", "(1, 4, 5, 3)"),
    "patches": ("patch encoder", (1, 4, 5, 3), "patch_size must", "(1, 4, 5, 3)"),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_call(case):
    name, shape, must, was = CALLS[case]
    params, apply = built(name, **NARROW)
    with pytest.raises(ValueError, match=f"{must}.*{re.escape(was)}"):
        jax.eval_shape(apply, params, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        ("conv", {"multipliers": ()}, r"multipliers must .* got \(\)"),
        ("conv", {"blocks": 0}, "blocks must be positive, got 0"),
        ("conv", {"head_dim": 0}, "head_dim must be positive, got 0"),
        ("conv", {"head_dim": 3}, "num_heads must divide the 16 features, got 5"),
        ("conv", {"image_size": None}, "image_size must be given .* got None"),
        ("conv", {"attention_at": (3,)}, r"attention_at must .*\[8, 4\], got \[3\]"),
        ("conv", {"dropout": 1.0}, "dropout must be in .* got 1.0"),
        ("patch", {"dropout": -0.1}, "dropout must be in .* got -0.1"),
        ("patch", {"num_heads": 3}, "num_heads must divide the 8 features, got 3"),
        ("patch", {"depth": 0}, "depth must be positive, got 0"),
        ("patch", {"patch_size": 0}, "patch_size must be positive, got 0"),
        ("patch", {"remat": "dots"}, "remat must be a bool or one of"),
    ],
)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_bad_setting(kind, part, settings, match):
    with pytest.raises(ValueError, match=match):
        nnx.eval_shape(lambda: make(f"{kind} {part}", **settings))


@network
def test_channels_must_be_possible(name):
    cls, settings = NETWORKS[name][0], {}
    if "patch" in name:
        settings = PATCH
        with pytest.raises(ValueError, match="features must be a multiple of 4, got 6"):
            cls(3, 6, 1, **settings, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="features must be positive, got 0"):
        cls(3, 0, 1, **settings, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="out_channels must be positive, got 0"):
        cls(3, 4, 0, **settings, rngs=nnx.Rngs(0))
