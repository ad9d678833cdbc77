"""Blocks that see nothing are not computed, and padding is small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genlib.attention import attention, causal, padding, predicate, segments, window
from genlib.attention._call import make_call
from genlib.attention._schedule import block_size, schedule
from genlib.train import flops


def plan_of(mask, length=64, keys=None, block=(16, 16), **positions):
    q, k = (jnp.zeros((1, n, 1, 4)) for n in (length, keys or length))
    sides = [positions.get(name) for name in ("q_positions", "kv_positions")]
    call = make_call(q, k, k, mask, None, None, None, None, *sides)
    return schedule(call, block)


def pairs(listed):
    return list(zip(*(x.tolist() for x in listed), strict=True))


def test_causal_needs_its_mask_on_the_diagonal_alone():
    plan, some = plan_of(causal())
    assert some is None
    assert pairs(plan.partial) == [(i, i) for i in range(4)]
    assert pairs(plan.full) == [(i, j) for i in range(4) for j in range(i)]


def test_the_last_queries_of_a_longer_sequence():
    plan, _ = plan_of(causal(), 32, 64)
    assert pairs(plan.partial) == [(0, 2), (1, 3)]
    assert pairs(plan.full) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_windows_and_documents_known_before_tracing():
    plan, _ = plan_of(causal() & window(16))
    assert pairs(plan.full) == []
    assert pairs(plan.partial) == [
        (0, 0),
        (1, 0),
        (1, 1),
        (2, 1),
        (2, 2),
        (3, 2),
        (3, 3),
    ]
    documents = segments(np.repeat([[1, 2, 2, 0]], 16, 1))
    plan, _ = plan_of(documents)
    assert pairs(plan.full) == [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert pairs(plan.partial) == []


def test_keys_of_the_padding_are_masked():
    plan, _ = plan_of(None, 20, 40)
    assert plan.sizes == (10, 14)  # three blocks of 14 keys, not of 16
    assert pairs(plan.full) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert pairs(plan.partial) == [(0, 2), (1, 2)]


def test_a_predicate_is_skipped_by_the_mask_beside_it():
    plan, _ = plan_of(predicate(lambda q, k: (q - k) % 2 == 0) & causal())
    assert pairs(plan.full) == []
    assert len(pairs(plan.partial)) == 10


def test_what_only_a_run_knows_is_listed_whole():
    @jax.jit
    def seen(valid):
        plan, some = plan_of(padding(valid))
        assert pairs(plan.full) == []
        assert len(pairs(plan.partial)) == 16
        return some

    some = seen(jnp.arange(64)[None] < 20)
    assert some.tolist() == [[True, True, False, False]] * 4


@pytest.mark.parametrize("length", [0, 1, 7, 255, 256, 257, 300, 1000, 4096])
def test_blocks_are_even(length):
    size = block_size(length, 256)
    assert 1 <= size <= 256
    count = -(-length // size)
    assert count == -(-length // 256)
    assert count * size - length < max(count, 1)


def test_work_is_that_of_the_blocks_that_are_seen():
    x = jax.ShapeDtypeStruct((1, 8192, 8, 64), jnp.float32)

    def count(mask, backward=False):
        run = lambda q, k, v: attention(q, k, v, mask=mask, impl="tiled")
        if backward:
            run = jax.grad(lambda *x: attention(*x, mask=mask, impl="tiled").sum())
        return flops(run, x, x, x)

    full = count(None)
    assert full == 4 * 8 * 8192**2 * 64
    assert count(causal()) < 0.54 * full
    assert count(causal() & window(512)) < full / 8
    # The scores again, and four products for the gradients.
    assert count(None, backward=True) == full * 7 // 2
    assert count(causal(), backward=True) * 2 == count(causal()) * 7
