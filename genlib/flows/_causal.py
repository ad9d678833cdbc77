"""Autoregressive flows over tokens, with a network that remembers what it has seen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.flows._bijector import (
    Bijector,
    Params,
    check_features,
    log_det_like,
    wide,
)
from genlib.flows._coupling import raw_numbers
from genlib.flows._univariate import Univariate
from genlib.types import Array, Key


class CausalConditioner(NamedTuple):
    """A network over tokens, of which each row sees the tokens up to its own.

    Any such functions will do; those of `genlib.nn` are Flax networks. Without `start`
    and `step` everything is computed again for every token.

    Attributes:
      init: `(key, x, features, cond=None) -> params`, for tokens like `x` [B, T, C].
      apply: `(params, x, features, cond=None) -> [B, T, features]`; row t depends on
        x_1 ... x_t. It should return zeros at the start.
      start: `(params, x, features, cond=None) -> cache`, a pytree of arrays, before the
        first token; of `x` [B, T, C] only shape and dtype matter.
      step: `(params, cache, x_t, t, features, cond=None) -> (row, cache)`: row t of
        `apply`, [B, features], from token `x_t` [B, C] at place t = 0, 1, ...; `t` is
        traced, and the cache keeps its shapes and dtypes.

    >>> total = CausalConditioner(
    ...     init=lambda key, x, features, cond=None: {},
    ...     apply=lambda params, x, features, cond=None: x.cumsum(1),
    ...     start=lambda params, x, features, cond=None: jnp.zeros_like(x[:, 0]),
    ...     step=lambda params, cache, x_t, t, *_: (cache + x_t, cache + x_t),
    ... )
    >>> total.apply({}, jnp.ones((1, 3, 1)), 1)[0, :, 0].tolist()
    [1.0, 2.0, 3.0]
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    start: Callable[..., Any] | None = None
    step: Callable[..., tuple[Array, Any]] | None = None


def causal(univariate: Univariate, conditioner: CausalConditioner) -> Bijector:
    """Map each token by functions that the tokens before it decide.

        y_t = f(x_t; conditioner(x_1, ..., x_{t-1}, cond))   (arXiv:2412.06329).

    The first token gets zeros for raw numbers, whatever `cond` is: of every family that
    starts at the identity it stays as it is. Reverse the tokens between two such layers
    (`reverse(1)`). log_det is the sum over all tokens and channels.

    `forward` is parallel, one call of the network. `inverse` is sequential, T steps of
    a `lax.scan`; with `start` and `step` of a transformer each costs one token's work
    and a look at the cache, O(T), so all together the arithmetic of one `forward`.
    Without them each is a call of the whole network, T times the arithmetic. A gradient
    through `inverse` keeps what every step has read: O(T^2) memory.

    Args:
      univariate: the family f, such as `affine()`.
      conditioner: see `CausalConditioner`.

    Returns:
      A `Bijector` for tokens x [B, T, C].

    Raises:
      ValueError: if `conditioner` has one of `start` and `step` only, the batch is not
        [B, T, C], or the network returns another shape than it was asked for.

    >>> from genlib import flows
    >>> total = flows.CausalConditioner(  # y_t = x_t + x_1 + ... + x_{t-1}
    ...     init=lambda key, x, features, cond=None: {},
    ...     apply=lambda params, x, features, cond=None: x.cumsum(1),
    ... )
    >>> flow = causal(flows.additive(), total)
    >>> y, _ = flow.forward({}, jnp.ones((1, 3, 1)))
    >>> y[0, :, 0].tolist(), flow.inverse({}, y)[0][0, :, 0].tolist()
    ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    """
    init_network, apply, start, step = conditioner
    if (start is None) != (step is None):
        raise ValueError(
            "conditioner must have both start and step, or neither; it has one"
        )
    if start is None or step is None:
        start, step = _again(apply)

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        features = _tokens(x).shape[-1] * univariate.size
        return init_network(key, x, features, cond)

    def forward(params: Params, x: Array, cond: Any = None) -> tuple[Array, Array]:
        raw = raw_numbers(apply, params, _tokens(x), x.shape, univariate.size, cond)
        raw = raw.astype(wide(x).dtype)
        raw = jnp.concatenate([jnp.zeros_like(raw[:, :1]), raw[:, :-1]], 1)
        y, log_det = univariate.forward(raw, wide(x))
        return y.astype(x.dtype), log_det_like(x, log_det)

    def inverse(params: Params, y: Array, cond: Any = None) -> tuple[Array, Array]:
        batch, length, channels = _tokens(y).shape
        features = channels * univariate.size

        def body(carry: Any, scanned: Any) -> Any:
            raw, cache = carry
            t, y_t = scanned
            shaped = raw.reshape(*y_t.shape, univariate.size)
            x_t, log_det = univariate.inverse(shaped, wide(y_t))
            x_t = x_t.astype(y.dtype)
            row, cache = step(params, cache, x_t, t, features, cond)
            return (row.astype(raw.dtype), cache), (x_t, log_det)

        first = jnp.zeros((batch, features), wide(y).dtype)
        cache = start(params, y, features, cond)
        places = (jnp.arange(length), y.swapaxes(0, 1))
        _, (x, log_det) = jax.lax.scan(body, (first, cache), places)
        return x.swapaxes(0, 1), log_det_like(y, log_det.swapaxes(0, 1))

    return Bijector(init, forward, inverse)


def _again(apply: Callable[..., Array]) -> tuple[Callable[..., Any], ...]:
    """Return `start` and `step` for which the tokens themselves are the cache."""

    def start(params: Params, x: Array, features: int, cond: Any = None) -> Array:
        return jnp.zeros_like(x)

    def step(
        params: Params, cache: Array, x_t: Array, t: Array, features: int, cond: Any
    ) -> tuple[Array, Array]:
        cache = cache.at[:, t].set(x_t)
        return apply(params, cache, features, cond)[:, t], cache

    return start, step


def _tokens(x: Array) -> Array:
    if check_features("x", x, 3).ndim != 3:
        raise ValueError(f"x must be tokens [B, T, C]; its shape is {x.shape}")
    return x
