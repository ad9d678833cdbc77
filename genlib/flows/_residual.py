"""Residual flows: x + g(x) is invertible where g is a contraction."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows import _log_det_series
from genlib.flows._bijector import (
    Bijector,
    Conditioner,
    Params,
    check_conditioner,
    check_features,
    check_key,
    wide,
    with_its_arguments,
)
from genlib.flows._coupling import raw_numbers
from genlib.types import Array, Key, Scalar, concrete, example_keys, expand_like


def residual(
    network: Conditioner,
    *,
    coefficient: Scalar = 0.97,
    log_det: str = "exact",
    trace: str = "exact",
    terms: int = 8,
    keep: Scalar = 0.5,
    iterations: int = 500,
) -> Bijector:
    """Add a contraction: y = x + g(x), g = coefficient * network.

        log det (I + J) = sum_k (-1)^(k+1) tr(J^k) / k,  J = dg/dx
                                                    (i-ResNet, arXiv:1811.00995).

    The network must have Lipschitz constant 1 in x, as `nn.lipschitz_conditioner` has;
    then g has `coefficient`, c. How log_det is computed:

    - "exact": the determinant of J; D products with J for D numbers per example.
    - "series": the first n = `terms` of the series, each one product with J; it misses
      at most D c^(n+1) / ((n + 1) (1 - c)).
    - "roulette": `terms`, and each further one with probability `keep` after the last,
      divided by the probability that it is there (Residual Flow, arXiv:1906.02735):
      unbiased. Its variance is finite if the spectral radius of J is below sqrt(keep).

    The inverse is sequential: x <- y - g(x) from y, whose error falls by c in each of
    at most `iterations` calls of the network: after n it is at most c^n |g(x)| (at the
    default 0.97 and 500, 2e-7 |g(x)|). An example stops early when its rounding errors
    are reached. Gradients of the inverse solve one linear system in the same way.

    Args:
      network: `(x, features=C, cond) -> [B, ..., C]` like x, see `Conditioner`, in its
        own dtype; everything else is at least float32. How it depends on cond is free.
      coefficient: between 0 and 1.
      log_det: "exact", "series" or "roulette".
      trace: of J^k, "exact" by D products each, or "hutchinson", an unbiased estimate
        by one. The probe of an example comes from the key alone.
      terms: at least 1.
      keep: between 0 and 1.
      iterations: at least 1.

    Returns:
      A `Bijector` for x [B, ..., C], stochastic with "roulette" or "hutchinson": its
      log_det is then an estimate, and so is the gradient, by one call more of the
      network (arXiv:1906.02735, section 3.2); neither loop is differentiated.

    Raises:
      ValueError: for another `log_det` or `trace`, "exact" with "hutchinson", a number
        out of its range; when called, if the network returns another shape, or without
        a key where one is needed.

    >>> from genlib import flows
    >>> half = flows.Conditioner(
    ...     init=lambda key, x, features, cond=None: {},
    ...     apply=lambda params, x, features, cond=None: x,
    ... )
    >>> layer = residual(half, coefficient=0.5)
    >>> y, log_det = layer.forward({}, jnp.ones((1, 2)))
    >>> layer.inverse({}, y)[0].round(3), log_det == 2 * jnp.log(1.5)
    (Array([[1., 1.]], dtype=float32), Array([ True], dtype=bool))
    """
    _check(coefficient, log_det, trace, terms, keep, iterations)
    network = check_conditioner(network)

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        return network.init(key, x, check_features("x", x).shape[-1], cond)

    def g(parts: Any, x: Array) -> Array:
        params, cond, factor = parts
        raw = raw_numbers(network.apply, params, x, x.shape, 1, cond)[..., 0]
        return (factor * raw).astype(x.dtype)

    def estimate(parts: Any, x: Array, key: Key | None) -> tuple[Array, Array]:
        if log_det == "exact":
            return _log_det_series.exact(g, parts, x)
        last, probes = jnp.full(len(x), terms), None
        if trace == "hutchinson" or log_det == "roulette":
            keys = example_keys(check_key(key, "the estimate"), x)
            keys, more = jax.vmap(jax.random.split, out_axes=1)(keys)
            if trace == "hutchinson":
                probes = _log_det_series.random_signs(keys, x)
            if log_det == "roulette":
                count = lambda key: jax.random.geometric(key, 1 - keep) - 1
                last = last + jax.vmap(count)(more)
        probes = _log_det_series.basis(x) if probes is None else probes
        return _log_det_series.series(g, parts, x, probes, last, terms, keep)

    def forward(
        params: Params, x: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        start = wide(check_features("x", x))
        moved, change = estimate((params, cond, coefficient), start, key)
        return (start + moved).astype(x.dtype), change

    def inverse(
        params: Params, y: Array, cond: Any = None, key: Key | None = None
    ) -> tuple[Array, Array]:
        parts = (params, cond, coefficient)
        x = _root(functools.partial(g, parts), wide(check_features("y", y)), iterations)
        return x.astype(y.dtype), -estimate(parts, x, key)[1]

    stochastic = trace == "hutchinson" or log_det == "roulette"
    return with_its_arguments(Bijector(init, forward, inverse, stochastic))


def _check(
    coefficient: Scalar,
    log_det: str,
    trace: str,
    terms: int,
    keep: Scalar,
    iterations: int,
) -> None:
    for name, value in (("coefficient", coefficient), ("keep", keep)):
        values = concrete(value)
        if values is not None and not 0 < values < 1:
            raise ValueError(f"{name} must be between 0 and 1; it is {value}")
    if log_det not in ("exact", "series", "roulette"):
        raise ValueError(
            f'log_det must be "exact", "series" or "roulette"; it is {log_det!r}'
        )
    if trace not in ("exact", "hutchinson"):
        raise ValueError(f'trace must be "exact" or "hutchinson"; it is {trace!r}')
    if log_det == "exact" and trace != "exact":
        raise ValueError(
            f'trace must be "exact" where log_det is "exact"; it is {trace!r}'
        )
    for name, count in (("terms", terms), ("iterations", iterations)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1; it is {count}")


def _root(g: Callable[[Array], Array], y: Array, iterations: int) -> Array:
    """Return x with x + g(x) = y, and its derivative by the implicit function."""

    def solve_linear(matvec: Callable[[Array], Array], b: Array) -> Array:
        return _fixed_point(lambda t: b - (matvec(t) - t), b, iterations)

    return jax.lax.custom_root(
        lambda x: x + g(x) - y,
        y,
        lambda _, start: _fixed_point(lambda x: y - g(x), start, iterations),
        lambda matvec, b: jax.lax.custom_linear_solve(
            matvec, b, solve_linear, transpose_solve=solve_linear
        ),
    )


def _fixed_point(
    update: Callable[[Array], Array], start: Array, iterations: int
) -> Array:
    """Iterate x <- update(x), each example until it moves by rounding errors only."""
    largest = lambda x: jnp.abs(x).max(tuple(range(1, x.ndim)))
    rounding = 4 * float(jnp.finfo(start.dtype).eps)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, x, moving = state
        # An example that stands still does not depend on how long others take.
        new = jnp.where(expand_like(moving, x), update(x), x)
        moving = moving & (largest(new - x) > rounding * largest(new))
        return count + 1, new, moving

    state = jnp.zeros((), jnp.int32), start, jnp.ones(len(start), bool)
    unfinished = lambda state: (state[0] < iterations) & state[2].any()
    return jax.lax.while_loop(unfinished, step, state)[1]
