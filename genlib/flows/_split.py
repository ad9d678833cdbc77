"""Multi-scale flows: half of the channels become latents early."""

from collections.abc import Sequence
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
from genlib.flows._chain import chain
from genlib.flows._coupling import raw_numbers
from genlib.flows._squeeze import squeeze
from genlib.flows._univariate import affine
from genlib.types import Array, Key, Scalar


def split(
    rest: Bijector, *, prior: Conditioner | None = None, bound: Scalar = 2.0
) -> Bijector:
    """Let half of the channels go on, and leave the others as latents.

        x = (a, b)  ->  (rest(a), (b - mean(a)) exp(-log_scale(a)))
                                     (arXiv:1605.08803, sec. 3.6; arXiv:1807.03039).

    The latents are a tuple, nested where `rest` splits again; a base distribution such
    as `normal()` adds up over its leaves. Without a prior, b stays as it is.

    Args:
      rest: the flow of the first half of the last axis, the larger half if it is odd.
      prior: a conditioner that sees a and emits mean and raw log-scale of b. Zeros are
        the standard normal distribution.
      bound: of |log_scale|, see `affine`.

    Returns:
      A `Bijector` for x [B, ..., C] with parameters {"rest": ..., "prior": ...} without
      empty ones; stochastic if `rest` is. Its inverse is as parallel as that of `rest`.

    Raises:
      ValueError: if there is one channel only.

    >>> from genlib import flows
    >>> z, _ = split(flows.reverse()).forward({}, jnp.arange(4.0)[None])
    >>> z[0].tolist(), z[1].tolist()
    ([[1.0, 0.0]], [[2.0, 3.0]])
    """
    univariate = affine(bound=bound)
    prior = None if prior is None else check_conditioner(prior)

    def halves(x: Array) -> tuple[Array, Array]:
        channels = check_features("x", x).shape[-1]
        if channels < 2:
            raise ValueError(f"x must have at least 2 channels; its shape is {x.shape}")
        kept = channels - channels // 2
        return x[..., :kept], x[..., kept:]

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        a, b = halves(x)
        key_rest, key_prior = jax.random.split(key)
        params = {"rest": rest.init(key_rest, a, cond)}
        if prior is not None:
            params["prior"] = prior.init(key_prior, a, 2 * b.shape[-1], cond)
        return {name: own for name, own in params.items() if jax.tree.leaves(own)}

    def standardise(
        function: Any, params: Params, a: Array, b: Array, cond: Any
    ) -> tuple[Array, Array]:
        if prior is None:
            return b, log_det_like(b, 0.0)
        own = params.get("prior", {})
        raw = raw_numbers(prior.apply, own, a, b.shape, 2, cond)
        moved, log_det = function(raw.astype(wide(b).dtype), wide(b))
        return moved.astype(b.dtype), log_det_like(b, log_det)

    def forward(params: Params, x: Array, cond: Any = None, **key: Any) -> Any:
        a, b = halves(x)
        z, log_det = rest.forward(params.get("rest", {}), a, cond, **key)
        # Standardising is what the univariate undoes: b = mean + scale * noise.
        b, log_det_b = standardise(univariate.inverse, params, a, b, cond)
        return (z, b), log_det + log_det_b

    def inverse(params: Params, y: Any, cond: Any = None, **key: Any) -> Any:
        z, b = y
        a, log_det = rest.inverse(params.get("rest", {}), z, cond, **key)
        b, log_det_b = standardise(univariate.forward, params, a, b, cond)
        return jnp.concatenate([a, b], -1), log_det + log_det_b

    return Bijector(init, forward, inverse, rest.stochastic)


def multi_scale(
    levels: Sequence[Bijector],
    *,
    factor: int = 2,
    order: str = "glow",
    prior: Conditioner | None = None,
    bound: Scalar = 2.0,
) -> Bijector:
    """Compose the levels of an image flow: squeeze, flow, split, and again.

    Each level sees pixels turned into channels and, but for the last, leaves half of
    them behind as latents (arXiv:1605.08803, fig. 4; arXiv:1807.03039, fig. 2).

    Args:
      levels: a flow for each level, the finest first.
      factor: of `squeeze`, at every level.
      order: of `squeeze`.
      prior: of `split`, with parameters of its own at every level.
      bound: of `split`.

    Returns:
      A `Bijector` for x [B, H, W, C], with H and W divisible by factor^levels. Latents
      are nested tuples (rest, b), an array with one level.

    Raises:
      ValueError: without levels, and as `squeeze` and `split`.

    >>> from genlib import flows
    >>> flow = multi_scale([flows.reverse()] * 2)
    >>> rest, b = flow.forward({}, jnp.zeros((5, 8, 8, 1)))[0]
    >>> rest.shape, b.shape
    ((5, 2, 2, 8), (5, 4, 4, 2))
    """
    if not levels:
        raise ValueError("levels must be at least one; there is none")
    flow = chain(squeeze(factor, order), levels[-1])
    for level in reversed(levels[:-1]):
        below = split(flow, prior=prior, bound=bound)
        flow = chain(squeeze(factor, order), level, below)
    return flow
