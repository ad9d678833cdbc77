"""Autoregressive layers: each variable moves as the ones before it say."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows._bijector import (
    Bijector,
    Conditioner,
    check_conditioner,
    check_features,
    log_det_like,
    wide,
)
from genlib.flows._coupling import raw_numbers
from genlib.flows._univariate import Univariate
from genlib.types import Array, Key


def autoregressive(univariate: Univariate, conditioner: Conditioner) -> Bijector:
    """Map each variable of the last axis by a function that those before it decide.

        y_i = f(x_i; conditioner(x, cond)_i),  log_det = sum_i log f'(x_i)

    where the i-th of the conditioner's D rows of P numbers may depend on x_1 ...
    x_{i-1} only, as those of `nn.masked_conditioner` do (arXiv:1705.07057, eq. 3-4).

    `forward` calls the conditioner once. THE INVERSE IS SEQUENTIAL: D calls of it, one
    for each variable, under `lax.scan`, and its gradient as many again, with the
    insides of all of them in memory. A layer that samples fast is
    `invert(autoregressive(...))` (IAF, arXiv:1606.04934).

    Args:
      univariate: the family f, such as `affine()` (MAF) or `spline()`.
      conditioner: autoregressive in the last axis, see above. That is not checked:
        with an `mlp_conditioner` densities are wrong without an error.

    Returns:
      A `Bijector` for x [B, ..., D], in the order of the last axis: put a `permute` or
      `reverse` between layers.

    Raises:
      ValueError: if the conditioner returns another shape than it was asked for.

    >>> from genlib import flows
    >>> shift = flows.Conditioner(  # y_i = x_i + x_{i-1}
    ...     init=lambda key, x, features, cond=None: {},
    ...     apply=lambda params, x, features, cond=None: jnp.pad(
    ...         x[:, :-1], ((0, 0), (1, 0))
    ...     ),
    ... )
    >>> layer = autoregressive(flows.additive(), shift)
    >>> layer.forward({}, jnp.array([[1.0, 2.0, 3.0]]))[0]
    Array([[1., 3., 5.]], dtype=float32)
    >>> layer.inverse({}, jnp.array([[1.0, 3.0, 5.0]]))[0]
    Array([[1., 2., 3.]], dtype=float32)
    """
    conditioner, size = check_conditioner(conditioner), univariate.size

    def init(key: Key, x: Array, cond: Any = None) -> Any:
        dimension = check_features("x", x).shape[-1]
        return conditioner.init(key, x, dimension * size, cond)

    def numbers(params: Any, x: Array, cond: Any) -> Array:
        raw = raw_numbers(conditioner.apply, params, x, x.shape, size, cond)
        return raw.astype(wide(x).dtype)

    def forward(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
        raw = numbers(params, check_features("x", x), cond)
        y, log_det = univariate.forward(raw, wide(x))
        return y.astype(x.dtype), log_det_like(x, log_det)

    def inverse(params: Any, y: Array, cond: Any = None) -> tuple[Array, Array]:
        def body(x: Array, scanned: tuple[Array, Array]) -> tuple[Array, Array]:
            # Variables that are not known yet are 0, so that masks meet finite numbers.
            index, y_i = scanned
            raw = numbers(params, x, cond)
            raw = jax.lax.dynamic_index_in_dim(raw, index, -2, keepdims=False)
            x_i, log_det = univariate.inverse(raw, wide(y_i))
            x_i = x_i.astype(x.dtype)
            return jax.lax.dynamic_update_index_in_dim(x, x_i, index, -1), log_det

        columns = jnp.moveaxis(check_features("y", y), -1, 0)
        order = jnp.arange(y.shape[-1])
        x, log_dets = jax.lax.scan(body, jnp.zeros_like(y), (order, columns))
        return x, log_det_like(y, jnp.moveaxis(log_dets, 0, -1))

    return Bijector(init, forward, inverse)
