"""The gradient of a loss over a batch: one sum and one weight, whatever is cut up."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib import tree
from genlib.train._precision import Precision, cast
from genlib.types import Array, Key, compute_dtype

# (params, batch, key) -> (loss_sum, weight, aux), or with statistics as a fourth.
LossFn = Callable[[Any, Any, Key], tuple[Any, ...]]

RESERVED = (
    *("loss", "weight", "grad_norm", "skipped", "loss_scale"),
    *("step_time", "examples_per_second"),  # of `fit`
)


class Sums(NamedTuple):
    """Sums over rows, in float32 (float64 under x64); `gradient` times the scale.

    Statistics are in the dtypes that the loss gave them.
    """

    gradient: Any
    loss: Array
    weight: Array
    aux: dict[str, tuple[Array, Array]]
    statistics: Any = ()


def sums(
    loss_fn: LossFn,
    trainable: Any,
    fixed: Any,
    batch: Any,
    key: Key,
    *,
    accumulate: int,
    precision: Precision,
    scale: Array | None,
    statistics: bool = False,
) -> Sums:
    """Return the sums of a loss and its gradient over a batch, in microbatches.

    Microbatch i holds the rows i, i + accumulate, ... and gets `fold_in(key, i)`.
    """

    def sums_of(rows: Any, index: Any) -> Sums:
        row_key = jax.random.fold_in(key, index)

        def objective(trainable: Any) -> tuple[Array, Any]:
            params = cast(tree.merge(trainable, fixed), precision)
            loss, *rest = _checked(loss_fn(params, rows, row_key), statistics)
            scaled = loss if scale is None else loss * (scale / _at_least(rows))
            return scaled, (loss, *rest)

        gradient, rest = jax.grad(objective, has_aux=True)(trainable)
        # jax.grad of a complex number is the conjugate of the direction uphill.
        wide = lambda g: jnp.conj(g.astype(compute_dtype(g.dtype)))
        gradient = jax.tree.map(wide, gradient)
        return Sums(gradient, *rest)

    total = _accumulate(sums_of, batch, accumulate)
    if scale is None:
        return total
    # Exact: the scale and the count of rows are powers of two.
    undo = _at_least(batch, accumulate) / scale
    return total._replace(gradient=jax.tree.map(lambda g: g * undo, total.gradient))


def _at_least(batch: Any, parts: int = 1) -> float:
    """Return a power of two no smaller than the number of rows.

    The sum over a batch would overflow float16 earlier than the mean.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    rows = max((shape[0] for shape in shapes if shape), default=1) // parts
    return float(1 << (max(rows, 1) - 1).bit_length())


def _accumulate(
    sums_of: Callable[[Any, Any], Sums], batch: Any, accumulate: int
) -> Sums:
    if accumulate == 1:
        return sums_of(batch, 0)
    for name, leaf in tree.named(batch, "batch").items():
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] % accumulate:
            raise ValueError(
                f"{name} must have a leading axis that divides by accumulate="
                f"{accumulate}; its shape is {jnp.shape(leaf)}"
            )

    def cut(leaf: Array) -> Array:
        rows = leaf.reshape(-1, accumulate, *leaf.shape[1:])
        return jnp.moveaxis(rows, 1, 0)

    def add(total: Sums, item: tuple[Array, Any]) -> tuple[Sums, None]:
        index, rows = item
        return jax.tree.map(jnp.add, total, sums_of(rows, index)), None

    items = jnp.arange(accumulate), jax.tree.map(cut, batch)
    shapes = jax.eval_shape(sums_of, jax.tree.map(lambda x: x[0], items[1]), 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    loop = lambda unroll: lambda *args: jax.lax.scan(add, *args, unroll=unroll)[0]
    # XLA's convolutions on a CPU are several times slower inside of a loop.
    return jax.lax.platform_dependent(zeros, items, cpu=loop(True), default=loop(1))


def mean(total: Array, weight: Array) -> Array:
    """Divide, with 0 for a batch in which nothing counts."""
    return (total / jnp.where(weight == 0, 1, weight)).astype(total.dtype)


def _checked(
    result: Any, statistics: bool
) -> tuple[Array, Array, dict[str, tuple[Array, Array]], Any]:
    """Return what `loss_fn` gave as wide scalars, or say what is wrong with it."""
    names = "loss_sum, weight, aux" + (", statistics" if statistics else "")
    count = 4 if statistics else 3
    if not isinstance(result, tuple) or len(result) != count:
        what = f"{len(result)} of them" if isinstance(result, tuple) else type(result)
        raise ValueError(
            f"loss_fn must return ({names}), with statistics if absorb is given and "
            f"only then; it returned {what}"
        )
    loss, weight, aux, *rest = result
    if not isinstance(aux, Mapping):
        raise ValueError(
            f"loss_fn must return aux as a dict of (sum, weight); it is {type(aux)}"
        )
    pairs = {}
    for name, pair in aux.items():
        if not isinstance(name, str):
            raise ValueError(f"aux must have strings as names; it has {name!r}")
        if name in RESERVED:
            raise ValueError(f"aux must not use the names {RESERVED}; it has {name!r}")
        if not isinstance(pair, tuple) or len(pair) != 2:
            shape = getattr(pair, "shape", None)
            raise ValueError(
                f"aux[{name!r}] must be a pair (sum, weight); it is "
                + (f"{pair}" if shape is None else f"an array {shape}")
            )
        pairs[name] = tuple(_scalar(f"aux[{name!r}]", part) for part in pair)
    loss, weight = _scalar("loss_sum", loss), _scalar("weight", weight)
    return loss, weight, pairs, rest[0] if rest else ()


def _scalar(name: str, value: Any) -> Array:
    if jnp.shape(value) != ():
        raise ValueError(
            f"loss_fn must return {name} as a scalar sum over the batch; its shape is "
            f"{jnp.shape(value)}"
        )
    return jnp.asarray(value).astype(float)
