"""The two integrators against an equation that is solved by hand."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib import ode


def spiral(y, t):
    """dx/dt = i (1 + t) x and a time integral, as a pytree."""
    x, total = y
    turned = jnp.stack([-x[:, 1], x[:, 0]], 1)
    return (1 + t) * turned, jnp.cos(t) * jnp.ones_like(total)


def solution(x, t):
    angle = t + t**2 / 2
    z = np.exp(1j * angle) * (np.asarray(x)[:, 0] + 1j * np.asarray(x)[:, 1])
    return np.stack([z.real, z.imag], 1), np.full(len(z), math.sin(t))


START = np.array([[1.0, 0.0], [0.5, -2.0]])


def test_runge_kutta_has_order_four(x64):
    start, errors = (jnp.asarray(START), jnp.zeros(2)), []
    for steps in (8, 16):
        grid = np.linspace(0.0, 1.5, steps + 1)
        end, total = jit_once(lambda y, t: ode.runge_kutta(spiral, y, t))(start, grid)
        want = solution(START, 1.5)
        errors.append(np.abs(end - want[0]).max())
        np.testing.assert_allclose(total, want[1], rtol=1e-4)
    assert 3.8 < math.log2(errors[0] / errors[1]) < 4.5


def test_adaptive_steps_meet_the_tolerance_forward_and_backward(x64):
    pytest.importorskip("diffrax")
    start = (jnp.asarray(START), jnp.zeros(2))

    @jit_once
    def run(y, tolerance):
        settings = dict(rtol=tolerance, atol=tolerance)
        there, steps = ode.adaptive(spiral, y, 0.0, 1.5, **settings)
        back, _ = ode.adaptive(spiral, there, 1.5, 0.0, **settings)
        return there, back, steps

    coarse, _, few = run(start, 1e-4)
    fine, back, many = run(start, 1e-9)
    want = solution(START, 1.5)
    assert few < many < 200
    assert np.abs(coarse[0] - want[0]).max() < 1e-3
    for got, exact in zip(fine, want, strict=True):
        np.testing.assert_allclose(got, exact, atol=1e-7)
    np.testing.assert_allclose(back[0], START, atol=1e-7)


def test_too_few_steps_are_an_error():
    pytest.importorskip("diffrax")
    run = jax.jit(lambda y: ode.adaptive(lambda y, t: -y, y, 0.0, 50.0, max_steps=2))
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        jax.block_until_ready(run(jnp.ones(1)))


def test_the_worst_example_counts():
    error = {"x": jnp.array([[[1.0], [1.0]], [[7.0], [1.0]]]), "y": jnp.array([0.0, 2])}
    assert ode.worst_rms(error) == 5.0
    gradient = jax.grad(lambda x: ode.worst_rms({"x": x}))(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_missing_diffrax_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install genlib\[adaptive\]"):
        ode.adaptive(lambda y, t: y, jnp.ones(1), 0.0, 1.0)
