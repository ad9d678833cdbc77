"""One pure training step, which knows nothing of devices."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genlib import tree
from genlib.train._ema import Decay
from genlib.train._state import State
from genlib.types import Array, Key, compute_dtype

Metrics = dict[str, Array]
Step = Callable[[State, Any], tuple[State, Metrics]]
LossFn = Callable[[Any, Any, Key], tuple[Any, Any, Mapping[str, tuple[Any, Any]]]]

_RESERVED = ("loss", "weight", "grad_norm", "skipped")


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema: float | Array | Decay | tuple[float | Array | Decay, ...] | None = 0.999,
    ema_warmup: bool = True,
    accumulate: int = 1,
    clip_norm: float | Array | None = None,
    nonfinite: str = "skip",
) -> Step:
    """Build the step `(state, batch) -> (state, metrics)` from a loss.

    gradient = d(sum of loss_sum)/d(params) / (sum of weight), over all microbatches: a
    batch with padding gives the same gradient however it is cut up. Weights are
    constants of the differentiation. A batch of weight 0 has gradient 0 (the
    optimizer's momentum and weight decay still act). The step is pure and not jitted:
    `jax.jit(step)` on one device, `jit_step(step, mesh)` on many.

    Microbatch i holds the rows i, i + accumulate, i + 2 accumulate, ... of the batch,
    so that a batch split over devices stays where it is. Its key is
    `fold_in(fold_in(state.key, state.step), i)`, also for `accumulate=1`. What
    `loss_fn` draws from its key therefore depends on `accumulate`; a loss whose
    randomness is in the batch (noise or keys, one per example) gives equal steps for
    every `accumulate`.

    Args:
      loss_fn: `(params, batch, key) -> (loss_sum, weight, aux)`. `loss_sum` is the
        scalar sum of the weighted losses, `weight` the sum of the weights (the number
        of examples where all count the same), `aux` a dict of `(sum, weight)` pairs of
        scalars, each averaged over the batch in the same way.
      tx: the transformation given to `init`. It sees float32 gradients of float leaves.
      ema: decay of the moving average of the parameters, in [0, 1), or a function from
        `state.step` to it (`power_ema`, `warmup_ema`); a tuple of these for several
        averages, if the state was made with `init(..., ema=that tuple)`; None if it was
        made with `init(..., ema=False)`.
      ema_warmup: use min(ema, (1 + step) / (10 + step)) for a decay that is a number,
        so that the first, random parameters are soon forgotten.
      accumulate: microbatches of a batch, run one after another under `lax.scan`; sums
        are kept in float32.
      clip_norm: largest global gradient norm, applied after accumulation; None for
        none.
      nonfinite: "skip" leaves parameters, average and optimizer bit-identical where the
        loss or the gradient norm is not finite in float32 (`step` still advances, so
        that the next step has another key); "apply" does not look.

    Returns:
      The step. Its metrics are device scalars: `loss` and the aux means, `weight`,
      `grad_norm` (global, before clipping), `skipped` (0 or 1).

    Raises:
      ValueError: for a setting out of its range; while tracing, if a batch does not
        divide by `accumulate`, if `loss_fn` returns something else, or if the state has
        an average and `ema` is None or the other way around.

    Source: accumulation as one sum and one weight avoids the mean of means; the warm-up
    is that of tf.train.ExponentialMovingAverage(num_updates).

    >>> from genlib.train import init
    >>> loss_fn = lambda params, x, key: (jnp.sum((params - x) ** 2), x.size, {})
    >>> state = init(jax.random.key(0), jnp.zeros(()), optax.sgd(0.5), ema=False)
    >>> step = make_step(loss_fn, optax.sgd(0.5), ema=None)
    >>> state, metrics = step(state, jnp.ones(4))
    >>> float(state.params), float(metrics["loss"])
    (1.0, 1.0)
    """
    _check_settings(ema, accumulate, clip_norm, nonfinite)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        _check_average(ema, state)
        trainable, fixed = tree.split_floats(state.params)
        key = jax.random.fold_in(state.key, state.step)

        def sums_of(rows: Any, index: Any) -> _Sums:
            row_key = jax.random.fold_in(key, index)
            return _sums(loss_fn, trainable, fixed, rows, row_key)

        sums = _accumulate(sums_of, batch, accumulate)
        gradient = jax.tree.map(lambda g: _mean(g, sums.weight), sums.gradient)
        loss = _mean(sums.loss, sums.weight)
        norm = optax.tree.norm(gradient)

        if clip_norm is not None:
            clip = optax.clip_by_global_norm(clip_norm)
            gradient, _ = clip.update(gradient, optax.EmptyState())
        updates, opt_state = tx.update(gradient, state.opt_state, trainable)
        params = tree.merge(optax.apply_updates(trainable, updates), fixed)
        average = _average(ema, ema_warmup, state, params)

        new, skipped = (params, average, opt_state), jnp.zeros((), jnp.int32)
        if nonfinite == "skip":
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            old = (state.params, state.ema, state.opt_state)
            new, skipped = tree.select(finite, new, old), 1 - finite.astype(jnp.int32)
        metrics = dict(loss=loss, weight=sums.weight, grad_norm=norm, skipped=skipped)
        metrics |= {name: _mean(*pair) for name, pair in sums.aux.items()}
        params, average, opt_state = new
        return State(state.step + 1, params, average, opt_state, state.key), metrics

    return step


class _Sums(NamedTuple):
    """Sums over a microbatch, in float32 (float64 under x64)."""

    gradient: Any
    loss: Array
    weight: Array
    aux: dict[str, tuple[Array, Array]]


def _sums(loss_fn: LossFn, trainable: Any, fixed: Any, rows: Any, key: Key) -> _Sums:
    def objective(trainable: Any) -> tuple[Array, Any]:
        loss, weight, aux = _checked(loss_fn(tree.merge(trainable, fixed), rows, key))
        return loss, (weight, aux)

    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    (loss, (weight, aux)), gradient = value_and_grad(trainable)
    gradient = jax.tree.map(lambda g: g.astype(compute_dtype(g.dtype)), gradient)
    return _Sums(gradient, loss, weight, aux)


def _accumulate(
    sums_of: Callable[[Any, Any], _Sums], batch: Any, accumulate: int
) -> _Sums:
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

    def add(total: _Sums, item: tuple[Array, Any]) -> tuple[_Sums, None]:
        index, rows = item
        return jax.tree.map(jnp.add, total, sums_of(rows, index)), None

    items = jnp.arange(accumulate), jax.tree.map(cut, batch)
    shapes = jax.eval_shape(sums_of, jax.tree.map(lambda x: x[0], items[1]), 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, items)[0]


def _mean(total: Array, weight: Array) -> Array:
    """Divide, with 0 for a batch in which nothing counts."""
    return (total / jnp.where(weight == 0, 1, weight)).astype(total.dtype)


def _average(ema: Any, warmup: bool, state: State, params: Any) -> Any:
    """Return the moving average, or all of them, after a step to `params`."""
    if ema is None:
        return None
    if not isinstance(ema, tuple):
        return tree.lerp(state.ema, params, _rate(ema, warmup, state.step))
    rates = [_rate(decay, warmup, state.step) for decay in ema]
    pairs = zip(state.ema, rates, strict=True)
    return tuple(tree.lerp(average, params, rate) for average, rate in pairs)


def _check_average(ema: Any, state: State) -> None:
    wanted = state.params
    if ema is None or isinstance(ema, tuple):
        wanted = None if ema is None else (state.params,) * len(ema)
    if jax.tree.structure(wanted) != jax.tree.structure(state.ema):
        raise ValueError(
            "ema must be a decay where the state holds an average, the tuple given to "
            "init(..., ema=...) where it holds several, and None where "
            f"init(..., ema=False) made it; ema is {ema} and the state holds "
            f"{'none' if state.ema is None else jax.tree.structure(state.ema)}"
        )


def _rate(ema: Any, warmup: bool, step: Array) -> Any:
    """Return 1 - decay, for a constant without forming a float32 decay near 1."""
    if callable(ema):
        decay: Any = ema(step)
        return 1 - decay
    return jnp.maximum(1 - ema, 9 / (10 + step)) if warmup else 1 - ema


def _checked(result: Any) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
    """Return what `loss_fn` gave as wide scalars, or say what is wrong with it."""
    if not isinstance(result, tuple) or len(result) != 3:
        raise ValueError(
            f"loss_fn must return (loss_sum, weight, aux); it returned {type(result)}"
        )
    loss, weight, aux = result
    if not isinstance(aux, Mapping):
        raise ValueError(
            f"loss_fn must return aux as a dict of (sum, weight); it is {type(aux)}"
        )
    pairs = {}
    for name, pair in aux.items():
        if name in _RESERVED:
            raise ValueError(f"aux must not use the names {_RESERVED}; it has {name!r}")
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(
                f"aux[{name!r}] must be a pair (sum, weight); it is {pair}"
            )
        pairs[name] = tuple(_scalar(f"aux[{name!r}]", part) for part in pair)
    return _scalar("loss_sum", loss), _scalar("weight", weight), pairs


def _scalar(name: str, value: Any) -> Array:
    if jnp.shape(value) != ():
        raise ValueError(
            f"loss_fn must return {name} as a scalar sum over the batch; its shape is "
            f"{jnp.shape(value)}"
        )
    return jnp.asarray(value).astype(float)


def _check_settings(ema: Any, accumulate: Any, clip_norm: Any, nonfinite: Any) -> None:
    for decay in ema if isinstance(ema, tuple) else (ema,):
        if isinstance(decay, (int, float, np.number)) and not 0 <= decay < 1:
            raise ValueError(f"ema must be in [0, 1); it is {decay}")
    if not isinstance(accumulate, (int, np.integer)) or accumulate < 1:
        raise ValueError(f"accumulate must be an integer >= 1; it is {accumulate}")
    if isinstance(clip_norm, (int, float, np.number)) and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive; it is {clip_norm}")
    if nonfinite not in ("skip", "apply"):
        raise ValueError(f'nonfinite must be "skip" or "apply"; it is {nonfinite!r}')
