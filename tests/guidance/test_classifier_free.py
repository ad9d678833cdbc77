"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import GOLDEN, KINDS, each

from genlib import guidance, noise, prediction

T = jnp.float32(0.4)


def constant(value):
    return lambda x, t: jnp.asarray(value, x.dtype)


def test_convention_and_published_values():
    cond, uncond, want = (
        np.array(GOLDEN["cfg"][k], np.float32) for k in ("cond", "uncond", "guided")
    )
    x = jnp.zeros_like(cond)
    at = lambda scale: guidance.classifier_free(
        constant(cond), constant(uncond), scale
    )(x, T)
    np.testing.assert_allclose(at(7.5), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(at(1.0), cond, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(at(0.0), uncond)


def test_scale_for_each_example():
    x = jnp.zeros((3, 2, 2))
    guided = guidance.classifier_free(
        lambda x, t: x + 1, lambda x, t: x, jnp.array([0.0, 1.0, 5.0])
    )
    np.testing.assert_array_equal(guided(x, T)[:, 0, 0], [0.0, 1.0, 5.0])


def test_dtype_is_kept():
    x = jnp.zeros((2, 2), jnp.bfloat16)
    guided = guidance.classifier_free(
        lambda x, t: x + 1, lambda x, t: x, jnp.float32(3)
    )
    assert guided(x, T).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", **each(KINDS))
def test_guiding_x_0_is_guiding_any_prediction(kind):
    path = noise.Cosine()
    x_t, c, u = jax.random.normal(jax.random.key(0), (3, 4, 2))
    back = lambda value: prediction.convert(path, value, x_t, T, kind, prediction.X0)
    guided = guidance.classifier_free(lambda x, t: back(c), lambda x, t: back(u), 3.0)(
        x_t, T
    )
    np.testing.assert_allclose(guided, back(u + 3.0 * (c - u)), rtol=1e-4, atol=1e-5)
