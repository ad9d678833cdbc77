"""One clear error for each mistake: what it must be, and what it was.

Mistakes in configs, data directories and checkpoints have tables of their own in
`tests/experiments` and `tests/train/test_checkpoint.py`.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from genlib import losses, nn, noise, prediction, samplers

PATH, X = noise.Cosine(), jnp.ones((2, 3))
CHAIN = noise.DiscreteBetas(jnp.full(10, 0.1))
DENOISE = prediction.denoiser(lambda x, t: x, PATH, prediction.V)


def run(times):
    return samplers.sample(samplers.ddim(), DENOISE, PATH, times, X)


def classify(labels):
    model = nn.MLP(3, 4, 1, num_classes=10, rngs=nnx.Rngs(0))
    return model(X, jnp.ones(2), labels)


TABLE = {
    "rank of t": (lambda: DENOISE(X, jnp.ones((2, 1))), r"t must be .*\(2, 1\)"),
    "batch of t": (lambda: DENOISE(X, jnp.ones(3)), r"t must be .*\(3,\)"),
    "t after the path": (lambda: noise.perturb(PATH, X, X, 1.5), r"within .* 1\.5"),
    "t before the path": (lambda: noise.perturb(PATH, X, X, -0.5), r"within .* -0\.5"),
    "t is no number": (lambda: noise.perturb(PATH, X, X, jnp.nan), r"within .* nan"),
    "s after t": (lambda: noise.transition(PATH, 0.5, 0.2), r"s must not be later"),
    "no steps": (lambda: samplers.uniform(PATH, 0), r"steps must be .* 0"),
    "negative steps": (lambda: samplers.karras(PATH, -3), r"steps must be .* -3"),
    "too many steps": (lambda: samplers.trailing(CHAIN, 11), r"at most the 10 .* 11"),
    "grid turns back": (lambda: run([1.0, 0.2, 0.4]), r"must decrease.*0\.4"),
    "grid stands still": (lambda: run([1.0, 0.5, 0.5]), r"must decrease"),
    "grid of one": (lambda: run([1.0]), r"at least two times.*\(1,\)"),
    "grid leaves the path": (lambda: run([1.0, 0.5, -0.1]), r"within .* -0\.1"),
    "unknown prediction": (
        lambda: losses.denoising(
            jax.random.key(0), lambda x, t: x, PATH, X, kind="velocity"
        ),
        r"kind must be .* 'velocity'",
    ),
    "labels outside": (lambda: classify(jnp.array([3, 11])), r"labels must be .* 11"),
    "labels negative": (lambda: classify(jnp.array([3, -1])), r"labels must be .* -1"),
    "labels not whole": (lambda: classify(jnp.array([0.5, 1.0])), r"labels .*float32"),
    "eta": (lambda: samplers.ddim(2.0), r"eta must be .* 2\.0"),
    "network of another shape": (
        lambda: prediction.denoiser(lambda x, t: x[:1], PATH, prediction.V)(X, 0.5),
        r"predict must return the shape \(2, 3\) .*\(1, 3\)",
    ),
    "blind start": (
        lambda: samplers.sample(
            samplers.ddim(),
            prediction.denoiser(lambda x, t: x, PATH, prediction.EPS),
            PATH,
            [1.0, 0.0],
            X,
        ),
        r"X0 is not determined by EPS and x_t at t = 1",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_mistake(name):
    call, message = TABLE[name]
    with pytest.raises(ValueError, match=message):
        call()
