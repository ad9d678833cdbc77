"""The diffusion transformer and its patches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import nn
from genlib.nn._stack import run_blocks
from tests.nn.networks import batch, build, dit, equations, filled, jit, unet


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 4, 6, 3), 2), ((1, 6, 3, 1), 3), ((2, 2, 5, 4), 1)]
)
def test_patches_round_trip(shape, patch):
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    patches = nn.patchify(x, patch)
    np.testing.assert_array_equal(nn.unpatchify(patches, patch, *shape[1:3]), x)
    # The second patch is the one to the right of the first, row by row.
    if shape[2] > patch:
        expected = x[:, :patch, patch : 2 * patch].reshape(shape[0], -1)
        np.testing.assert_array_equal(patches[:, 1], expected)


@pytest.mark.parametrize(("shape", "patch"), [((1, 4, 5, 3), 2), ((1, 4, 4, 3), 0)])
def test_patchify_refuses(shape, patch):
    with pytest.raises(ValueError, match="patch_size must divide"):
        nn.patchify(jnp.zeros(shape), patch)


@pytest.mark.parametrize(
    ("shape", "patch", "size"),
    [
        ((1, 4, 12), 2, (4, 6)),
        ((1, 6, 10), 2, (4, 6)),
        ((6, 12), 2, (4, 6)),
        ((1, 6, 12), 4, (4, 6)),
    ],
)
def test_unpatchify_refuses(shape, patch, size):
    with pytest.raises(ValueError, match="patches must be"):
        nn.unpatchify(jnp.zeros(shape), patch, *size)


def test_image_must_be_divisible():
    params, apply = build(dit)
    with pytest.raises(ValueError, match=r"patch_size must divide.*\(2, 4, 5, 3\)"):
        apply(params, jnp.zeros((2, 4, 5, 3)), 0.5)


def test_program_does_not_grow_with_depth():
    def count(depth):
        params, apply = build(functools.partial(dit, depth=depth))
        loss = lambda params: apply(params, *batch()).sum()
        forward = equations(jax.make_jaxpr(loss)(params).jaxpr)
        return len(forward), len(
            equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
        )

    assert count(2) == count(7)


def test_blocks_are_the_loop_over_their_parameters(x64):
    make = functools.partial(dit, depth=3, dtype=jnp.float64, param_dtype=jnp.float64)
    model = filled(make)
    graphdef, state = nnx.split(model.blocks)
    h, embedding = jnp.ones((1, 2, 16)), jnp.ones((1, 1, 16))
    result = jit(lambda h: run_blocks(model.blocks, 3, h, condition=embedding)[0])(h)
    for layer in range(3):
        block = nnx.merge(graphdef, jax.tree.map(lambda a, i=layer: a[i], state))
        h = jit(lambda h, block=block: block(h, condition=embedding))(h)
    np.testing.assert_allclose(result, h, rtol=1e-12)


def test_layers_start_different():
    make = functools.partial(nn.DiT, 1, 4, 2, patch_size=1, num_heads=1)
    kernel = jit(lambda: make(rngs=nnx.Rngs(0)).blocks.feedforward.hidden.kernel[...])()
    assert jnp.abs(kernel[0] - kernel[1]).max() > 0.1


def recomputed_products(network, remat):
    """Return the network's losses without and with remat, and their products."""
    params, apply = build(network)
    _, again = build(functools.partial(network, remat=remat))

    def loss(apply):
        return jax.value_and_grad(lambda p: (apply(p, *batch(dtype=F64)) ** 2).sum())

    def products(f):
        names = ("dot_general", "logistic")
        found = equations(jax.make_jaxpr(f)(params).jaxpr)
        return sum(eqn.primitive.name in names for eqn in found)

    kept, recomputed = loss(apply), loss(again)
    return params, kept, recomputed, products(recomputed) - products(kept)


F64 = jnp.float64


@pytest.mark.parametrize("remat", [True, "dots_saveable"])
def test_remat_changes_nothing_but_the_backward_pass(x64, remat):
    make = functools.partial(dit, dtype=F64, param_dtype=F64)
    params, kept, recomputed, more = recomputed_products(make, remat)
    for a, b in zip(
        *(jax.tree.leaves(jit(f)(params)) for f in (kept, recomputed)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    # What "dots_saveable" keeps are the products; it recomputes cheaper things.
    assert (more > 0) is (remat is True)


def test_remat_of_a_unet(x64):
    make = functools.partial(unet, dtype=F64, param_dtype=F64)
    assert recomputed_products(make, True)[-1] > 0


def test_remat_of_a_scan_saves_memory():
    def temporary(remat):
        make = functools.partial(nn.DiT, 3, 64, 8, patch_size=1, num_heads=4)
        init, apply = nn.lazy(lambda rngs: make(remat=remat, rngs=rngs))
        params = jax.eval_shape(init, jax.random.key(0))
        x, t = jnp.zeros((4, 8, 8, 3)), jnp.zeros(4)
        loss = lambda params: jnp.square(apply(params, x, t)).sum()
        compiled = jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept, dots, nothing = map(temporary, (False, "dots_saveable", True))
    assert nothing < kept / 2
    assert nothing < dots < kept


def test_remat_must_be_a_policy():
    with pytest.raises(ValueError, match="remat must be a bool or one of"):
        build(functools.partial(dit, remat="dots"))


def test_out_channels():
    params, apply = build(functools.partial(dit, out_channels=6))
    result = jax.eval_shape(apply, params, jnp.zeros((2, 4, 4, 3)), 0.5)
    assert result.shape == (2, 4, 4, 6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_heads": 3}, "num_heads must divide the 16 features, got 3"),
        ({"num_heads": 0}, "num_heads must divide the 16 features, got 0"),
        ({"depth": 0}, "depth must be positive, got 0"),
        ({"patch_size": 0}, "patch_size must be positive, got 0"),
    ],
)
def test_bad_setting(settings, match):
    with pytest.raises(ValueError, match=match):
        nnx.eval_shape(lambda: dit(**settings))


def test_features_must_hold_two_coordinates():
    with pytest.raises(ValueError, match="features must be a multiple of 4, got 6"):
        nn.DiT(3, 6, 1, patch_size=2, num_heads=1, rngs=nnx.Rngs(0))
