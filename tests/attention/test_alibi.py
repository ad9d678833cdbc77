"""Biases that are functions of distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import alibi, attention, relative_bias


def of(bias, q, kv) -> np.ndarray:
    q, kv = np.atleast_2d(q), np.atleast_2d(kv)
    return np.asarray(
        bias(jnp.array(q)[:, None, :, None], jnp.array(kv)[:, None, None])
    )


def slopes(count: int) -> np.ndarray:
    return -of(alibi(count), [1], [0])[0, :, 0, 0]


def test_slopes() -> None:
    np.testing.assert_array_equal(slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_array_equal(slopes(1), [2.0**-8])
    twelve = [*0.5 ** np.arange(1, 9), 0.70710678, 0.35355339, 0.1767767, 0.08838835]
    np.testing.assert_allclose(slopes(12), twelve, rtol=1e-7)


def test_alibi_is_of_absolute_positions() -> None:
    table = of(alibi(2), [4, 5], np.arange(6))
    expected = -np.abs(np.array([4, 5])[:, None] - np.arange(6))
    np.testing.assert_array_equal(table[0, 0], expected / 16)
    np.testing.assert_array_equal(table[0, 1], expected / 256)
    each = of(alibi(2), [[4, 5], [9, 2]], np.arange(3))
    np.testing.assert_array_equal(each[1, 0, :, 0], [-9 / 16, -2 / 16])


def t5_bucket(distance: int, count: int, last: int, bidirectional: bool) -> int:
    """Return the bucket of k - q as the paper's code has it, in float64."""
    bucket = 0
    if bidirectional:
        count //= 2
        bucket += count * (distance > 0)
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = count // 2
    if distance < exact:
        return bucket + distance
    share = np.log(distance / exact) / np.log(last / exact)
    return bucket + min(exact + int(share * (count - exact) + 1e-9), count - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "last"), [(32, 128), (10, 20), (4, 40)])
def test_buckets_are_those_of_t5(count: int, last: int, bidirectional: bool) -> None:
    table = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    bias = relative_bias(table, bidirectional=bidirectional, max_distance=last)
    found = of(bias, [500], np.arange(1000))[0, :, 0]
    buckets = [t5_bucket(k - 500, count, last, bidirectional) for k in range(1000)]
    np.testing.assert_array_equal(found, table[buckets].T)


def test_goldens_of_t5() -> None:
    bias = relative_bias(np.arange(32.0, dtype=np.float32)[:, None])
    found = of(bias, [200], 200 + np.array([-150, -64, -16, -8, -1, 0, 1, 7, 8, 127]))
    expected = [15, 14, 10, 8, 1, 0, 17, 23, 24, 31]
    np.testing.assert_array_equal(found[0, 0, 0], expected)


def test_tables_and_slopes_are_trained() -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 4, 8))
    table = jax.random.normal(jax.random.key(1), (8, 4))

    def gradients(table, slopes):
        run = lambda bias: attention(q, k, v, bias=bias, impl="naive")
        by_table = lambda t: run(relative_bias(t, max_distance=16))[..., 0].sum()
        by_slopes = lambda bias: run(bias)[..., 0].sum()
        return jax.grad(by_table)(table), jax.grad(by_slopes)(slopes)

    bias = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), alibi(4))
    for grad in jax.tree.leaves(jit_once(gradients)(table, bias)):
        assert jnp.isfinite(grad).all()
        assert (grad != 0).any(0).all()


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="num_heads must be positive, got 0"):
        alibi(0)
    with pytest.raises(ValueError, match=r"table must be \[buckets, heads\] of at"):
        relative_bias(jnp.ones((7, 2)))
    with pytest.raises(ValueError, match="max_distance must be above 8, got 8"):
        relative_bias(jnp.ones((32, 2)), max_distance=8)
