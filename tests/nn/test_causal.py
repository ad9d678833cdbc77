"""Transformers that condition flows, and the flows of images made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows, nn
from genlib.nn._jet import _halves
from tests.nn.networks import equations

B, T, C, K = 2, 4, 3, 2
WIDTH = 4
small = functools.partial(
    nn.causal_transformer_conditioner, WIDTH, num_heads=2, mlp_ratio=1
)
SIZES = dict(patch_size=2, width=WIDTH, num_heads=2, mlp_ratio=1)
tarflow = functools.partial(nn.tarflow, (4, 4, 1), layers=1, **SIZES)
jet = functools.partial(nn.jet, (4, 4, 1), layers=1, **SIZES)


def normal(dtype, *shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def filled(init, *args):
    """Return parameters as `init` would, with every number random."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), leaf.dtype),
        jax.eval_shape(init, jax.random.key(0), *args),
    )


def test_rows_see_the_past_and_steps_return_them(x64):
    network = small(depth=2)
    x, cond = normal(jnp.float64, B, T, C), normal(jnp.float64, B, K)
    features = 2
    init = functools.partial(network.init, features=features, cond=cond)
    params = filled(init, x)

    @jit_once
    def everything(x, cond):
        rows = network.apply(params, x, features, cond)
        cache = network.start(params, x, features, cond)
        body = lambda cache, row: network.step(params, cache, *row, features, cond)[
            ::-1
        ]
        steps = jax.lax.scan(body, cache, (x.swapaxes(0, 1), jnp.arange(T)))[1]
        jacobian = jax.jacfwd(
            lambda one: network.apply(params, one[None], features, cond[:1])[0]
        )(x[0])
        return rows, steps, jacobian, network.apply(params, x, features, 2 * cond)

    rows, steps, jacobian, other = everything(x, cond)
    assert rows.dtype == jnp.float64
    np.testing.assert_allclose(steps.swapaxes(0, 1), rows, atol=1e-12)
    for t in range(T):
        assert not jacobian[t, :, t + 1 :].any()
        assert jacobian[t, :, : t + 1].all()
    assert (rows != other).all()


def test_last_token_sees_what_it_sees_without_a_mask():
    x = normal(jnp.float32, B, T, C)
    masked, unmasked = (
        make(WIDTH, depth=1, num_heads=2)
        for make in (nn.causal_transformer_conditioner, nn.transformer_conditioner)
    )
    params = filled(functools.partial(masked.init, features=2), x)
    both = jit_once(lambda x: [n.apply(params, x, 2) for n in (masked, unmasked)])
    rows, others = both(x)
    np.testing.assert_allclose(rows[:, -1], others[:, -1], rtol=1e-5)
    assert (abs(rows - others)[:, :-1] > 1e-5).all()


def test_images_are_tokens():
    network = nn.transformer_conditioner(WIDTH, depth=1, num_heads=2)
    x = normal(jnp.float32, B, 2, 2, C)
    params = filled(functools.partial(network.init, features=2), x)
    both = jit_once(
        lambda x: [network.apply(params, z, 2) for z in (x, x.reshape(B, 4, C))]
    )
    image, tokens = both(x)
    assert image.shape == (B, 2, 2, 2)
    np.testing.assert_array_equal(image.reshape(B, 4, 2), tokens)


