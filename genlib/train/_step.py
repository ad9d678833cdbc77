"""The train step: a pure function from (state, batch) to (state, metrics)."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from genlib import tree
from genlib.train._ema import Decay
from genlib.train._gradient import LossFn
from genlib.train._part import (
    Absorb,
    Metrics,
    Reduce,
    Settings,
    Turn,
    make_parts,
)
from genlib.train._precision import Precision, check
from genlib.train._scale import LossScale
from genlib.train._state import (
    Optimizer,
    State,
    Trainable,
    averaged,
    init_optimizer,
    split_trainable,
)
from genlib.types import Array


class Step(Protocol):
    """A train step. `reduce` sums over the devices of an explicit parallel program."""

    def __call__(
        self, state: State, batch: Any, /, *, reduce: Reduce = ...
    ) -> tuple[State, Metrics]:
        """Return the next state and the metrics of this step."""
        ...


def make_step(
    loss_fn: LossFn | Mapping[str, LossFn],
    tx: Optimizer | Mapping[str, Optimizer],
    *,
    ema: float | Array | Decay | tuple[float | Array | Decay, ...] | None = 0.999,
    ema_warmup: bool = True,
    accumulate: int = 1,
    clip_norm: float | Array | None = None,
    nonfinite: str = "skip",
    precision: Precision = None,
    loss_scale: LossScale | None = None,
    trainable: Trainable = None,
    every: Mapping[str, Turn] | None = None,
    absorb: Absorb | Mapping[str, Absorb] | None = None,
) -> Step:
    """Build the step `(state, batch) -> (state, metrics)` from a loss.

    gradient = d(sum of loss_sum)/d(params) / (sum of weight), over all microbatches: a
    batch with padding gives the same gradient however it is cut up. Weights are
    constants of the differentiation. A batch of weight 0 has gradient 0 (the
    optimizer's momentum and weight decay still act). The step is pure and not jitted:
    `jax.jit(step)` on one device, `jit_step(step, mesh)` on many.

    Dicts of equal keys as `loss_fn` and `tx`, for parameters that are a dict with these
    keys, update each part by its own loss and optimizer, one after another in the order
    of `loss_fn` and on the same batch: a later loss sees the earlier parts as they have
    become. Each loss gets all parameters and is differentiated with respect to its own
    part (no `stop_gradient` is needed); its key is folded once more, with its place in
    the order. Clipping acts on each part alone. If one part is not finite, the whole
    step is skipped.

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
        scalars, each averaged over the batch in the same way. It sees no step: what
        follows a schedule comes in the batch, one number for each row.
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
      nonfinite: "skip" leaves parameters, average and optimizer bit-identical where a
        loss or a gradient norm is not finite in float32 (`step` still advances, so
        that the next step has another key); "apply" does not look. `fit` stops after
        many skipped steps in a row.
      precision: dtype in which `loss_fn` sees the parameters, or ordered (pattern,
        dtype) pairs on their paths, the first match winning and the others left as they
        are: `[("norm", "float32"), (".*", "bfloat16")]`. The master copy, its gradient
        and the optimizer stay float32. Inputs are the loss's (or the network's) to
        cast. None casts nothing.
      loss_scale: dynamic loss scaling, for float16; the state was made with
        `init(..., loss_scale=...)` of the same. A step that overflows is skipped.
      trainable: which leaves are trained, as given to `init`. The optimizer and
        `clip_norm` see no others.
      every: when the parts of a dict of losses take their turn, by name: every n-th
        step, from step 0 on, or where a function of the step is true. Others always do.
      absorb: `(params, statistics) -> params` of the same structure, applied to all
        parameters after the optimizer: for what is learned from sums over a batch
        instead of gradients, such as the moving averages of a codebook
        (`genlib.quantize`). `loss_fn` then returns `(loss_sum, weight, aux,
        statistics)`, a pytree of sums over the rows that it sees; they are summed over
        microbatches and devices as gradients are. Keep what is only absorbed out of the
        optimizer by `trainable`. With several losses a dict, for some or all of them.

    Returns:
      The step. Its metrics are device scalars: `loss` and the aux means, `weight`,
      `grad_norm` (global, before clipping), `skipped` (0 or 1), and `loss_scale`, the
      one that was used. With several losses all but the last two are named "part/loss"
      and so on, and are NaN where the part had no turn.

    Raises:
      ValueError: for a setting out of its range; while tracing, if a batch does not
        divide by `accumulate`, if `loss_fn` returns something else, or if the state was
        made for another `tx`, `ema` or `loss_scale`, or another `trainable` as far as
        optimizer and average tell.

    Source: accumulation as one sum and one weight avoids the mean of means; the warm-up
    is that of tf.train.ExponentialMovingAverage(num_updates).

    >>> import optax
    >>> from genlib.train import init
    >>> loss_fn = lambda params, x, key: (jnp.sum((params - x) ** 2), x.size, {})
    >>> state = init(jax.random.key(0), jnp.zeros(()), optax.sgd(0.5), ema=False)
    >>> step = make_step(loss_fn, optax.sgd(0.5), ema=None)
    >>> state, metrics = step(state, jnp.ones(4))
    >>> float(state.params), float(metrics["loss"])
    (1.0, 1.0)
    """
    check(precision)
    _check_settings(ema, accumulate, clip_norm, nonfinite, loss_scale)
    settings = Settings(accumulate, precision, trainable, clip_norm)
    parts = make_parts(loss_fn, tx, every, absorb, settings)

    def step(
        state: State, batch: Any, *, reduce: Reduce = lambda total: total
    ) -> tuple[State, Metrics]:
        _check_state(state, tx, ema, trainable, loss_scale)
        new, metrics, finite = state, {}, jnp.array(True)
        for part in parts:
            new, measured, fine = part.take_turn(new, batch, reduce)
            metrics, finite = metrics | part.label(measured), finite & fine
        new = new._replace(ema=_average(ema, ema_warmup, trainable, new))
        if nonfinite == "skip":
            new = tree.select(finite, new, state)
        if loss_scale is not None and state.loss_scale is not None:
            metrics["loss_scale"] = state.loss_scale.scale
            new = new._replace(loss_scale=loss_scale.update(state.loss_scale, finite))
        passed = finite if nonfinite == "skip" else True
        metrics["skipped"] = 1 - jnp.asarray(passed, jnp.int32)
        return new._replace(step=state.step + 1), metrics

    return step


def _average(ema: Any, warmup: bool, trainable: Trainable, state: State) -> Any:
    """Return the moving average, or all of them, after a step to `state.params`."""
    if ema is None:
        return None
    params = averaged(state.params, trainable)
    if not isinstance(ema, tuple):
        return tree.lerp(state.ema, params, _rate(ema, warmup, state.step))
    rates = [_rate(decay, warmup, state.step) for decay in ema]
    pairs = zip(state.ema, rates, strict=True)
    return tuple(tree.lerp(average, params, rate) for average, rate in pairs)


def _rate(ema: Any, warmup: bool, step: Array) -> Any:
    """Return 1 - decay, for a constant without forming a float32 decay near 1."""
    if callable(ema):
        decay: Any = ema(step)
        return 1 - decay
    return jnp.maximum(1 - ema, 9 / (10 + step)) if warmup else 1 - ema


def _check_state(
    state: State,
    tx: Any,
    ema: Any,
    trainable: Trainable,
    loss_scale: LossScale | None,
) -> None:
    chosen, _ = split_trainable(state.params, trainable)
    expected = jax.eval_shape(lambda: init_optimizer(tx, chosen))
    if jax.tree.structure(expected) != jax.tree.structure(state.opt_state):
        raise ValueError(
            "tx and trainable must be as given to init; the state holds "
            f"{jax.tree.structure(state.opt_state)} of an optimizer that would hold "
            f"{jax.tree.structure(expected)}"
        )
    wanted = averaged(state.params, trainable)
    if ema is None or isinstance(ema, tuple):
        wanted = None if ema is None else (wanted,) * len(ema)
    if jax.tree.structure(wanted) != jax.tree.structure(state.ema):
        raise ValueError(
            "ema must be a decay where the state holds an average, the tuple given to "
            "init(..., ema=...) where it holds several, and None where "
            "init(..., ema=False) made it; trainable must be as given to init; ema is "
            f"{ema}, trainable is {trainable!r} and the state holds "
            f"{'no average' if state.ema is None else jax.tree.structure(state.ema)}"
        )
    if (loss_scale is None) != (state.loss_scale is None):
        raise ValueError(
            "loss_scale must be given to both init and make_step, or to neither; the "
            f"state was made {'without' if state.loss_scale is None else 'with'} it"
        )


def _check_settings(
    ema: Any, accumulate: Any, clip_norm: Any, nonfinite: Any, loss_scale: Any
) -> None:
    for decay in ema if isinstance(ema, tuple) else (ema,):
        if isinstance(decay, (int, float, np.number)) and not 0 <= decay < 1:
            raise ValueError(f"ema must be in [0, 1); it is {decay}")
    if not isinstance(accumulate, (int, np.integer)) or accumulate < 1:
        raise ValueError(f"accumulate must be an integer >= 1; it is {accumulate}")
    if isinstance(clip_norm, (int, float, np.number)) and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive; it is {clip_norm}")
    if nonfinite not in ("skip", "apply"):
        raise ValueError(f'nonfinite must be "skip" or "apply"; it is {nonfinite!r}')
    if loss_scale is not None and nonfinite != "skip":
        raise ValueError(
            f'nonfinite must be "skip" with loss_scale; it is {nonfinite!r}'
        )
