"""Planar and radial flows: one bump of a whole vector, along a plane or a centre."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows._bijector import (
    Bijector,
    Conditioner,
    Params,
    check_conditioner,
    check_features,
    log_det_like,
    wide,
)
from genlib.flows._root import increasing_root
from genlib.flows._spline import soft_limit
from genlib.types import Array, Key, safe_sqrt


def planar(conditioner: Conditioner | None = None) -> Bijector:
    """Push points across a plane.

        y = x + u' tanh(w.x + b),  u' = u / (1 + softplus(-w.u))
                                                        (arXiv:1505.05770, eq. 10).

    The paper makes the map invertible by another u' (its appendix A.1); this one has
    w.u' > -1 too, but nothing in it divides by |w|. It starts as the identity, u = 0,
    at a random plane.

    The inverse is iterative: one increasing equation for w.x of each vector, in
    parallel, 32 evaluations of a tanh in float32, 61 in float64.

    Args:
      conditioner: if given, it sees `cond` [B, C] in the place of x, and its 2 D + 1
        numbers, (b, u, w), are added to the trained ones.

    Returns:
      A `Bijector` on the last axis of x [B, ..., D].

    Raises:
      ValueError: if `cond` is missing where it is needed, or not an array [B, C], or
        the conditioner returns another shape than it was asked for.

    >>> layer = planar()
    >>> x = jnp.array([[0.5, -2.0]])
    >>> params = {"w": jnp.ones(2), "u": jnp.ones(2), "b": jnp.zeros(1)}
    >>> y, log_det = layer.forward(params, x)
    >>> [round(number, 4) for number in layer.inverse(params, y)[0][0].tolist()]
    [0.5, -2.0]
    """

    def init(key: Key, dimension: int, dtype: Any) -> Params:
        return {
            "w": jax.random.normal(key, (dimension,), dtype) / dimension**0.5,
            "u": jnp.zeros(dimension, dtype),
            "b": jnp.zeros(1, dtype),
        }

    def direction(params: Params) -> tuple[Array, Array]:
        """Return u' and 1 + w.u', which is between 1e-3 and 1e3."""
        w_u = _dot(params["w"], params["u"])
        smaller = 1 + jnp.abs(w_u) / 1e3
        w_u = w_u / smaller
        one_minus = 1 + jax.nn.softplus(-w_u)
        u = params["u"] / (smaller * one_minus)
        return u, (1 + jax.nn.softplus(w_u)) / one_minus

    def log_slope(z: Array, one_plus: Array) -> Array:
        decay = jnp.exp(-2 * jnp.abs(z))
        slope = 4 * decay / jnp.square(1 + decay)  # 1 - tanh^2 without cancellation
        grows = one_plus >= 1  # each form is used where nothing cancels in it
        more = jnp.where(grows, one_plus - 1, 0.0)
        less = jnp.where(grows, 1.0, one_plus)
        shrunk = jnp.log(jnp.square(jnp.tanh(z)) + slope * less)
        return jnp.where(grows, jnp.log1p(slope * more), shrunk)[..., 0]

    def forward(params: Params, x: Array) -> tuple[Array, Array]:
        u, one_plus = direction(params)
        z = _dot(params["w"], x) + params["b"]
        return x + u * jnp.tanh(z), log_slope(z, one_plus)

    def inverse(params: Params, y: Array) -> tuple[Array, Array]:
        u, one_plus = direction(params)
        b, w_u, w_y = params["b"], one_plus - 1, _dot(params["w"], y)
        w_x = increasing_root(
            lambda w_x: w_x + w_u * jnp.tanh(w_x + b),
            w_y,
            w_y - jnp.abs(w_u),
            w_y + jnp.abs(w_u),
        )
        return y - u * jnp.tanh(w_x + b), -log_slope(w_x + b, one_plus)

    return _vectorwise(init, forward, inverse, conditioner)


def radial(conditioner: Conditioner | None = None) -> Bijector:
    """Push points away from a centre, or towards it.

        y = x + beta (x - c) / (alpha + |x - c|)          (arXiv:1505.05770, eq. 14),

    with alpha = exp(a) and beta = alpha (exp(g) - 1) > -alpha, which makes it
    invertible; a and g are bounded by 7, softly. It starts as the identity, a = g = 0,
    at a random centre. Both directions are closed forms.

    Args:
      conditioner: if given, it sees `cond` [B, C] in the place of x, and its D + 2
        numbers, (a, c, g), are added to the trained ones.

    Returns:
      A `Bijector` on the last axis of x [B, ..., D].

    Raises:
      ValueError: if `cond` is missing where it is needed, or not an array [B, C], or
        the conditioner returns another shape than it was asked for.

    >>> params = {"center": jnp.zeros(2), "alpha": jnp.zeros(1), "gain": jnp.ones(1)}
    >>> x = jnp.array([[0.5, -2.0]])
    >>> y, log_det = radial().forward(params, x)
    >>> [round(number, 4) for number in radial().inverse(params, y)[0][0].tolist()]
    [0.5, -2.0]
    """

    def init(key: Key, dimension: int, dtype: Any) -> Params:
        return {
            "center": jax.random.normal(key, (dimension,), dtype),
            "alpha": jnp.zeros(1, dtype),
            "gain": jnp.zeros(1, dtype),
        }

    def settings(params: Params) -> tuple[Array, Array]:
        """Return alpha and alpha + beta, the slope at the centre times alpha."""
        alpha = jnp.exp(soft_limit(params["alpha"], 7.0))
        return alpha, alpha * jnp.exp(soft_limit(params["gain"], 7.0))

    def log_det(r: Array, alpha: Array, total: Array, dimension: int) -> Array:
        across = jnp.log((total + r) / (alpha + r))
        far = r * (r + 2 * alpha)
        along = jnp.log((far + alpha * total) / (far + alpha * alpha))
        return ((dimension - 1) * across + along)[..., 0]

    def forward(params: Params, x: Array) -> tuple[Array, Array]:
        alpha, total = settings(params)
        offset = x - params["center"]
        r = safe_sqrt(_dot(offset, offset))
        y = params["center"] + offset * ((total + r) / (alpha + r))
        return y, log_det(r, alpha, total, x.shape[-1])

    def inverse(params: Params, y: Array) -> tuple[Array, Array]:
        alpha, total = settings(params)
        offset = y - params["center"]
        distance = safe_sqrt(_dot(offset, offset))
        # r^2 - p r - alpha distance = 0: of the two forms of its positive root the one
        # in which nothing cancels.
        p = distance - total
        root = jnp.sqrt(jnp.square(p) + 4 * alpha * distance)
        top = jnp.where(p > 0, p + root, 2 * alpha * distance)
        r = top / jnp.where(p > 0, 2 * jnp.ones_like(p), root - p)
        x = params["center"] + offset * ((alpha + r) / (total + r))
        return x, -log_det(r, alpha, total, y.shape[-1])

    return _vectorwise(init, forward, inverse, conditioner)


def _vectorwise(
    init: Callable[..., Params],
    forward: Callable[..., tuple[Array, Array]],
    inverse: Callable[..., tuple[Array, Array]],
    conditioner: Conditioner | None,
) -> Bijector:
    """Make a layer of a map of vectors whose parameters may depend on `cond`.

    Args:
      init: `(key, D, dtype) -> params`, a flat dict of arrays [n].
      forward: `(params, x) -> (y, log_det)`, [..., n] and [..., D] to [..., D], [...].
      inverse: its inverse.
      conditioner: or None.
    """
    conditioner = None if conditioner is None else check_conditioner(conditioner)

    def init_layer(key: Key, x: Array, cond: Any = None) -> Params:
        dimension = check_features("x", x).shape[-1]
        key_own, key_network = jax.random.split(key)
        params = init(key_own, dimension, wide(x).dtype)
        if conditioner is not None:
            size = sum(leaf.size for leaf in params.values())
            network = conditioner.init(key_network, _checked_cond(cond, x), size)
            params["network"] = network
        return params

    def settings(params: Params, x: Array, cond: Any) -> Params:
        # Sorted, as `jit` sorts them.
        own = {name: params[name] for name in sorted(params) if name != "network"}
        if conditioner is not None:
            sizes = [leaf.size for leaf in own.values()]
            cond = _checked_cond(cond, x)
            numbers = conditioner.apply(params.get("network", {}), cond, sum(sizes))
            if numbers.shape != (x.shape[0], sum(sizes)):
                raise ValueError(
                    f"conditioner must return the shape {(x.shape[0], sum(sizes))}; it "
                    f"returned {numbers.shape}"
                )
            parts = jnp.split(numbers, list(itertools.accumulate(sizes))[:-1], -1)
            own = {
                name: part + leaf[None]
                for (name, leaf), part in zip(own.items(), parts, strict=True)
            }
        inner = (1,) * (x.ndim - 2)
        return {
            name: leaf.reshape(-1, *inner, leaf.shape[-1]).astype(wide(x).dtype)
            for name, leaf in own.items()
        }

    def move(function: Callable[..., tuple[Array, Array]]) -> Callable[..., Any]:
        def apply(params: Params, x: Array, cond: Any = None) -> tuple[Array, Array]:
            check_features("x", x)
            moved, log_det = function(settings(params, x, cond), wide(x))
            return moved.astype(x.dtype), log_det_like(log_det, log_det)

        return apply

    return Bijector(init_layer, move(forward), move(inverse))


def _checked_cond(cond: Any, x: Array) -> Array:
    if cond is None or jnp.ndim(cond) != 2 or cond.shape[0] != x.shape[0]:
        what = "None" if cond is None else f"of shape {jnp.shape(cond)}"
        raise ValueError(f"cond must be an array [{x.shape[0]}, C]; it is {what}")
    return cond


def _dot(a: Array, b: Array) -> Array:
    """Return the products over the last axis, [..., 1]."""
    return (a * b).sum(-1, keepdims=True)
