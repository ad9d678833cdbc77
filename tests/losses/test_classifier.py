"""The loss of a classifier of noisy data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import MIXTURE, jit_once

from genlib import losses, noise


def labelled(key, count):
    """Draw from the mixture together with the component of each draw."""
    key_label, key_eps = jax.random.split(key)
    labels = jax.random.choice(key_label, 3, (count,), p=jnp.asarray(MIXTURE.weights))
    eps = jax.random.normal(key_eps, (count, 2))
    means, stds = (jnp.asarray(c, jnp.float32) for c in (MIXTURE.means, MIXTURE.stds))
    return means[labels] + stds[labels][:, None] * eps, labels


@pytest.mark.parametrize("path", [noise.Cosine(), noise.EDM(5.0), noise.Rectified()])
def test_the_posterior_is_the_optimum(path, key):
    """p(label | x_t) of the mixture: every gradient there is noise."""
    count = 20_000

    def loss(change):
        def logits(x, t):
            exact = jnp.log(MIXTURE.responsibilities(x, *path(t)) + 1e-30)
            rows = jnp.arange(3.0)[None]
            return (
                (1 + change[0]) * exact + change[1] * rows + change[2] * rows * x[:, :1]
            )

        data = labelled(jax.random.key(1), count)
        return losses.classification(key, logits, path, *data)

    value, gradient = jit_once(lambda a: (loss(a), jax.jacfwd(loss)(a)))(jnp.zeros(3))
    error = gradient.std(0) / np.sqrt(count)
    assert (abs(gradient.mean(0)) < 4 * error).all()
    assert (error < 0.02).all()
    assert 0.05 < value.mean() < np.log(3)  # neither certain nor ignorant


def test_by_hand(key):
    x_0, labels = jnp.ones((2, 4, 4, 1)), jnp.array([2, 0])
    scores = jnp.array([[0.1, -2.0, 3.0], [1.0, 0.0, -1.0]])
    seen = []

    def logits(x, t):
        seen.append((x, t))
        return scores

    path = noise.Cosine()
    loss = losses.classification(key, logits, path, x_0, labels)
    want = [-np.log(np.exp(3) / np.exp(scores[0]).sum())]
    want += [-np.log(np.exp(1) / np.exp(scores[1]).sum())]
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    (x_t, t), eps = seen[0], jax.random.normal(jax.random.split(key)[1], x_0.shape)
    np.testing.assert_allclose(x_t, noise.perturb(path, x_0, eps, t), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(dtype, key, x64):
    x_0, labels = jnp.ones((2, 3), dtype), jnp.array([0, 1])
    loss = losses.classification(key, lambda x, t: x, noise.Cosine(), x_0, labels)
    assert loss.dtype == jnp.promote_types(dtype, "float32")
    assert loss.shape == (2,)


def test_labels_that_are_no_class(key):
    x, path, even = jnp.ones((2, 3)), noise.Cosine(), lambda x, t: jnp.zeros((2, 4))
    call = lambda labels, logits=even: losses.classification(
        key, logits, path, x, labels
    )
    for wrong in (-1, 4):
        with pytest.raises(
            ValueError, match=rf"labels must be within 0 \.\. 3.* {wrong}"
        ):
            call(jnp.array([0, wrong]))
        loss = jax.jit(call)(jnp.array([0, wrong]))
        assert jnp.isnan(loss).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"labels must be 2 integers.*float32"):
        call(jnp.ones(2))
    with pytest.raises(ValueError, match=r"labels must be 2 integers.*\[3\]"):
        call(jnp.zeros(3, int))
    with pytest.raises(
        ValueError, match=r"logits must return \[B, K\] with B = 2.*\[4"
    ):
        call(jnp.zeros(2, int), lambda x, t: jnp.zeros(4))
