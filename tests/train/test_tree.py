import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genlib import tree
from tests.train.toy import assert_identical


def mixed(key):
    return {
        "b": jnp.ones(3, jnp.bfloat16),
        "c": jnp.ones(2, jnp.complex64),
        "key": key,
        "n": jnp.arange(2),
        "none": None,
        "w": jnp.ones((2, 2)),
    }


def test_split_and_merge_are_inverse(key):
    floats, others = tree.split_floats(mixed(key))
    assert set(tree.named(floats)) == {"b", "c", "w"}
    assert set(tree.named(others)) == {"key", "n"}
    assert_identical(tree.merge(floats, others), mixed(key))


def test_own_copies_every_leaf_and_widens_floats(key):
    given = mixed(key)
    owned = tree.own(given)
    kinds = {name: str(leaf.dtype) for name, leaf in tree.named(owned).items()}
    assert kinds == {
        "b": "float32",
        "c": "complex64",
        "key": "key<fry>",
        "n": "int32",
        "w": "float32",
    }
    for name in ("n", "w"):
        pointers = [x[name].unsafe_buffer_pointer() for x in (owned, given)]
        assert pointers[0] != pointers[1]
    assert not tree.own(1.0).weak_type


@given(st.floats(-10, 10, width=32), st.floats(-10, 10, width=32), st.floats(0, 1))
def test_lerp_is_the_line_between(start, end, weight):
    got = tree.lerp(jnp.float32(start), jnp.float32(end), weight)
    exact = start + weight * (end - start)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-5)


def test_float32_average_of_bfloat16_moves():
    average, params = jnp.float32(1), jnp.bfloat16(2)
    body = lambda _, average: tree.lerp(average, params, 1 - 0.999)
    average = jax.jit(lambda x: jax.lax.fori_loop(0, 2000, body, x))(average)
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 2 - 0.999**2000, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_lerp_keeps_the_dtype_of_the_start(dtype, x64):
    start, end = jnp.zeros(2, dtype), jnp.ones(2, jnp.float32)
    moved = tree.lerp(start, end, jnp.float64(0.5))
    assert_identical(moved, jnp.full(2, 0.5, dtype))


def test_lerp_passes_integers_and_keys_through(key):
    start = {"key": key, "n": jnp.int32(3)}
    end = {"key": jax.random.key(5), "n": jnp.int32(4)}
    assert_identical(tree.lerp(start, end, 0.1), end)


@pytest.mark.parametrize("condition", [True, False])
def test_select_keeps_bits(key, condition):
    a = {"key": key, "x": jnp.array([jnp.nan, -0.0]), "n": jnp.arange(2)}
    b = {
        "key": jax.random.key(1),
        "x": jnp.array([1.0, jnp.inf]),
        "n": jnp.ones(2, int),
    }
    got = jax.jit(tree.select)(condition, a, b)
    assert_identical(got, a if condition else b)
    assert np.signbit(got["x"][1]) == condition


def test_named_refuses_two_leaves_at_one_path():
    with pytest.raises(ValueError, match="a/b is twice"):
        tree.named({"a": {"b": 1}, "a/b": 2})


def length(name, unit):
    @tree.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Length:
        value: jax.Array
        power: int = dataclasses.field(default=1, metadata={"static": True})

        def metres(self):
            return unit * self.value**self.power

    Length.__name__ = name
    return Length


def test_registered_dataclasses_are_trees_of_their_fields():
    cube = length("Metres", 1.0)(jnp.arange(2.0), power=3)
    assert tree.named(cube).keys() == {"value"}
    doubled = jax.tree.map(lambda x: 2 * x, cube)
    assert (type(doubled), doubled.power) == (type(cube), 3)
    np.testing.assert_array_equal(doubled.value, [0.0, 2.0])
    assert jax.tree.structure(cube) == jax.tree.structure(doubled)
    other = dataclasses.replace(cube, power=2)
    assert jax.tree.structure(cube) != jax.tree.structure(other)
    assert jax.tree.map(lambda _: None, cube).value is None


def test_classes_that_are_not_made_of_their_fields_are_refused():
    with pytest.raises(ValueError, match="needs a dataclass; it is <class 'dict'>"):
        tree.register_dataclass(dict)
    field = ("area", float, dataclasses.field(init=False))
    with pytest.raises(ValueError, match="area of Square is not"):
        tree.register_dataclass(dataclasses.make_dataclass("Square", [field]))


def test_structures_tell_classes():
    """Those of `jax.tree_util.register_dataclass` do not, and jit mixes classes up."""
    assert jax.tree.structure(length("Metres", 1.0)(1.0)) != jax.tree.structure(
        length("Feet", 0.3048)(1.0)
    )
    metres = jax.jit(lambda length: length.metres())
    units = np.arange(40.0)
    found = [metres(length(f"Unit{unit:g}", unit)(1.0)).item() for unit in units]
    np.testing.assert_array_equal(found, units)
