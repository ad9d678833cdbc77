"""Residual flows against matrices, whose determinants are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once, traced_once

from genlib import flows

LINEAR = flows.Conditioner(
    init=lambda key, x, features, cond=None: jnp.zeros((features, features)),
    apply=lambda params, x, features, cond=None: x @ params.T,
)
# A rotation, then tanh: Lipschitz constant 1, whatever the parameter is.
CURVED = flows.Conditioner(
    init=lambda key, x, features, cond=None: {"angle": jnp.zeros(())},
    apply=lambda params, x, features, cond=None: jnp.tanh(
        x @ _rotation(params["angle"]) + cond
    ),
)
A = np.array([[0.3, -0.2], [0.1, 0.4]])
LOG_DET = 0.609766


def _rotation(angle):
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])


def linear(coefficient=0.5, **settings):
    """The flow x + A x, if the parameters are A / coefficient."""
    return flows.residual(LINEAR, coefficient=coefficient, **settings)


def test_the_series_of_a_matrix():
    """T12: n = 2, 4, 8 terms and all of them; gradients are those of the same terms."""
    flow = [linear(log_det="series", terms=terms) for terms in (2, 4, 8)] + [linear()]

    def log_det(params, index):
        return flow[index].forward(params, jnp.ones((3, 2)))[1]

    def truncated(a, terms):
        powers, total = jnp.eye(2), 0.0
        for k in range(1, terms + 1):
            powers = powers @ a
            total = total - (-1) ** k * jnp.trace(powers) / k
        return total

    @jit_once
    def run(a):
        got = [log_det(a / 0.5, index) for index in range(4)]
        slopes = [jax.grad(lambda a, i=i: log_det(a / 0.5, i)[0])(a) for i in range(4)]
        want = [jax.grad(truncated)(a, terms) for terms in (2, 4, 8)]
        return got, slopes, [*want, jnp.linalg.inv(jnp.eye(2) + a).T]

    got, slopes, want = run(jnp.float32(A))
    golden = [[0.595] * 3, [0.610108] * 3, [0.609790] * 3, [LOG_DET] * 3]
    np.testing.assert_allclose(got, golden, atol=1e-6)
    np.testing.assert_allclose(slopes, want, atol=1e-6)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_the_roulette_is_unbiased(trace):
    """T12, within three standard errors, for log_det and for its gradient."""
    flow = linear(log_det="roulette", trace=trace, terms=1)
    x = jnp.zeros((300, 2))

    def log_det(a, key):
        return flow.forward(a / 0.5, x, key=key)[1]

    @jit_once
    def run(keys, a):
        slope = jax.grad(lambda a, key: log_det(a, key).mean())
        return jax.lax.map(lambda key: (log_det(a, key), slope(a, key)), keys)

    keys = jax.random.split(jax.random.key(0), 64)
    got, slopes = jax.tree.map(np.float64, run(keys, jnp.float32(A)))
    values = got.ravel()
    error = values.std() / np.sqrt(values.size)
    assert 1e-4 < error < 5e-3
    assert abs(values.mean() - LOG_DET) < 3 * error
    want = np.linalg.inv(np.eye(2) + A).T
    error = slopes.std(0) / np.sqrt(64)
    assert (np.abs(slopes.mean(0) - want) < 3 * error).all()
    assert error.max() < 0.02


def test_the_estimate_of_an_example_is_its_own():
    """The key decides: not the batch around it, nor the direction, nor compilation."""
    flow = linear(log_det="roulette", trace="hutchinson")
    model = flows.density(flows.chain(flow))
    params, x = jnp.float32(A / 0.5), jnp.ones((6, 2))

    @jit_once
    def run(key):
        y, log_det = flow.forward(params, x, key=key)
        alone = flow.forward(params, x[:1], key=key)[1]
        whole = model.log_prob({"flow": {"0": params}}, x, key=key)
        return y, log_det, alone, whole, *flow.inverse(params, y, key=key)

    y, log_det, alone, whole, back, log_det_back = run(jax.random.key(3))
    assert len(set(log_det.tolist())) > 2
    np.testing.assert_allclose(alone, log_det[:1], rtol=1e-6)
    np.testing.assert_allclose(back, x, atol=1e-6)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-5)
    estimates = whole + np.log(2 * np.pi) + 0.5 * np.square(y).sum(1)
    assert len({round(value, 4) for value in estimates.tolist()}) > 2


@pytest.mark.parametrize("iterations", [1, 10])
def test_the_error_of_the_inverse_falls_by_the_coefficient(iterations, x64):
    """For g(x) = c x the bound c^n |g(x)| is met exactly."""
    flow = linear(0.8, iterations=iterations)
    x = jnp.array([[1.0, -2.0]])
    error = np.abs(jit_once(flow.inverse)(jnp.eye(2), 1.8 * x)[0] - x)
    np.testing.assert_allclose(error, 0.8**iterations * np.abs(0.8 * x), rtol=1e-9)


def test_a_stiff_inverse_ends_within_rounding(x64):
    flow = linear(0.99, iterations=5000)
    x = jnp.array([[1.0, -2.0], [jnp.nan, 0.0]])
    back, log_det = jit_once(flow.inverse)(jnp.eye(2), 1.99 * x)
    np.testing.assert_allclose(back[0], x[0], atol=1e-13)
    np.testing.assert_allclose(log_det[0], -2 * np.log(1.99), rtol=1e-14)
    assert np.isnan(back[1]).all()


def test_the_inverse_has_the_derivatives_of_the_implicit_function(x64):
    x, cond = jnp.array([[0.3, -1.2]]), jnp.array([[0.5, 0.1]])

    def forward(angle, cond, c, x):
        flow = flows.residual(CURVED, coefficient=c)
        y, log_det = flow.forward({"angle": angle}, x, cond)
        return y.ravel(), log_det

    def inverse(angle, cond, c, y):
        flow = flows.residual(CURVED, coefficient=c)
        x, log_det = flow.inverse({"angle": angle}, y, cond)
        return x.ravel(), log_det

    @jit_once
    def run(*args):
        y, _ = forward(*args, x)
        (back, _), pushed = inverse(*args, y[None]), []
        for differentiate in (jax.jacfwd, jax.jacrev):
            pushed.append(differentiate(inverse, (0, 1, 2, 3))(*args, y[None]))
        return back, pushed, jax.jacfwd(forward, (0, 1, 2, 3))(*args, x)

    back, pushed, (moves, log_dets) = run(jnp.array(0.4), cond, jnp.array(0.9))
    np.testing.assert_allclose(back, x[0], atol=1e-14)
    columns = lambda tree: [np.asarray(leaf).reshape(len(leaf), -1) for leaf in tree]
    *moves, jacobian = columns(moves)
    *slopes, slope = columns(log_dets)
    # x(y, theta): dx = J^-1 (dy - y_theta dtheta); log_det changes with both.
    wanted = [-np.linalg.solve(jacobian, move) for move in moves]
    wanted.append(np.linalg.inv(jacobian))
    wanted_log_det = [
        -(direct + slope @ dx)
        for direct, dx in zip([*slopes, 0.0], wanted, strict=True)
    ]
    for got, got_log_det in pushed:
        for a, b in zip(columns(got), wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-13)
        for a, b in zip(columns(got_log_det), wanted_log_det, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-13)


def test_one_number_and_a_swept_coefficient():
    def run(coefficient, key):
        flow = flows.residual(
            LINEAR, coefficient=coefficient, log_det="roulette", keep=0.3
        )
        return flow.forward(jnp.ones((1, 1)), jnp.ones((1, 1)), key=key)

    slope = lambda coefficient, key: run(coefficient, key)[1][0]
    compiled = jit_once(traced_once(lambda *args: (run(*args), jax.grad(slope)(*args))))
    for coefficient in (0.125, 0.25):
        (y, log_det), got = compiled(coefficient, jax.random.key(0))
        assert y.item() == 1 + coefficient
        np.testing.assert_allclose(log_det, np.log1p(coefficient), atol=1e-4)
        np.testing.assert_allclose(got, 1 / (1 + coefficient), atol=1e-3)
    assert compiled._cache_size() <= 1  # 0: forgotten


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficient": 1.0}, "coefficient must be between 0 and 1; it is 1.0"),
        ({"coefficient": 0.0}, "coefficient must be between 0 and 1; it is 0.0"),
        ({"keep": 1.0}, "keep must be between 0 and 1; it is 1.0"),
        ({"log_det": "power"}, 'log_det must be "exact", "series" or "roulette"'),
        ({"log_det": "series", "trace": "sum"}, 'trace must be "exact" or'),
        ({"trace": "hutchinson"}, 'trace must be "exact" where log_det is "exact"'),
        ({"terms": 0}, "terms must be at least 1; it is 0"),
        ({"iterations": 0}, "iterations must be at least 1; it is 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        flows.residual(LINEAR, **settings)


def test_bad_calls_are_refused():
    x = jnp.ones((3, 2))
    wide = LINEAR._replace(
        apply=lambda params, x, features, cond=None: jnp.ones((3, 4))
    )
    with pytest.raises(ValueError, match=r"return the shape \(3, 2\); it returned"):
        flows.residual(wide).forward({}, x)
    with pytest.raises(ValueError, match="y must be a floating batch"):
        linear().inverse(jnp.eye(2), jnp.ones(3))
    with pytest.raises(ValueError, match="key must be given: the estimate"):
        linear(log_det="roulette").inverse(jnp.eye(2), x)
