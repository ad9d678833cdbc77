"""Continuous flows against linear equations, whose solution is known."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from laws.registry import jit_once

from genlib import flows

LINEAR = flows.VectorField(
    init=lambda key, x, cond=None: jnp.zeros((x.shape[-1], x.shape[-1])),
    apply=lambda params, x, t, cond=None: x @ params.T,
)
# Not linear, not the same at all times, and told by cond where to go.
CURVED = flows.VectorField(
    init=lambda key, x, cond=None: jnp.zeros((x.shape[-1], x.shape[-1])),
    apply=lambda params, x, t, cond=None: jnp.tanh(x @ params + (1 + t) * cond),
)
A = np.array([[0.1, 0.5], [-0.4, 0.2]])
X = np.random.default_rng(0).normal(size=(7, 2))


def test_a_linear_equation_is_solved_by_the_matrix_exponential():
    """Trace 0.3 and T = 1: log_det is 0.3 for every x (T11)."""
    flow = flows.continuous(LINEAR)

    @jit_once
    def run(params, x):
        y, log_det = flow.forward(params, x)
        return y, log_det, *flow.inverse(params, y)

    y, log_det, back, log_det_back = run(jnp.float32(A), jnp.float32(X))
    np.testing.assert_allclose(y, X @ scipy.linalg.expm(A).T, atol=6e-7)
    np.testing.assert_allclose(back, X, atol=1e-6)
    np.testing.assert_allclose(log_det, 0.3, atol=1e-6)
    np.testing.assert_allclose(log_det_back, -0.3, atol=1e-6)


def test_adaptive_steps_solve_it_too():
    pytest.importorskip("diffrax")
    flow = flows.continuous(LINEAR, steps=None, rtol=1e-6, atol=1e-6)
    x, log_det = jit_once(flow.inverse)(jnp.float32(A), jnp.float32(X))
    np.testing.assert_allclose(x, X @ scipy.linalg.expm(-A).T, atol=1e-5)
    np.testing.assert_allclose(log_det, -0.3, atol=1e-6)


def test_hutchinsons_probe_stays_the_same_throughout_a_solve():
    """A probe v gives 0.3 + (0.5 - 0.4) v_1 v_2: 0.2 or 0.4, and 0.3 on average."""
    flow = flows.continuous(LINEAR, steps=4, divergence="hutchinson")
    assert flow.stochastic

    @jit_once
    def run(key, params, x):
        y, log_det = flow.forward(params, x, key=key)
        _, log_det_back = flow.inverse(params, y, key=key)
        return log_det, log_det_back, flow.forward(params, x[:2], key=key)[1]

    x = jnp.float32(np.random.default_rng(1).normal(size=(4000, 2)))
    log_det, log_det_back, first = run(jax.random.key(0), jnp.float32(A), x)
    from_mean = np.abs(np.asarray(log_det) - 0.3)
    np.testing.assert_allclose(from_mean, 0.1, atol=1e-6)
    assert abs(np.mean(log_det) - 0.3) < 3 * 0.1 / np.sqrt(4000)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-6)
    np.testing.assert_array_equal(first, log_det[:2])


def test_recomputation_changes_no_gradient():
    x, cond = jnp.float32(X), jnp.float32(X[::-1].copy())

    @jit_once
    def run(*args):
        def loss(params, x, cond, t_end, remat):
            flow = flows.continuous(CURVED, t_end=t_end, steps=6, remat=remat)
            y, log_det = flow.forward(params, x, cond)
            return jnp.sum(y[:, 0] * jnp.cos(y[:, 1])) + log_det @ jnp.cos(log_det)

        return [jax.grad(loss, (0, 1, 2, 3))(*args, remat) for remat in (False, True)]

    plain, again = run(jnp.float32(A), x, cond, jnp.float32(0.7))
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(a).max() > 0.1


def test_it_has_a_density():
    """N(0, I) carried back by exp(-2 A) is a normal distribution."""
    model = flows.density(flows.continuous(LINEAR, t_end=2.0))
    x = jnp.float32(X)
    root = scipy.linalg.expm(-2 * A)
    want = scipy.stats.multivariate_normal(cov=root @ root.T).logpdf(X)
    got = jit_once(model.log_prob)({"flow": jnp.float32(A)}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_one_number_in_bfloat16():
    flow = flows.continuous(LINEAR, steps=4)
    x = jnp.ones((1, 1), jnp.bfloat16)
    y, log_det = flow.forward(jnp.full((1, 1), 0.25), x)
    assert (y.dtype, y[0, 0]) == (jnp.bfloat16, jnp.exp(0.25).astype(jnp.bfloat16))
    np.testing.assert_allclose(log_det, 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t_end": 0.0}, "t_end must be positive; it is 0.0"),
        ({"divergence": "trace"}, 'divergence must be "exact" or "hutchinson"'),
        ({"steps": 0}, "steps must be at least 1 or None; it is 0"),
        ({"rtol": 1e-3}, r"steps must be None to take \['rtol'\]; it is 16"),
        ({"steps": None, "remat": True}, "remat must be False with adaptive steps"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        flows.continuous(LINEAR, **settings)


def test_bad_calls_are_refused(monkeypatch):
    x = jnp.ones((3, 2))
    scalar = LINEAR._replace(apply=lambda params, x, t, cond=None: x[:, 0])
    with pytest.raises(ValueError, match=r"field must return the shape of x, \(3, 2\)"):
        flows.continuous(scalar).forward({}, x)
    with pytest.raises(ValueError, match="x must be a floating batch"):
        flows.continuous(LINEAR).forward(jnp.eye(2), jnp.ones((3, 2), int))
    estimated = flows.continuous(LINEAR, divergence="hutchinson")
    with pytest.raises(ValueError, match="key must be given: Hutchinson's estimate"):
        estimated.forward(jnp.eye(2), x)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install genlib\[adaptive\]"):
        flows.continuous(LINEAR, steps=None).forward(jnp.eye(2), x)
