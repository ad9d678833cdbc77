"""Layers one after another, as a list or as a scan over stacked parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows._bijector import (
    Bijector,
    Params,
    check_bijector,
    check_key,
    with_its_arguments,
    zero_log_det,
)
from genlib.types import Array, Key


def chain(*layers: Bijector) -> Bijector:
    """Apply layers in the order in which they are listed.

        y = f_n(... f_2(f_1(x))),  contributions add up.

    Parameters are a dict with the position of each layer as its key; layers without
    parameters are left out.

    Args:
      *layers: at least one; `inverse` takes them backwards. The batch may change its
        shape, or become a pytree, on the way.

    Returns:
      A `Bijector`, stochastic if one of its layers is: each gets its own key.

    Raises:
      ValueError: without layers, for what is no bijector, without a key where one is
        needed, or if the contribution of a layer is not one number per example.

    >>> from genlib import flows
    >>> flow = chain(flows.shift_and_scale(1.0, 2.0), flows.shift_and_scale(-3.0))
    >>> flow.forward({}, jnp.array([[1.0]]))[0].item()  # 2 x + 1 - 3
    0.0
    """
    if not layers:
        raise ValueError("layers must be at least one; there is none")
    for index, layer in enumerate(layers):
        check_bijector(f"layer {index}", layer)

    def init(key: Key, x: Any, cond: Any = None) -> Params:
        params = {}
        for index, layer in enumerate(layers):
            layer_key = jax.random.fold_in(key, index)
            own = layer.init(layer_key, x, cond)
            if jax.tree.leaves(own):
                params[str(index)] = own
            if index < len(layers) - 1:  # nobody sees what the last one returns
                x, _ = call(layer, layer.forward, own, x, cond, layer_key)
        return params

    def run(order: list[int], inverse: bool) -> Callable[..., tuple[Any, Array]]:
        def apply(
            params: Params, x: Any, cond: Any = None, key: Key | None = None
        ) -> tuple[Any, Array]:
            total = zero_log_det(x)
            for index in order:
                layer = layers[index]
                function = layer.inverse if inverse else layer.forward
                own = params.get(str(index), {})
                folded = None if key is None else jax.random.fold_in(key, index)
                x, log_det = call(layer, function, own, x, cond, folded)
                total = total + log_det
            return x, total

        return apply

    order = list(range(len(layers)))
    return with_its_arguments(
        Bijector(
            init,
            run(order, inverse=False),
            run(order[::-1], inverse=True),
            any(layer.stochastic for layer in layers),
        )
    )


def scan_chain(
    layer: Bijector | Callable[[Any], Bijector],
    length: int,
    constants: Any = None,
    *,
    remat: bool = False,
    unroll: int = 1,
) -> Bijector:
    """Apply a layer again and again, each time with its own parameters.

    Parameters are stacked on a first axis and the layers run under `jax.lax.scan`, so
    that compile time does not grow with their number. What differs between layers and
    is not trained, permutations and masks, is scanned beside the parameters.

    Args:
      layer: a bijector that keeps the shape of its input (a `chain` is one), or with
        `constants` a function from one row of them to such a bijector.
      length: how many layers.
      constants: a pytree of arrays [length, ...].
      remat: recompute each layer in the backward pass: memory for one layer's insides.
      unroll: layers in a row in the loop's body: faster on CPUs, longer to compile.

    Returns:
      A `Bijector`, stochastic if the layer is.

    Raises:
      ValueError: if `length` or `unroll` is not positive, or `constants` have another
        length or are missing for a function.

    >>> from genlib import flows
    >>> orders = flows.permutations(0, depth=2, dimension=3)
    >>> flow = scan_chain(flows.permute, 2, orders)
    >>> y, _ = flow.forward({}, jnp.arange(3.0)[None])
    >>> flow.inverse({}, y)[0]
    Array([[0., 1., 2.]], dtype=float32)
    """
    if length < 1 or unroll < 1:
        raise ValueError(f"length and unroll must be positive; got {length}, {unroll}")
    if not isinstance(layer, Bijector) and constants is None:
        raise ValueError("constants must be given for a layer that is a function")
    for leaf in jax.tree.leaves(constants):
        if jnp.shape(leaf)[:1] != (length,):
            raise ValueError(
                f"constants must have {length} rows; one has shape {jnp.shape(leaf)}"
            )

    def rows() -> Any:
        # With a dtype: without, jax remembers float64 arrays as float32 ones.
        dtype = lambda leaf: jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype(leaf)), constants)

    def at(row: Any) -> Bijector:
        here = layer if isinstance(layer, Bijector) else layer(row)
        return check_bijector("layer", here)

    def init(key: Key, x: Any, cond: Any = None) -> Params:
        def body(x: Any, scanned: Any) -> tuple[Any, Params]:
            layer_key, row = scanned
            here = at(row)
            own = here.init(layer_key, x, cond)
            return call(here, here.forward, own, x, cond, layer_key)[0], own

        return jax.lax.scan(body, x, (jax.random.split(key, length), rows()))[1]

    def run(inverse: bool) -> Callable[..., tuple[Any, Array]]:
        def apply(
            params: Params, x: Any, cond: Any = None, key: Key | None = None
        ) -> tuple[Any, Array]:
            def body(carry: Any, scanned: Any) -> tuple[Any, None]:
                x, total = carry
                own, row, layer_key = scanned
                here = at(row)
                function = here.inverse if inverse else here.forward
                x, log_det = call(here, function, own, x, cond, layer_key)
                return (x, total + log_det), None

            # A scan keeps the compiler from undoing the recomputation.
            step = jax.checkpoint(body, prevent_cse=False) if remat else body
            keys = None if key is None else jax.random.split(key, length)
            return jax.lax.scan(
                step,
                (x, zero_log_det(x)),
                (params, rows(), keys),
                length=length,
                reverse=inverse,
                unroll=unroll,
            )[0]

        return apply

    first = jax.tree.map(lambda leaf: leaf[0], constants)
    return with_its_arguments(
        Bijector(init, run(inverse=False), run(inverse=True), at(first).stochastic)
    )


def call(
    layer: Bijector, function: Any, params: Params, x: Any, cond: Any, key: Key | None
) -> tuple[Any, Array]:
    """Call one direction of a layer, with a key if it takes one, and check log_det.

    Raises:
      ValueError: if it takes one and there is none, or if its contribution is not one
        number per example.

    >>> from genlib import flows
    >>> reverse = flows.reverse()
    >>> call(reverse, reverse.forward, {}, jnp.arange(2.0)[None], None, None)[0]
    Array([[1., 0.]], dtype=float32)
    """
    extra = {}
    if layer.stochastic:
        extra["key"] = check_key(key, "a layer of the flow")
    y, log_det = function(params, x, cond, **extra)
    rows = zero_log_det(x).shape
    if jnp.shape(log_det) != rows:
        raise ValueError(
            f"log_det of a layer must be one number per example, {rows}; its shape is "
            f"{jnp.shape(log_det)}"
        )
    return y, log_det
