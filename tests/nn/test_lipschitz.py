"""Spectral norms, and networks that never stretch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import nn

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MATRICES = {
    "square": RNG.normal(size=(9, 9)),
    "tall": RNG.normal(size=(9, 3)),
    "wide": RNG.normal(size=(3, 9)),
    "orthogonal": np.linalg.qr(RNG.normal(size=(16, 16)))[0],  # the farthest bound
    "rank_one": np.outer(RNG.normal(size=6), RNG.normal(size=5)),
    "tiny": 1e-30 * RNG.normal(size=(4, 4)),
    "huge": 1e30 * RNG.normal(size=(4, 4)),
    "zero": np.zeros((4, 2)),
    "number": np.array([[-2.0]]),
    "complex": RNG.normal(size=(5, 4)) + 1j * RNG.normal(size=(5, 4)),
    "stacked": np.stack([RNG.normal(size=(4, 4)), np.zeros((4, 4)), 1e-20 * np.eye(4)]),
}


def draws(params, scale):
    draw = lambda leaf: jnp.float32(scale * RNG.normal(size=leaf.shape))
    return jax.tree.map(draw, params)


def test_the_bound_is_above_the_norm_and_close():
    single = {
        name: matrix.astype(np.complex64 if name == "complex" else np.float32)
        for name, matrix in MATRICES.items()
    }
    bounds = jit_once(lambda tree: jax.tree.map(nn.spectral_bound, tree))(single)
    for name, matrix in MATRICES.items():
        norm = np.linalg.norm(matrix, 2, axis=(-2, -1))
        rank = min(matrix.shape[-2:])
        assert (bounds[name] >= norm * (1 - 1e-6)).all(), name
        assert (bounds[name] <= norm * rank ** (1 / 256) * (1 + 1e-6)).all(), name


def test_the_gradient_of_the_bound_is_that_of_the_norm():
    """u v^T of the largest singular value, and finite for zeros and for ties."""
    u, _, v = np.linalg.svd(MATRICES["square"])
    flat = [jnp.zeros((3, 3)), jnp.eye(3)]

    @jit_once
    def run(matrices):
        return [jax.grad(nn.spectral_bound)(matrix) for matrix in matrices]

    got, *others = run([jnp.float32(MATRICES["square"]), *flat])
    np.testing.assert_allclose(got, np.outer(u[:, 0], v[0]), atol=1e-3)
    assert all(np.isfinite(leaf).all() for leaf in others)


def test_a_network_never_stretches():
    """Jacobians with respect to x, with parameters far from the start, and cond."""
    network = nn.lipschitz_conditioner(6, 2)
    x, cond = jnp.float32(RNG.normal(size=(20, 3))), jnp.ones((20, 2))
    params = jax.eval_shape(lambda key: network.init(key, x, 3, cond), KEY)
    params = draws(params, 3.0)

    @jit_once
    def run(params, x, cond):
        alone = lambda x, cond: network.apply(params, x[None], 3, cond[None])[0]
        return jax.vmap(alone)(x, cond), jax.vmap(jax.jacfwd(alone))(x, cond)

    y, jacobians = run(params, x, cond)
    norms = np.linalg.norm(jacobians, 2, axis=(1, 2))
    assert 0.1 < norms.max() <= 1 + 1e-6
    assert np.abs(run(params, x, 10 * cond)[0] - y).max() > 1


def test_a_convolution_never_stretches():
    """The norm of the whole linear map of images that are padded with zeros."""
    same = lambda h: h
    network = nn.lipschitz_conditioner(2, 1, kernel_size=3, activation=same)
    shape = (5, 6, 2)
    x = jnp.zeros((1, *shape))
    params = jax.eval_shape(lambda key: network.init(key, x, 2), KEY)

    @jit_once
    def jacobian(params):
        alone = lambda x: network.apply(params, x.reshape(1, *shape), 2).ravel()
        return jax.jacfwd(alone)(jnp.zeros(60))

    for scale in (0.01, 3.0):
        norm = np.linalg.norm(jacobian(draws(params, scale)), 2)
        # Small kernels stay as they are; those of large ones have the norm 1.
        assert norm < 0.1 if scale < 1 else 0.4 < norm <= 1 + 1e-6


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="kernel_size must be positive, got -1"):
        nn.lipschitz_conditioner(kernel_size=-1)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        nn.lipschitz_conditioner(0)
