"""A trained model on another path than it was trained on."""

import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import KINDS, MIXTURE, MORE_PATHS, PATHS, X_UNIT

from genlib import noise, prediction

ALL = PATHS | MORE_PATHS


def exact_network(path, kind):
    """Return the network of a kind that knows the mixture, from what it is shown."""

    def predict(x_in, t_in):
        x_t, t = x_in, t_in
        if isinstance(kind, prediction.EDM):
            t = path.time_at(-8.0 * t_in)  # c_noise is a quarter of ln(sigma / alpha)
            alpha, sigma = path(t)
            x_t = jnp.hypot(sigma, alpha * kind.sigma_data)[:, None] * x_in
        x_0 = MIXTURE.denoiser(path)(x_t, t)
        return prediction.convert(path, x_0, x_t, t, prediction.X0, kind)

    return predict


def check(source, target, kind):
    t = noise.time_at(ALL[target], jnp.array([3.0, 0.2, -1.0, -3.5]))
    x = jnp.asarray(X_UNIT, float)
    trained = prediction.denoiser(exact_network(ALL[source], kind), ALL[source], kind)
    got = prediction.retime(trained, ALL[source], ALL[target])(x, t)
    want = MIXTURE.denoiser(ALL[target])(x, t)
    message = f"{kind} on {source} to {target}"
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=message)


@pytest.mark.parametrize("source", PATHS)
def test_every_pair_of_paths_and_every_kind(source, x64):
    """Each kind goes from each path to another one, and each path to all."""
    kinds = list(KINDS.values())
    first = list(PATHS).index(source)
    for i, target in enumerate(PATHS):
        check(source, target, kinds[(first + i) % len(kinds)])


@pytest.mark.parametrize("name", MORE_PATHS)
def test_further_paths_both_ways(name, x64):
    check(name, "edm", prediction.V)
    check("cosine", name, prediction.Consistency(0.7))
