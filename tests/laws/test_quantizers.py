"""Laws of every quantizer: its codes are its indices', whatever batch they come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from laws.quantizers import QUANTIZERS
from laws.registry import each, jit_once, traced_once

every_quantizer = pytest.mark.parametrize("case", **each(QUANTIZERS))
ROWS = 16
KEPT = np.arange(ROWS) % 3 != 1


def example(case):
    """Vectors, and parameters that were fitted to others."""
    rng = np.random.default_rng(2)
    z, other = rng.normal(size=(2, ROWS, case.features)).astype(np.float32)
    params = jit_once(case.quantizer.init)(jax.random.key(0), other)
    return jax.tree.map(np.asarray, params), z


def facts(quantizer, params, z):
    """What one program of a quantizer computes of a batch, whole and in parts."""
    run = lambda z, mask=None: quantizer.quantize(params, z, mask=mask)

    def total(params, z):
        made = quantizer.quantize(params, z)
        weighted = made.codes.astype(jnp.float32) * jnp.cos(jnp.arange(z.size)).reshape(
            z.shape
        )
        return weighted.sum() + sum(x.sum() for x in made.losses.values())

    gradient = jax.grad(total, (0, 1))
    made, half = run(z), ROWS // 2
    garbage = jnp.where(KEPT[:, None], z, jnp.nan)
    nothing = run(jnp.full_like(z, jnp.nan), jnp.zeros(ROWS, bool))
    return {
        "made": made,
        "looked_up": quantizer.lookup(params, made.indices),
        "updated": quantizer.update(params, made.statistics),
        "gradient": gradient(params, z),
        "extreme": [gradient(params, z * scale) for scale in (0.0, 1e4)],
        "halves": [run(part).statistics for part in (z[:half], z[half:])],
        "alone": run(z[2:3]),
        "grid": run(z.reshape(4, 4, -1)),
        "masked": run(garbage, jnp.asarray(KEPT)),
        "compact": run(z[np.flatnonzero(KEPT)]),
        "nothing": nothing,
        "idle": quantizer.update(params, nothing.statistics),
        "broken": run(z.at[3].set(jnp.nan)),
    }


def same(a, b, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


@every_quantizer
def test_laws(case):
    quantizer, (params, z) = case.quantizer, example(case)
    compiled = jit_once(traced_once(lambda *args: facts(quantizer, *args)))
    got = jax.tree.map(np.asarray, compiled(params, z))
    compiled(jax.tree.map(lambda leaf: leaf * 0.5, params), z)
    assert compiled._cache_size() <= 1  # 0: forgotten

    made, size = got["made"], quantizer.size
    assert (made.codes.shape, made.codes.dtype) == (z.shape, np.float32)
    assert made.indices.dtype == np.int32
    assert 0 <= made.indices.min() <= made.indices.max() < size
    assert (made.perplexity >= 1).all()
    assert (made.perplexity <= size + 1e-3).all()
    assert all(x.shape == (ROWS,) for x in made.losses.values())
    same(got["looked_up"], made.codes, 1e-6)
    assert all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves([got["gradient"], got["extreme"], got["updated"]])
    )
    assert np.abs(got["gradient"][1]).max() > 0
    same(jax.tree.map(np.add, *got["halves"]), made.statistics, 1e-5)
    assert np.array_equal(got["alone"].indices, made.indices[2:3])
    same(got["alone"].codes, made.codes[2:3], 1e-6)
    same(got["grid"].codes.reshape(z.shape), made.codes, 1e-6)

    masked, compact = got["masked"], got["compact"]
    rows = lambda tree: jax.tree.map(lambda leaf: leaf[KEPT], tree)
    assert np.array_equal(masked.indices[KEPT], compact.indices)
    assert (masked.indices[~KEPT] == -1).all()
    assert (masked.codes[~KEPT] == 0).all()
    same(rows((masked.codes, masked.losses)), (compact.codes, compact.losses), 1e-5)
    assert all((loss[~KEPT] == 0).all() for loss in masked.losses.values())
    same(masked.perplexity, compact.perplexity, 1e-4)
    same(masked.statistics, compact.statistics, 1e-5)
    same(got["idle"], params)
    assert (got["nothing"].perplexity == 0).all()

    others = np.arange(ROWS) != 3
    assert np.array_equal(got["broken"].indices[others], made.indices[others])
    same(got["broken"].codes[others], made.codes[others], 1e-6)
    assert 0 <= got["broken"].indices[3].min() <= got["broken"].indices[3].max() < size


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@every_quantizer
def test_eight_devices_see_one_batch(case, mesh):
    quantizer, (params, z) = case.quantizer, example(case)
    mask = KEPT.copy()
    run = lambda params, z, mask: quantizer.quantize(params, z, mask=mask)
    expected = jit_once(run)(params, z, mask)

    rows, whole = PartitionSpec("data"), PartitionSpec()
    like = expected._replace(
        codes=rows,
        indices=rows,
        losses=dict.fromkeys(expected.losses, rows),
        perplexity=whole,
        statistics=jax.tree.map(lambda _: whole, expected.statistics),
    )
    explicit = jax.shard_map(
        lambda params, z, mask: quantizer.quantize(
            params, z, mask=mask, axis_name="data"
        ),
        mesh=mesh,
        in_specs=(whole, rows, rows),
        out_specs=like,
        check_vma=False,
    )
    split = lambda x: jax.device_put(x, NamedSharding(mesh, rows))
    params = jax.device_put(params, NamedSharding(mesh, whole))
    both = jit_once(lambda *args: (run(*args), explicit(*args)))
    for got in both(params, split(z), split(mask)):
        same(got, jax.tree.map(np.asarray, expected), 1e-5)


@every_quantizer
def test_precision_is_that_of_the_vectors(case):
    params, z = example(case)
    run = case.quantizer.quantize
    made = jax.eval_shape(run, params, z.astype(jnp.bfloat16))
    assert made.codes.dtype == jnp.bfloat16
    wide = jax.tree.leaves((made.losses, made.perplexity, made.statistics))
    assert {leaf.dtype for leaf in wide} == {np.dtype("float32")}
    with jax.enable_x64(True):
        as_wide = lambda tree: jax.tree.map(np.float64, tree)
        exact = jit_once(run)(as_wide(params), as_wide(z))
        assert exact.codes.dtype == np.float64
        assert {x.dtype for x in exact.losses.values()} <= {np.dtype("float64")}
    close = jit_once(run)(params, z)
    assert np.array_equal(exact.indices, close.indices)
    same((close.codes, close.losses), (exact.codes, exact.losses), 1e-5)
