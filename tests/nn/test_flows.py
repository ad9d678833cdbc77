"""Named flows: affine at the start, of one program, made for the shape that comes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import each, jit_once

from genlib import nn

RESNET = nn.resnet_conditioner(4, 1, kernel_size=3)
IMAGES = {
    "glow": (nn.glow(2, 2, 4), 3, 5),
    "realnvp": (nn.multiscale_realnvp(2, conditioner=RESNET), 1, None),
}
# Flow, channels, classes, and the shapes of the latents of 8 x 8 images.
LATENTS = {
    "glow": (nn.glow(3, 2, 4), 1, 5, [(1, 1, 16), (2, 2, 4), (4, 4, 2)]),
    "glow_of_one_level": (nn.glow(1, 2, 4), 3, None, [(4, 4, 12)]),
    "realnvp": (
        nn.multiscale_realnvp(3, conditioner=RESNET),
        3,
        5,
        [(2, 2, 12), (2, 2, 12), (4, 4, 6)],
    ),
}


@pytest.mark.parametrize(("flow", "channels", "classes", "shapes"), **each(LATENTS))
def test_latents_are_left_behind_at_every_level(flow, channels, classes, shapes):
    like = lambda *shape: jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    x, cond = like(8, 8, channels), classes and like(classes)
    params = jax.eval_shape(flow.init, jax.random.key(0), x, cond)
    z, log_det = jax.eval_shape(flow.forward, params, x, cond)
    assert [leaf.shape for leaf in jax.tree.leaves(z)] == [(4, *s) for s in shapes]
    back, _ = jax.eval_shape(flow.inverse, params, z, cond)
    assert (back.shape, log_det.shape) == (x.shape, (4,))


@pytest.mark.parametrize(("flow", "channels", "classes"), **each(IMAGES))
def test_new_flows_of_images_are_affine(flow, channels, classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8, 8, channels)).astype(np.float32)
    cond = None if classes is None else np.eye(4, classes, dtype=np.float32)

    double = lambda tree: jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 2), tree)

    @jit_once
    def compute(key, x, cond):
        params = flow.init(key, x, cond)
        both = jnp.concatenate([x, (x + x[::-1]) / 2])
        return flow.forward(params, both, double(cond))

    y, log_det = compute(jax.random.key(0), x, cond)
    assert sum(leaf[0].size for leaf in jax.tree.leaves(y)) == x[0].size
    assert isinstance(y, tuple)
    for leaf in jax.tree.leaves(y):  # the middle is carried to the middle
        np.testing.assert_allclose(leaf[4:], (leaf[:4] + leaf[3::-1]) / 2, atol=1e-5)
    np.testing.assert_allclose(log_det, np.full(8, log_det[0]), rtol=1e-5)


def test_new_flows_of_vectors_are_normalisations_and_orders():
    x = 3 + 2 * np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    normal = (x - x.mean(0)) / x.std(0)
    models = (nn.nice(2, 4), nn.realnvp(3, 4), nn.maf(2, 4))
    spline = nn.neural_spline_flow(2, 4, bins=3)

    @jit_once
    def compute(key, x):
        start = lambda flow: flow.forward(flow.init(key, x), x)
        return [start(flow) for flow in models], start(spline)

    (nice, realnvp, maf), turned = compute(jax.random.key(0), x)
    log_det = np.full(6, -np.log(x.std(0)).sum())
    for (y, got), want in ((nice, normal), (realnvp, normal[:, ::-1]), (maf, normal)):
        np.testing.assert_allclose(y, want, atol=1e-5)
        np.testing.assert_allclose(got, log_det, rtol=1e-5)
    lengths = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(np.linalg.norm(turned[0], axis=1), lengths, rtol=1e-5)
    np.testing.assert_allclose(turned[1], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda depth: nn.glow(2, depth, 4), (2, 4, 4, 1)),
        (lambda depth: nn.neural_spline_flow(depth, 4, bins=3), (2, 4)),
    ],
)
def test_programs_do_not_grow_with_depth(make, shape):
    x = jnp.zeros(shape)

    def equations(depth):
        flow = make(depth)
        params = jax.eval_shape(flow.init, jax.random.key(0), x)
        return str(jax.make_jaxpr(flow.forward)(params, x)).count("\n")

    assert equations(2) == equations(64)


def test_rotations_follow_the_seed_and_are_no_parameters():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    make = lambda seed: nn.realnvp(1, 4, mixing="plu", seed=seed)
    # One flow at two widths of the data, first inside a trace and then outside.
    first, again, other = make(0), make(0), make(1)
    params = jit_once(first.init)(jax.random.key(0), x)
    y = first.forward(params, x)[0]
    np.testing.assert_array_equal(again.forward(params, x)[0], y)
    assert np.abs(other.forward(params, x)[0] - y).max() > 0.1
    narrow = jax.eval_shape(first.init, jax.random.key(0), x[:, :3])
    assert jax.tree.map(jnp.shape, narrow["1"]) == {"lu": (1, 3, 3)}
    assert {leaf.shape for leaf in jax.tree.leaves(params["1"])} == {(1, 4, 4)}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.glow(0), "levels must be at least one"),
        (lambda: nn.multiscale_realnvp(0), "levels must be positive"),
        (lambda: nn.realnvp(0), "length and unroll must be positive"),
        (lambda: nn.nice(mixing="sort"), 'mixing must be "reverse", "permutation"'),
        (
            lambda: nn.glow(width=3, conditioner=nn.conv_conditioner(4)),
            "width must be left out beside a conditioner",
        ),
        (lambda: nn.maf(bound=-1.0), "bound must be positive"),
        (lambda: nn.neural_spline_flow(bins=1), "bins must"),
    ],
)
def test_bad_settings_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="H and W divisible by 2"):
        nn.glow(2, 1, 4).init(jax.random.key(0), jnp.zeros((2, 6, 6, 1)))
