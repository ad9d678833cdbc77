"""Planar and radial flows: inverses, determinants, and what they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import flows

LAYERS = {"planar": flows.planar, "radial": flows.radial}
# Numbers from cond alone: a linear map that starts at zero.
LINEAR = flows.Conditioner(
    lambda key, x, features, cond=None: jnp.zeros((x.shape[-1], features)),
    lambda params, x, features, cond=None: x @ params,
)


def strong(name: str, sign: float) -> dict[str, np.ndarray]:
    """Parameters at the edge of invertibility: w.u = -11, or exp(g) = 0.06."""
    w = np.array([1.0, -2.0, 0.5])
    if name == "planar":
        return {"w": w, "u": sign * 2 * w + [0.5, 0.0, 0.0], "b": np.array([0.3])}
    return {
        "center": np.array([0.2, -0.1, 0.4]),
        "alpha": np.array([0.5]),
        "gain": np.array([sign * 5.0]),
    }


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_log_det_and_inverse(name, sign):
    """slogdet of the Jacobian to 1e-9, both ways, at the centre and far away too."""
    layer = LAYERS[name]()
    rng = np.random.default_rng(0)

    def both(params, x):
        y, log_det = layer.forward(params, x)
        jacobian = jax.vmap(jax.jacfwd(lambda x: layer.forward(params, x[None])[0][0]))
        total = lambda y: sum(part.sum() for part in layer.inverse(params, y))
        exact = jnp.linalg.slogdet(jacobian(x))
        return log_det, exact, layer.inverse(params, y), jax.grad(total)(y)

    x = rng.normal(size=(6, 3)) * np.array([[1, 1, 1, 5, 1e3, 1]]).T
    x[5] = strong("radial", sign)["center"]
    with jax.enable_x64(True):
        log_det, exact, inverse, gradient = jit_once(both)(strong(name, sign), x)
    np.testing.assert_array_equal(exact[0], 1)
    np.testing.assert_allclose(log_det, exact[1], atol=1e-9)
    np.testing.assert_allclose(inverse[0], x, atol=1e-9)
    np.testing.assert_allclose(inverse[1], -log_det, atol=1e-9)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LAYERS)
def test_starts_as_the_identity_and_learns(name):
    """The first step has somewhere to go, with and without a conditioner."""
    x = jax.random.normal(jax.random.key(1), (8, 4, 3), jnp.bfloat16)
    cond = np.ones((8, 2), np.float32)

    @jit_once
    def start(key, x, cond):
        results = []
        for layer, given in ((LAYERS[name](), None), (LAYERS[name](LINEAR), cond)):

            def loss(params, layer=layer, given=given):
                y, log_det = layer.forward(params, x.astype(jnp.float32), given)
                return jnp.square(y).sum() / 2 - log_det.sum()

            params = layer.init(key, x, given)
            results.append((layer.forward(params, x, given), jax.grad(loss)(params)))
        return results

    for (y, log_det), slopes in start(jax.random.key(0), x, cond):
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(log_det, np.zeros(8))
        assert max(np.abs(slope).max() for slope in jax.tree.leaves(slopes)) > 0.1
        assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize("name", LAYERS)
def test_conditional_layer_is_many_layers(name):
    """Each example has the parameters that its cond says, in the documented order."""
    rng = np.random.default_rng(0)
    names = {"planar": ("b", "u", "w"), "radial": ("alpha", "center", "gain")}[name]
    sizes = {"planar": (1, 2, 2), "radial": (1, 2, 1)}[name]
    # Not in that order, as a user may write them.
    own = {key: rng.normal(size=n) for key, n in zip(names, sizes, strict=True)}
    own = dict(reversed(own.items()))
    network, x = rng.normal(size=(3, sum(sizes))), rng.normal(size=(3, 2))
    ends = np.cumsum(sizes)[:-1]
    rows = [dict(zip(names, np.split(row, ends), strict=True)) for row in network]
    rows = [{key: own[key] + row[key] for key in row} for row in rows]

    @jit_once
    def both(rows, x):
        alone = [
            LAYERS[name]().forward(row, x[index : index + 1])
            for index, row in enumerate(rows)
        ]
        params = {**own, "network": network}
        return LAYERS[name](LINEAR).forward(params, x, jnp.eye(3)), alone

    (y, log_det), alone = both(rows, x)
    np.testing.assert_allclose(y, np.concatenate([a for a, _ in alone]), rtol=1e-5)
    exact = np.concatenate([b for _, b in alone])
    np.testing.assert_allclose(log_det, exact, atol=1e-5)


def test_refuses():
    x = jnp.ones((4, 2))
    layer = flows.planar(LINEAR)
    params = layer.init(jax.random.key(0), x, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"cond must be an array \[4, C\]; it is None"):
        layer.forward(params, x)
    with pytest.raises(ValueError, match=r"it is of shape \(3, 3\)"):
        layer.forward(params, x, jnp.ones((3, 3)))
    wrong = flows.radial(
        flows.Conditioner(LINEAR.init, lambda params, x, features, cond=None: x)
    )
    params = wrong.init(jax.random.key(0), x, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"must return the shape \(4, 4\); it"):
        wrong.forward(params, x, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="x must be a floating batch"):
        flows.radial().forward({}, jnp.ones(3))
