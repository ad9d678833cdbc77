"""Sums on this machine are right, also where XLA's own settings get them wrong."""

import jax
import jax.numpy as jnp
import pytest
from laws.registry import jit_optimized

from genlib._xla import with_right_sums


def test_the_sum_of_a_broadcast_array_is_exact_at_every_call():
    """Of 2^21 ones; jaxlib 0.10.2 to 0.11.1 answer something else each time."""
    ones = jnp.ones((1024, 1))
    total = jit_optimized(lambda x: jnp.broadcast_to(x, (2, 1024, 1024)).sum())
    assert {float(total(ones)) for _ in range(20)} == {2.0**21}


def test_the_sum_behind_a_matrix_product_is_exact():
    """|I x|^2 of 2^15 + 1 rows; jaxlib 0.10.2 answers wrongly for the last one."""
    n = 2**15 + 1
    x = jnp.zeros((n, 3)).at[:, 0].set(jnp.arange(n))
    square = jax.vmap(lambda row: ((jnp.eye(3) @ row) ** 2).sum())
    got = jit_optimized(square)(x)
    assert got[-1] == float(n - 1) ** 2


@pytest.mark.parametrize("jaxlib", ["0.10.2", "0.11.0", "0.11.1"])
def test_flags_of_users_are_kept(jaxlib):
    ynn = "--xla_cpu_experimental_ynn_fusion_type"
    flags = with_right_sums("--xla_dump_to=x", jaxlib)
    assert flags == f"--xla_dump_to=x {ynn}=-reduce"
    assert with_right_sums(f"{ynn}=", jaxlib) == f"{ynn}="


@pytest.mark.parametrize("jaxlib", ["0.9.2", "0.10.1", "0.12.0.1"])
def test_other_releases_get_no_flag(jaxlib):
    assert with_right_sums("", jaxlib) == ""
