"""Coupling layers: one part of the variables moves, as the other part says."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from genlib.flows._bijector import (
    Bijector,
    Conditioner,
    check_conditioner,
    check_features,
    log_det_like,
    wide,
)
from genlib.flows._univariate import Univariate
from genlib.types import Array, Key, concrete


def coupling(
    univariate: Univariate,
    conditioner: Conditioner,
    *,
    split: int | None = None,
    swap: bool = False,
) -> Bijector:
    """Map one half of the last axis by functions that the other half decides.

        y_a = x_a,  y_b = f(x_b; conditioner(x_a, cond))   (arXiv:1605.08803, eq. 4-5).

    The conditioner sees `x_a` [B, ..., d_a] and emits P numbers for each of the d_b
    variables. Both directions cost one call of it.

    Args:
      univariate: the family f, such as `affine()` or `spline()`.
      conditioner: see `Conditioner`; it computes in its own dtype, everything else is
        at least float32.
      split: d_a, how many of the last axis come first; half of them by default.
      swap: let the second part decide how the first moves.

    Returns:
      A `Bijector` for x [B, ..., D].

    Raises:
      ValueError: if `split` leaves a part empty, or the conditioner returns another
        shape than it was asked for.

    >>> from genlib import flows
    >>> shift = flows.Conditioner(  # y_b = x_b + x_a
    ...     init=lambda key, x, features, cond=None: {},
    ...     apply=lambda params, x, features, cond=None: x,
    ... )
    >>> layer = coupling(flows.additive(), shift)
    >>> layer.forward({}, jnp.array([[1.0, 2.0]]))[0]
    Array([[1., 3.]], dtype=float32)
    """
    init_network, apply = check_conditioner(conditioner)

    def parts(x: Array) -> tuple[Array, Array]:
        dimension = check_features("x", x).shape[-1]
        first = dimension // 2 if split is None else split
        if not 0 < first < dimension:
            raise ValueError(
                f"split must leave two parts of the {dimension} variables of the last "
                f"axis; it is {first}"
            )
        a, b = x[..., :first], x[..., first:]
        return (b, a) if swap else (a, b)

    def init(key: Key, x: Array, cond: Any = None) -> Any:
        a, b = parts(x)
        return init_network(key, a, b.shape[-1] * univariate.size, cond)

    def move(function: Any) -> Any:
        def apply_function(params: Any, x: Array, cond: Any = None) -> Any:
            a, b = parts(x)
            raw = raw_numbers(apply, params, a, b.shape, univariate.size, cond)
            moved, log_det = function(raw.astype(wide(b).dtype), wide(b))
            moved = moved.astype(x.dtype)
            whole = (moved, a) if swap else (a, moved)
            return jnp.concatenate(whole, -1), log_det_like(moved, log_det)

        return apply_function

    return Bijector(init, move(univariate.forward), move(univariate.inverse))


def masked_coupling(
    univariate: Univariate, conditioner: Conditioner, mask: ArrayLike
) -> Bijector:
    """Map the variables outside a mask by functions that those inside decide.

        y = mask x + (1 - mask) f(x; conditioner(mask x, cond))
                                                        (arXiv:1605.08803, eq. 9).

    The conditioner sees all of `mask x` and emits numbers for every variable, twice the
    work of `coupling`; but any mask will do, RealNVP's `checkerboard` among them.

    Args:
      univariate: the family f.
      conditioner: see `Conditioner`.
      mask: bool, broadcast to one example; True stays. It may be traced, so that masks
        of a `scan_chain` can be its constants.

    Returns:
      A `Bijector` for x [B, ..., D].

    Raises:
      ValueError: if the mask is not bool or does not fit, or the conditioner returns
        another shape than it was asked for.

    >>> from genlib import flows
    >>> shift = flows.Conditioner(
    ...     init=lambda key, x, features, cond=None: {},
    ...     apply=lambda params, x, features, cond=None: x[..., ::-1],
    ... )
    >>> layer = masked_coupling(flows.additive(), shift, jnp.array([False, True]))
    >>> layer.forward({}, jnp.array([[1.0, 2.0]]))[0]
    Array([[3., 2.]], dtype=float32)
    """
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be of bools; its dtype is {mask.dtype}")
    values = concrete(mask)
    if values is not None and (values.all() or not values.any()):
        raise ValueError("mask must have both values; it has one only")
    init_network, apply = check_conditioner(conditioner)

    def seen(x: Array) -> tuple[Array, Array]:
        check_features("x", x)
        try:
            stays = jnp.broadcast_to(mask, x.shape[1:])[None]
        except ValueError as error:
            raise ValueError(
                f"mask must broadcast to one example {x.shape[1:]}; its shape is "
                f"{mask.shape}"
            ) from error
        return stays, jnp.where(stays, x, jnp.zeros_like(x))

    def init(key: Key, x: Array, cond: Any = None) -> Any:
        return init_network(key, seen(x)[1], x.shape[-1] * univariate.size, cond)

    def move(function: Any) -> Any:
        def apply_function(params: Any, x: Array, cond: Any = None) -> Any:
            stays, inside = seen(x)
            raw = raw_numbers(apply, params, inside, x.shape, univariate.size, cond)
            moved, log_det = function(raw.astype(wide(x).dtype), wide(x))
            y = jnp.where(stays, x, moved.astype(x.dtype))
            return y, log_det_like(x, jnp.where(stays, 0.0, log_det))

        return apply_function

    return Bijector(init, move(univariate.forward), move(univariate.inverse))


def raw_numbers(
    apply: Any, params: Any, x: Array, shape: tuple[int, ...], size: int, cond: Any
) -> Array:
    """Call a conditioner for `size` numbers for each variable of a shape.

    Args:
      apply: of the conditioner.
      params: of the conditioner.
      x: its input [B, ..., C].
      shape: of the variables that are to move, [B, ..., d].
      size: numbers for each, P.
      cond: conditioning or None.

    Returns:
      [B, ..., d, P].

    Raises:
      ValueError: if the conditioner returns another shape.

    >>> ones = lambda params, x, features, cond: jnp.ones((*x.shape[:-1], features))
    >>> raw_numbers(ones, {}, jnp.zeros((2, 1)), (2, 3), 4, None).shape
    (2, 3, 4)
    """
    raw = apply(params, x, shape[-1] * size, cond)
    wanted = (*shape[:-1], shape[-1] * size)
    if raw.shape != wanted:
        raise ValueError(
            f"conditioner must return the shape {wanted}; it returned {raw.shape}"
        )
    return raw.reshape(*shape, size)


def checkerboard(height: int, width: int) -> Array:
    """Return RealNVP's mask of images, True where row + column is even.

    Args:
      height: of the images.
      width: of the images.

    Returns:
      bool [H, W, 1].

    >>> checkerboard(2, 3)[..., 0].astype(int).tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    return jnp.mod(jnp.add(*jnp.broadcast_arrays(rows, columns)), 2) == 0
