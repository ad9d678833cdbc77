"""Laws of every kind of prediction, on every path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import KINDS, PATHS, each, inner_times, jit_once

from genlib import noise, prediction
from genlib.tree import register_dataclass

every_path = pytest.mark.parametrize("path", **each(PATHS))
every_source = pytest.mark.parametrize("source", **each(KINDS))

X_0 = np.array([[0.7, -1.2], [0.1, 0.4], [-2.0, 0.3]], np.float32)
EPS = np.array([[-0.3, 0.9], [1.1, -0.8], [0.2, 1.7]], np.float32)


@register_dataclass
@dataclasses.dataclass
class Around(noise.Path):
    """A path near given times; as these are arguments, one program serves all."""

    t: jax.Array
    marginal: noise.Marginal
    rate: noise.Marginal
    t_min: jax.Array
    t_max: jax.Array

    def __call__(self, t):
        at = lambda value, rate: value + rate * (t - self.t)
        return noise.Marginal(*map(at, self.marginal, self.rate))


def around(path, t):
    ends = (jnp.asarray(end, t.dtype) for end in (path.t_min, path.t_max))
    return Around(t, *noise.marginal_and_rate(path, t), *ends)


@jit_once
def all_conversions(path, values, x_t, t):
    """Return {(source, target): converted} for all pairs."""
    return {
        f"{source} to {target}": prediction.convert(
            path, value, x_t, t, KINDS[source], KINDS[target]
        )
        for source, value in values.items()
        for target in KINDS
    }


@every_path
def test_all_conversions(path, x64):
    t = jnp.asarray(inner_times(path, 4), jnp.float64)
    x_0, eps = jnp.asarray(X_0, jnp.float64), jnp.asarray(EPS, jnp.float64)
    x_t = noise.perturb(path, x_0, eps, t)
    true = {k: prediction.target(path, x_0, eps, t, v) for k, v in KINDS.items()}
    converted = all_conversions(around(path, t), true, x_t, t)
    assert len(converted) == len(KINDS) ** 2
    for pair, got in converted.items():
        want = true[pair.split(" to ")[1]]
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9, err_msg=pair)


@every_path
@pytest.mark.parametrize("end", ["data", "noise"])
def test_conversions_at_the_ends(path, end):
    """Exact where the limit exists; refused, or 0 under jit, where it does not."""
    t = jnp.float32(path.t_min if end == "data" else path.t_max)
    alpha, sigma = path(t)
    x_t = noise.perturb(path, X_0, EPS, t)
    true = {}
    for name, kind in KINDS.items():
        if name in ("score", "consistency") and sigma == 0:
            with pytest.raises(ValueError, match="is infinite"):
                prediction.target(path, X_0, EPS, t, kind)
        else:
            true[name] = prediction.target(path, X_0, EPS, t, kind)
    values = {k: true.get(k, jnp.zeros_like(x_t)) for k in KINDS}
    here = around(path, t)
    traced = all_conversions(here, values, x_t, t)

    for pair, from_jit in traced.items():
        source, target = pair.split(" to ")
        assert jnp.isfinite(from_jit).all(), pair
        same = source == target
        silent = source in ("eps", "score") and target not in ("eps", "score")
        silent = (silent and alpha == 0) or (source == "x0" and sigma == 0)
        infinite = target in ("score", "consistency") and sigma == 0
        arguments = here, values[source], x_t, t, KINDS[source], KINDS[target]
        if not same and (silent or infinite):
            with pytest.raises(ValueError, match=r"not determined|infinite"):
                prediction.convert(*arguments)
            assert (from_jit == 0).all()
        elif same:
            np.testing.assert_array_equal(
                prediction.convert(*arguments), values[source]
            )
        elif source in true or target == "x0":
            got = prediction.convert(*arguments)
            # Near alpha = 0, x_0 from eps amplifies the rounding of x_t by 1 / alpha.
            rounding = 2e-5 + (5e-7 / alpha if alpha > 0 else 0)
            for value in (got, from_jit):
                np.testing.assert_allclose(
                    value, true[target], rtol=2e-4, atol=rounding, err_msg=pair
                )


@every_path
@every_source
def test_denoiser_inverts_an_exact_network(path, source):
    t = inner_times(path, 4)
    x_t = noise.perturb(path, X_0, EPS, t)
    denoise = prediction.denoiser(
        lambda x, t_in: prediction.target(path, X_0, EPS, t, source), path, source
    )
    np.testing.assert_allclose(denoise(x_t, t), X_0, rtol=2e-3, atol=2e-3)
    assert denoise(x_t.astype(jnp.bfloat16), t).dtype == jnp.bfloat16
    assert jax.eval_shape(denoise, x_t, jnp.float32(t[0])).shape == x_t.shape


@every_source
def test_network_sees_batched_times_even_from_a_scalar(source):
    seen = []

    def predict(x, t):
        seen.append((x.shape, t.shape))
        return x

    prediction.denoiser(predict, noise.Cosine(), source)(jnp.ones((3, 2)), 0.5)
    assert seen == [((3, 2), (3,))]


@every_source
def test_gradients_are_finite_at_both_ends(source):
    path = noise.Cosine()
    for t in (0.0, 1.0):
        loss = lambda v, t=t: jax.jit(
            lambda v, t: prediction.convert(
                path, v, jnp.ones_like(v), t, source, prediction.X0
            ).sum()
        )(v, t)
        assert jnp.isfinite(jax.grad(loss)(jnp.ones((2, 2)))).all()
