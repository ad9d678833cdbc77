"""Laws of every guidance, on exact denoisers with and without a condition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import CONDITION, GUIDANCE, WHOLE, jit_once

from genlib import noise, samplers

PATH = noise.Cosine()
X = np.array([[0.7, -1.2], [0.1, 0.4], [-1.0, 0.3]], np.float32)
T = np.array([0.8, 0.5, 0.3], np.float32)
AT_1_THE_CONDITION = [
    *("classifier_free", "autoguidance", "compose", "classifier"),
    *("adaptive_projected", "momentum", "cfg_zero_star", "tangential"),
]

every_guidance = pytest.mark.parametrize("name", GUIDANCE)


def build(name, scale):
    models = CONDITION.denoiser(PATH), WHOLE.denoiser(PATH)
    return GUIDANCE[name](*models, scale, PATH)


@functools.cache
def program(name):
    """Return `(x, t, scale) -> x_0 and its gradients`, and the list of its traces."""
    traces = []

    @jit_once
    def run(x, t, scale):
        traces.append(scale)
        total = lambda x, scale: (lambda x_0: (x_0.sum(), x_0))(
            build(name, scale)(x, t)
        )
        gradients, x_0 = jax.grad(total, (0, 1), has_aux=True)(x, scale)
        return x_0, gradients

    return run, traces


@every_guidance
def test_examples_do_not_see_each_other_and_a_sweep_traces_once(name):
    run, traces = program(name)
    scale = np.array([2.5, 1.0, 4.0], np.float32)
    whole, _ = run(X, T, scale)
    mates = np.stack([X[0], 5 - X[1], 7 * X[2]]), T[[0, 2, 1]], scale * [1, 2, 3]
    other, _ = run(*mates[:2], np.float32(mates[2]))
    np.testing.assert_array_equal(other[0], whole[0])
    assert (jnp.abs(other[1:] - whole[1:]) > 1e-4).any(axis=1).all()
    assert len(traces) == 1


@every_guidance
def test_jit_equals_eager_and_a_number_equals_one_for_each_example(name):
    compiled, _ = program(name)[0](X, T, np.full(3, 2.5, np.float32))
    eager = build(name, 2.5)(jnp.asarray(X), jnp.asarray(T))
    np.testing.assert_allclose(eager, compiled, rtol=1e-5, atol=1e-6)


@every_guidance
def test_finite_with_finite_gradients_at_both_ends(name):
    t = np.array([PATH.t_min, PATH.t_max, 0.5], np.float32)
    for value in jax.tree.leaves(program(name)[0](X, t, np.full(3, 2.5, np.float32))):
        assert jnp.isfinite(value).all()


@pytest.mark.parametrize("name", AT_1_THE_CONDITION)
def test_scale_1_is_the_conditional_model(name):
    x_0, _ = program(name)[0](X, T, np.ones(3, np.float32))
    want = CONDITION.denoiser(PATH)(jnp.asarray(X), jnp.asarray(T))
    np.testing.assert_allclose(x_0, want, rtol=1e-5, atol=1e-6)


@every_guidance
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtype_is_kept(name, dtype, x64):
    x, t = jax.ShapeDtypeStruct(X.shape, dtype), jnp.float32(0.5)
    x_0 = jax.eval_shape(lambda x, t: build(name, 2.0)(x, t), x, t)
    assert (x_0.shape, x_0.dtype) == (X.shape, dtype)


@every_guidance
def test_models_that_know_nothing_at_the_start_are_refused(name):
    def blind(x_t, t):
        return x_t

    def check_start(t):
        raise ValueError(f"blind at {t}")

    blind.check_start = check_start
    path, x = noise.EDM(), jnp.ones((3, 2))
    guided = GUIDANCE[name](blind, blind, 2.0, path)
    with pytest.raises(ValueError, match=r"blind at 80\.0"):
        samplers.sample(samplers.ddim(), guided, path, [80.0, 0.0], x)


@every_guidance
def test_guidance_of_a_model_with_memory_remembers(name):
    """The second call differs from the first, though x_t and t are the same."""
    stateful = build("momentum", 3.0)
    guided = GUIDANCE[name](stateful, stateful, 0.7, PATH)
    # Inside of the interval of times and thresholds, so that all models count.
    x, t = jnp.asarray(0.3 * X), jnp.float32(0.5)

    @jit_once
    def twice(x):
        first, memory = guided.apply(x, t, guided.init(x))
        return first, guided.apply(x, t, memory)[0]

    first, second = twice(x)
    assert (jnp.abs(second - first) > 1e-4).any()