def test_dtype_of_the_network_is_its_own():
    network = small(depth=2, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    layer = flows.causal(flows.affine(), network)
    x = jnp.zeros((B, T, C))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    cache = jax.eval_shape(lambda x: network.start({}, x, 2 * C), x)
    wanted = ((2, B, T, 2, WIDTH // 2), "bfloat16")
    assert [(leaf.shape, leaf.dtype.name) for leaf in cache] == [wanted, wanted]
    for function in (layer.forward, layer.inverse):
        y, log_det = jax.eval_shape(function, params, x)
        assert (y.dtype, log_det.dtype) == (jnp.float32, jnp.float32)


def as_patches(x):
    patches = x.reshape(B, 2, 2, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(B, 4, 4)


def tarflow_unrolled(params, x, cond):
    """Every causal map alone, on tokens forwards and backwards by turns."""
    network = small(depth=1)
    layer = flows.causal(flows.affine(), network)
    y, total = as_patches(x), 0.0
    for i in range(3):
        turn = slice(None, None, -1 if i % 2 else 1)
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params["1"]["0"])
        y, log_det = layer.forward(own, y[:, turn], cond)
        y, total = y[:, turn], total + log_det
    return y, total


def jet_unrolled(params, x, cond):
    """Every coupling alone, in terms of indices."""
    network = nn.transformer_conditioner(WIDTH, depth=1, num_heads=2, mlp_ratio=1)
    f = flows.affine().forward
    channels, places = flows.permutations(0, 2, 4), _halves(2, 2, 2)
    y, total = as_patches(x), 0.0
    for i in range(2):
        first, second = (
            jax.tree.map(lambda leaf, i=i: leaf[i], params["1"][name])
            for name in ("1", "4")
        )
        a, b = channels[i, :2], channels[i, 2:]
        raw = network.apply(first, y[..., a], 4, cond).reshape(B, 4, 2, 2)
        moved, log_det = f(raw, y[..., b])
        y, total = y.at[..., b].set(moved), total + log_det.sum((1, 2))
        a, b = places[i, ::2], places[i, 1::2]
        raw = network.apply(second, y[:, a], 8, cond).reshape(B, 2, 4, 2)
        moved, log_det = f(raw, y[:, b])
        y, total = y.at[:, b].set(moved), total + log_det.sum((1, 2))
    return y, total


def test_jet_is_its_couplings_one_by_one(x64):
    x, cond = normal(jnp.float64, B, 4, 4, 1), normal(jnp.float64, B, K)
    model = jet(depth=4)
    params = filled(model.init, x, cond)

    both = jit_once(
        lambda params: [f(params, x, cond) for f in (model.forward, jet_unrolled)]
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *both(params)
    )


def test_tarflow_is_its_maps_one_by_one(x64):
    x, cond = normal(jnp.float64, B, 4, 4, 1), normal(jnp.float64, B, K)
    model = tarflow(depth=3, remat=True)
    params = filled(model.init, x, cond)

    def total(forward):
        y, log_det = forward
        return (y**2).sum() + log_det.sum(), forward

    @jit_once
    def everything(params):
        one, other = (
            jax.value_and_grad(
                lambda params, f=f: total(f(params, x, cond)), has_aux=True
            )(params)
            for f in (model.forward, tarflow_unrolled)
        )
        return one, other, model.inverse(params, one[0][1][0], cond)

    one, other, (back, contribution) = everything(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), one, other
    )
    np.testing.assert_allclose(back, x, atol=1e-10)
    np.testing.assert_allclose(contribution, -one[0][1][1], atol=1e-10)


def test_new_model_only_cuts_patches(key):
    model = tarflow(depth=3)
    x = normal(jnp.float32, B, 4, 4, 1)
    y, log_det = jit_once(lambda x: model.forward(model.init(key, x), x))(x)
    np.testing.assert_array_equal(y, as_patches(x))
    assert not log_det.any()


@pytest.mark.parametrize("make", [tarflow, jet])
def test_program_does_not_grow_with_depth(make):
    def count(depth):
        model = make(depth=depth)
        x = jnp.zeros((B, 4, 4, 1))
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        return len(equations(jax.make_jaxpr(model.forward)(params, x).jaxpr))

    # An even number of turns, so that TarFlow needs no last one.
    assert count(2) == count(8)


def test_halves_of_places():
    orders = _halves(6, 2, 4)
    assert np.sort(orders, 1).tolist() == [list(range(8))] * 6
    stay = [sorted(order[::2].tolist()) for order in orders]
    assert stay[0] == [0, 2, 5, 7]  # a checkerboard of two rows of four
    assert stay[2] == [0, 1, 2, 3]  # rows
    assert stay[4] == [0, 2, 4, 6]  # columns
    for i in (0, 2, 4):  # what stayed moves next
        assert sorted(stay[i] + stay[i + 1]) == list(range(8))
    # Three rows have no halves.
    assert (_halves(4, 3, 2)[:2] == _halves(2, 3, 2)).all()
    assert len(np.unique(_halves(9, 3, 2), axis=0)) == 4


def test_refusals():
    with pytest.raises(ValueError, match="num_heads must divide the width 4, got 3"):
        nn.causal_transformer_conditioner(4, num_heads=3)
    with pytest.raises(ValueError, match="depth must be positive, got 0"):
        nn.transformer_conditioner(4, depth=0, num_heads=1)
    with pytest.raises(ValueError, match="remat must be a bool or one of"):
        small(remat="all")
    with pytest.raises(ValueError, match="depth must be positive, got 0"):
        tarflow(depth=0)
    with pytest.raises(
        ValueError, match=r"patch_size must divide .*\(5, 4, 1\), got 2"
    ):
        nn.tarflow((5, 4, 1), **SIZES)
    with pytest.raises(ValueError, match="depth must be even and positive, got 3"):
        jet(depth=3)
    for shape, patch in [((3, 3, 4), 1), ((2, 2, 1), 1), ((6, 6, 1), 2)]:
        with pytest.raises(ValueError, match="patch_size must give an even number"):
            nn.jet(shape, patch_size=patch)


def test_inputs_that_do_not_fit():
    network = small(depth=2)
    x = jnp.zeros((B, T, C))
    abstract = lambda x: filled(functools.partial(network.init, features=2), x)
    params = abstract(x)
    for cond in (jnp.zeros(B), jnp.zeros((B + 1, K)), jnp.zeros((B, K), int)):
        with pytest.raises(ValueError, match=r"cond must be floating vectors \[B, K\]"):
            network.apply(params, x, 2, cond)
    for other in (x[:, 1:], x[..., 1:]):
        with pytest.raises(ValueError, match="params must be those of a network for x"):
            network.apply(params, other, 2)
    with pytest.raises(ValueError, match=r"outputs and cond \(2, 2\)"):
        network.apply(params, x, 2, jnp.zeros((B, K)))
    with pytest.raises(ValueError, match=r"x must be tokens \[B, T, C\]; .* \(2, 4\)"):
        network.apply(params, x[..., 0], 2)
