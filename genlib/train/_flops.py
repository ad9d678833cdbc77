"""Floating-point operations of a function, counted exactly from its jaxpr."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

# Calls whose work is hidden in a library; a zero for them would be wrong.
_OPAQUE = ("ffi_call", "cudnn_fusion", "dot_product_attention", "scaled_matmul")


def flops(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> int:
    """Count the floating-point operations of the matrix products and convolutions.

        [M, K] @ [K, N]: 2 M N K;    convolution: 2 for each kernel tap on each input

    of every `dot_general`, `ragged_dot` and convolution that one call of `fn` runs, on
    all devices together. Taps on padding, or between the inputs of a dilated
    (transposed) convolution, are not counted, so that the gradients of a layer cost
    exactly twice the layer. A complex product counts four times. Loops count as often
    as they run (XLA's own cost analysis counts them once), a `cond` as its most
    expensive branch, the body of a `shard_map` or `pmap` once for each device, a Pallas
    kernel once for each point of its grid, and what `jax.checkpoint` computes again
    again. The program is counted as written, also where the compiler will find it to
    be dead or repeated. Everything else (elementwise, reductions, factorisations, FFTs)
    counts nothing.

    Args:
      fn: any function of arrays; jitted ones too. Nothing is computed or allocated.
      *args: arrays, or `jax.ShapeDtypeStruct`s in their place.
      **kwargs: likewise.

    Returns:
      The exact count.

    Raises:
      ValueError: if `fn` multiplies matrices in a `while` loop, whose length no one
        knows (count one pass of its body), or in a library call (count the same
        function written in jax).

    >>> import jax.numpy as jnp
    >>> x, w = jnp.ones((8, 16)), jnp.ones((16, 16))
    >>> layers = lambda x, w: jax.lax.scan(lambda h, _: (h @ w, None), x, length=3)[0]
    >>> flops(layers, x, w) == 3 * (2 * 8 * 16 * 16)
    True
    """
    return _total(jax.make_jaxpr(fn)(*args, **kwargs))


def _total(jaxpr: Any) -> int:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # closed or open
    return sum(map(_cost, jaxpr.eqns))


def _cost(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    match name:
        case "dot_general":
            return _dot(eqn, params["dimension_numbers"])
        case "ragged_dot_general":
            return _ragged_dot(eqn)
        case "conv_general_dilated":
            return _convolution(eqn)
        case "scan":
            return params["length"] * _total(params["jaxpr"])
        case "while":
            if found := _total(params["body_jaxpr"]) + _total(params["cond_jaxpr"]):
                raise ValueError(
                    "fn must not multiply matrices in a loop of unknown length (a "
                    "while loop, or a fori_loop with traced bounds): one pass takes "
                    f"{found} operations, but no one knows how many there are"
                )
            return 0
        case "cond":
            return max(map(_total, params["branches"]))
        case "shard_map":
            # jax renamed it; nested ones must not count the outer axes again.
            axes = params.get("newly_manual_axes", params.get("manual_axes"))
            sizes = [params["mesh"].shape[axis] for axis in axes]
            return math.prod(sizes) * _total(params["jaxpr"])
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid) * _total(params["jaxpr"])
        case "custom_linear_solve":  # its other functions are for the derivatives
            return _total(params["jaxprs"].solve)
    if name.startswith(_OPAQUE):
        raise ValueError(
            "fn must be written in jax, so that its work can be seen; it calls the "
            f"library function {name}"
        )
    return sum(map(_total, _jaxprs(params.values())))


def _jaxprs(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what is called: the bodies of jit, checkpoint, custom_vjp, ..."""
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)


def _dot(eqn: Any, dimension_numbers: Any) -> int:
    (contracted, _), _ = dimension_numbers
    left, out = eqn.invars[0].aval, eqn.outvars[0].aval
    depth = math.prod(left.shape[axis] for axis in contracted)
    return _multiply_add(out) * math.prod(out.shape) * depth


def _ragged_dot(eqn: Any) -> int:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    total = _dot(eqn, numbers.dot_dimension_numbers)
    # Where the groups share out the contracted axis, no group has all of it.
    shared = set(numbers.lhs_ragged_dimensions) & set(contracted)
    return total // eqn.invars[2].aval.shape[-1] if shared else total


def _convolution(eqn: Any) -> int:
    params = eqn.params
    left, right = (var.aval for var in eqn.invars)
    out = eqn.outvars[0].aval
    numbers = params["dimension_numbers"]
    taps = 1
    for axis, (low, _) in enumerate(params["padding"]):
        size = left.shape[numbers.lhs_spec[2 + axis]]
        kernel = np.arange(right.shape[numbers.rhs_spec[2 + axis]])
        place = np.arange(out.shape[numbers.out_spec[2 + axis]])
        place = place[:, None] * params["window_strides"][axis] - low
        place = place + kernel * params["rhs_dilation"][axis]
        dilation = params["lhs_dilation"][axis]
        hits = (place >= 0) & (place % dilation == 0) & (place // dilation < size)
        taps *= int(hits.sum())
    rows, channels = (out.shape[axis] for axis in numbers.out_spec[:2])
    # With groups, of features or of the batch, a kernel sees fewer input channels.
    seen = right.shape[numbers.rhs_spec[1]]
    return _multiply_add(out) * rows * channels * seen * taps


def _multiply_add(out: Any) -> int:
    return 8 if np.issubdtype(out.dtype, np.complexfloating) else 2
