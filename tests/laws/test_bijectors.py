"""Laws of every bijector: it inverts, and its log-determinant is its Jacobian's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from laws.bijectors import BIJECTORS
from laws.registry import each, jit_once, traced_once

from genlib import flows

every_bijector = pytest.mark.parametrize("case", **each(BIJECTORS))
ROWS = 8


def example(case):
    """Data, conditioning, and parameters that are not those of a new layer."""
    rng = np.random.default_rng(1)
    x = np.asarray(case.place(rng.normal(size=(ROWS, *case.shape))), np.float32)
    cond = None
    if case.cond is not None:
        cond = rng.normal(size=(ROWS, case.cond)).astype(np.float32)
    params = jit_once(case.layer.init)(jax.random.key(0), x, cond)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.2 * rng.normal(size=leaf.shape), params
    )
    return as_dtype(np.float32, params, x, cond)


def as_dtype(dtype, *trees):
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), trees)


def facts(layer, params, x, cond):
    """What both programs of a layer compute."""
    y, log_det = layer.forward(params, x, cond)
    back, log_det_back = layer.inverse(params, y, cond)

    def losses(params, x, y, cond):
        there, back = layer.forward(params, x, cond), layer.inverse(params, y, cond)
        sums = [jnp.sum(leaf.astype(log_det.dtype)) for leaf in jax.tree.leaves(there)]
        sums += [jnp.sum(leaf.astype(log_det.dtype)) for leaf in jax.tree.leaves(back)]
        return sum(sums, 0.0)

    gradients = jax.grad(losses, (0, 1, 2))(params, x, y, cond)
    one = lambda tree: jax.tree.map(lambda leaf: leaf[2:3], tree)
    return {
        "y": y,
        "log_det": log_det,
        "back": back,
        "log_det_back": log_det_back,
        "gradients": gradients,
        "alone": layer.forward(params, one(x), one(cond)),
    }


def log_abs_det(layer, params, x, cond):
    """log |det| of the Jacobian of each example, which sees no other."""

    def alone(x, cond):
        y, _ = layer.forward(params, x[None], None if cond is None else cond[None])
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(y)])

    if cond is None:
        jacobian = jax.vmap(lambda x: jax.jacfwd(alone)(x, None))(x)
    else:
        jacobian = jax.vmap(jax.jacfwd(alone))(x, cond)
    size = jacobian.shape[1]
    return jnp.linalg.slogdet(jacobian.reshape(len(x), size, size))[1]


@every_bijector
def test_laws(case, eight_devices):
    layer = case.layer
    params, x, cond = example(case)
    with jax.enable_x64(True):
        wide = as_dtype(np.float64, params, x, cond)
        true = jit_once(lambda *a: (facts(layer, *a), log_abs_det(layer, *a)))(*wide)
        true, exact = jax.tree.map(np.asarray, true)
    assert true["log_det"].dtype == np.float64
    row = jax.tree.map(lambda leaf: leaf[2:3], (true["y"], true["log_det"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        true["alone"],
        row,
    )
    np.testing.assert_allclose(true["log_det"], exact, atol=case.exact, rtol=1e-9)
    np.testing.assert_allclose(true["back"], wide[1], atol=100 * case.exact)
    np.testing.assert_allclose(
        true["log_det_back"], -true["log_det"], atol=100 * case.exact
    )

    # In float32 on eight devices, one compilation for all values.
    params, x, cond = place(eight_devices, params, x, cond)
    compiled = jit_once(traced_once(lambda *args: facts(layer, *args)))
    got = compiled(params, x, cond)
    compiled(jax.tree.map(lambda leaf: leaf * 0.5, params), x, cond)
    assert compiled._cache_size() <= 1  # 0: forgotten
    got = jax.tree.map(np.asarray, got)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    assert got["log_det"].dtype == np.float32
    np.testing.assert_allclose(got["back"], x, atol=case.round_trip)
    near = dict(rtol=1e-4, atol=max(1e-4, 10 * case.round_trip))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), got, true)


@pytest.fixture(scope="module")
def eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return mesh


def place(mesh, params, x, cond):
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    return (
        jax.device_put(params, whole),
        jax.device_put(x, rows),
        None if cond is None else jax.device_put(cond, rows),
    )


@every_bijector
def test_bfloat16_in_is_bfloat16_out(case):
    params, x, cond = example(case)
    x = x.astype(jnp.bfloat16)
    there = jax.eval_shape(case.layer.forward, params, x, cond)
    back = jax.eval_shape(case.layer.inverse, params, there[0], cond)
    for y, log_det in (there, back):
        assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype("bfloat16")}
        assert (log_det.shape, log_det.dtype) == ((ROWS,), np.float32)


def test_scan_chain_equals_the_chain_of_its_layers():
    row = BIJECTORS["coupling"].layer
    stacked, listed = flows.scan_chain(row, 3), flows.chain(row, row, row)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    params = stacked.init(jax.random.key(0), x)
    each_own = {
        str(i): jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3)
    }
    for name in ("forward", "inverse"):
        got = getattr(stacked, name)(params, x)
        want = getattr(listed, name)(each_own, x)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want
        )
