"""The residual MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import nn
from tests.nn.networks import batch, build


def test_the_call_of_the_design_page():
    model = nn.MLP(in_features=2, features=128, depth=3, rngs=nnx.Rngs(0))
    params, apply = nn.from_nnx(model)
    x_t = jnp.ones((5, 2))
    assert not apply(params, x_t, jnp.full(5, 0.5)).any()
    leaf = params["output"]["kernel"]
    params["output"]["kernel"] = leaf + 1
    assert jnp.isfinite(apply(params, x_t, 0.5)).all()
    assert apply(params, x_t, 0.5).any()


def test_shape_of_an_example_does_not_matter():
    params, apply = build(lambda: nn.MLP(12, 8, 1, rngs=nnx.Rngs(0)))
    x, t, _ = batch((2, 2, 2, 3))
    flat = jax.jit(apply)(params, x.reshape(2, 12), t)
    shaped = jax.jit(apply)(params, x, t)
    np.testing.assert_array_equal(shaped, flat.reshape(x.shape))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_depth_is_the_number_of_blocks(depth):
    params, apply = build(lambda: nn.MLP(2, 8, depth, rngs=nnx.Rngs(0)))
    assert len(params.get("blocks", {})) == depth
    result = jax.eval_shape(apply, params, jnp.zeros((3, 2)), 0.5)
    assert result.shape == (3, 2)


def test_one_number_per_example_needs_its_axis():
    params, apply = build(lambda: nn.MLP(1, 8, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"x must be \[B, ...\] with 1 .* \(4,\)"):
        apply(params, jnp.zeros(4), 0.5)
