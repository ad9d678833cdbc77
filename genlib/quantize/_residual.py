"""Quantizers one after the other: residual vector quantisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._codebook import Statistics
from genlib.quantize._estimators import straight_through
from genlib.quantize._grouped import check_axis, update_stack
from genlib.quantize._keys import stage_counts
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_indices,
    check_mask,
    check_vectors,
    without_masked,
)
from genlib.quantize._vector import Estimator
from genlib.types import Array, ArrayLike, Key, Scalar, concrete, expand_like


def residual(
    quantizer: Quantizer,
    depth: int,
    *,
    shared: bool = False,
    dropout: Scalar = 0.0,
    keep: int = 1,
    estimator: Estimator | None = straight_through,
) -> Quantizer:
    """Return a quantizer whose stages each quantise what the earlier ones left.

    r_1 = z, r_{i+1} = r_i - sg(q_i(r_i)), codes = sum_i q_i(r_i) (arXiv:2107.03312). Of
    the losses, sums over the stages, each stage's has a gradient in z. The gradient of
    the codes is that of one quantisation, not the sum of those of all stages.

    Args:
      quantizer: of one stage.
      depth: how many stages, S. They run in a scan: compile time does not grow.
      shared: whether one codebook serves all stages, with the sum of their statistics
        and new codes proposed by one stage at random; else parameters are stacked on
        axis 0.
      dropout: with a key, the probability that an example (an entry of the first axis
        of z) uses only the first n stages, n uniform in keep .. S. The others give it
        index -1, code 0, no loss and no statistics.
      keep: the least n.
      estimator: of the gradient of the sum in z; with None it is that of the first
        stage, for quantizers with a gradient of their own, `fsq` and `gumbel`, and the
        codes of every stage are trained through their sum.

    Returns:
      A `Quantizer` with indices [..., S] and perplexity [S], each stage initialised on
      what the earlier ones leave. `lookup` of indices set to -1 from a stage on decodes
      the stages before it.

    Raises:
      ValueError: if `depth` is less than 1, `keep` not within 1 .. depth, or `dropout`
        not within [0, 1].

    >>> from genlib import quantize
    >>> z = jnp.eye(4)
    >>> quantizer = quantize.residual(quantize.gumbel(8), 3, estimator=None)
    >>> quantizer.quantize(quantizer.init(jax.random.key(0), z), z).indices.shape
    (4, 3)
    """
    _check_stages(depth, keep, dropout)

    def init(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        z = check_vectors(z)
        mask = check_mask(mask, z.shape[:-1])
        keys = jax.random.split(key, depth + 1)
        x = without_masked(z, mask)
        params, inputs = _fit(quantizer, keys[1:], x, mask, axis_name)
        if not shared:
            return params
        # One codebook for all the scales that stages of their own would have met.
        if mask is not None:
            mask = jnp.broadcast_to(mask[..., None], inputs.shape[:-1])
        return quantizer.init(keys[0], inputs, mask=mask, axis_name=axis_name)

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        z = check_vectors(z)
        mask = check_mask(mask, z.shape[:-1])
        x = without_masked(z, mask)
        keys = used = proposer = None
        if key is not None:
            draw_key, choice_key, stage_key = jax.random.split(key, 3)
            keys = jax.random.split(stage_key, depth)
            proposer = jax.random.randint(choice_key, (), 0, depth) if shared else None
            used = stage_counts(draw_key, len(x), depth, dropout, keep, axis_name)

        def call(number: Array, own: Params, key: Any, left: Array) -> Quantized:
            own = params if shared else own
            active = _active(mask, used, number, x)
            return quantizer.quantize(
                own, left, mask=active, key=key, axis_name=axis_name
            )

        rows = (jnp.arange(depth), None if shared else params, keys)
        total, made = _run(call, rows, x, proposer, estimator is None)
        codes = total if estimator is None else estimator(x, total)
        statistics = made.statistics
        if shared:
            statistics = jax.tree.map(lambda leaf: leaf.sum(0), statistics)
        return made._replace(codes=codes.astype(z.dtype), statistics=statistics)

    def lookup(params: Params, indices: ArrayLike) -> Array:
        indices = check_axis("depth", depth, check_indices(indices, quantizer.size))
        rows = (None if shared else params, jnp.moveaxis(indices, -1, 0))
        each = lambda row: quantizer.lookup(params if shared else row[0], row[1])
        return _sum_codes(each, rows)

    def update(params: Params, statistics: Any) -> Params:
        return update_stack(quantizer, params, statistics, shared)

    return Quantizer(init, quantize, lookup, update, quantizer.size)


def _check_stages(depth: int, keep: int, dropout: Scalar) -> None:
    if depth < 1:
        raise ValueError(f"depth must be at least 1; it is {depth}")
    if not 1 <= keep <= depth:
        raise ValueError(f"keep must be within 1 .. {depth}, the depth; it is {keep}")
    rate = concrete(dropout)
    if rate is not None and not ((rate >= 0) & (rate <= 1)).all():
        raise ValueError(f"dropout must be within [0, 1]; it is {dropout}")


def _fit(
    quantizer: Quantizer, keys: Key, x: Array, mask: Array | None, axis_name: Any
) -> tuple[Params, Array]:
    """Return the parameters of stages, stacked, and what each sees: [..., S, D]."""

    def fit(left: Array, key: Key) -> tuple[Array, tuple[Params, Array]]:
        own = quantizer.init(key, left, mask=mask, axis_name=axis_name)
        made = quantizer.quantize(own, left, mask=mask, axis_name=axis_name)
        return left - made.codes, (own, left)

    params, inputs = jax.lax.scan(fit, x, keys)[1]
    return params, jnp.moveaxis(inputs, 0, -2)


def _run(
    call: Callable[..., Quantized], rows: Any, x: Array, proposer: Any, own: bool
) -> tuple[Array, Quantized]:
    """Return the sum of the codes of all stages, and what else they make together.

    Args:
      call: `(number, params, key, left) -> Quantized` of a stage.
      rows: number, params and key of each stage.
      x: what the first one sees.
      proposer: the number of the only stage that may propose new codes, or None.
      own: whether codes keep the gradients that stages give them.
    """

    def stage(carry: Any, row: Any) -> Any:
        (left, total), number = carry, row[0]
        made = call(*row, left)
        codes = constant = jax.lax.stop_gradient(made.codes)
        if own:
            # Losses have a gradient in what is left, codes only in the first stage.
            # The values are those of `made`: the compiler computes them once.
            first = jnp.where(number == 0, left, jax.lax.stop_gradient(left))
            codes = call(*row, first).codes
        if proposer is not None:
            statistics = _proposed(number == proposer, made.statistics)
            made = made._replace(statistics=statistics)
        made = made._replace(codes=())  # their sum is carried
        return (left - constant, total + codes), made

    # Zeros that vary over devices as x does, as the sum will.
    start = (x, jnp.where(jnp.isnan(x), 0.0, 0.0).astype(x.dtype))
    (_, total), made = jax.lax.scan(stage, start, rows)
    return total, made._replace(
        indices=jnp.moveaxis(made.indices, 0, -1),
        losses={name: loss.sum(0) for name, loss in made.losses.items()},
        perplexity=jnp.moveaxis(made.perplexity, 0, -1),
    )


def _sum_codes(lookup: Callable[[Any], Array], rows: Any) -> Array:
    """Add codes up in the order of `_run`, so that sums are equal to the last bit."""
    like = jax.eval_shape(lookup, jax.tree.map(lambda leaf: leaf[0], rows))
    add = lambda total, row: (total + lookup(row), None)
    return jax.lax.scan(add, jnp.zeros(like.shape, like.dtype), rows)[0]


def _active(mask: Any, used: Array | None, number: Array, x: Array) -> Any:
    """Return the mask of what a stage quantises, of examples that use it."""
    if used is None:
        return mask
    active = jnp.broadcast_to(expand_like(number < used, x[..., 0]), x.shape[:-1])
    return active if mask is None else active & mask


def _proposed(chosen: Array, statistics: Any) -> Any:
    """Drop new codes unless chosen: codes proposed by several stages add up to none."""

    def drop(found: Any) -> Any:
        if not isinstance(found, Statistics):
            return found
        return found._replace(
            candidates=jnp.where(chosen, found.candidates, 0),
            drawn=jnp.where(chosen, found.drawn, 0),
        )

    return jax.tree.map(drop, statistics, is_leaf=lambda x: isinstance(x, Statistics))
