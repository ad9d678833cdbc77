"""What a run carries from one step to the next."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genlib import tree
from genlib.train._paths import first_match
from genlib.train._scale import LossScale, ScaleState
from genlib.types import Array, Key

# A regular expression to be found in the path of a leaf, or `(path, leaf) -> bool`.
Trainable = str | Callable[[str, Any], bool] | None
Optimizer = optax.GradientTransformation


class State(NamedTuple):
    """Everything that a step reads and writes; a pytree of device arrays.

    Attributes:
      step: int32 scalar, the batches seen so far (skipped ones included; the
        optimizer's own count, inside `opt_state`, counts the applied updates).
      params: pytree; float leaves are the float32 master copies.
      ema: float32 moving average of `params`, a tuple of several, or None. It holds
        None for frozen parameters: `tree.merge(state.ema, state.params)` is whole.
      opt_state: the state of the optax transformation, or a dict of several.
      key: typed key of the run; the draws of a step come from `fold_in(key, step)`.
      loss_scale: where dynamic loss scaling stands, or None without it.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    key: Key
    loss_scale: ScaleState | None = None


def init(
    key: Key,
    params: Any,
    tx: Optimizer | Mapping[str, Optimizer],
    *,
    ema: bool | tuple[Any, ...] = True,
    trainable: Trainable = None,
    loss_scale: LossScale | None = None,
) -> State:
    """Make the state of a new run.

    The state owns its buffers: all of `params`, `key` and the average are copies, so a
    donated state never deletes the caller's arrays nor one of its own twice. Float
    leaves narrower than float32 are widened: updates of 1e-3 would be lost in bfloat16.
    Mixed precision is the network's (`dtype`), not the master copy's. Only float leaves
    are trained; integers, bools and keys are carried along.

    Args:
      key: typed key, scalar.
      params: pytree of arrays.
      tx: optax transformation; it sees float leaves only. A dict of them, for
        parameters that are a dict with these names, gives each part its own.
      ema: whether to keep a moving average (its decay is set in `make_step`); a tuple,
        the one that `make_step` is given, keeps one for each entry.
      trainable: which float leaves are trained: those in whose path, such as
        "blocks/attention/lora_a", this regular expression is found, or for which this
        function of path and leaf is true. The others are frozen: no gradient, optimizer
        state or average is kept for them. None trains all. Give `make_step` the same.
      loss_scale: the setting that `make_step` is given.

    Raises:
      ValueError: if `key` is not one typed key, `trainable` selects no float leaf, or
        the names of `tx` are not those of `params`.

    >>> state = init(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> int(state.step), state.ema["w"].tolist()
    (0, [1.0, 1.0])
    """
    dtype = key.dtype if isinstance(key, jax.Array) else np.dtype(object)
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.ndim:
        raise ValueError(f"key must be one typed key (jax.random.key); it is {key!r}")
    params = tree.own(params)
    chosen, _ = split_trainable(params, trainable)
    average = lambda: tree.own(averaged(params, trainable))
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=tuple(average() for _ in ema)
        if isinstance(ema, tuple)
        else (average() if ema else None),
        # Some transformations keep the parameters themselves in their state.
        opt_state=tree.own(init_optimizer(tx, chosen)),
        key=tree.own(key),
        loss_scale=None if loss_scale is None else loss_scale.init(),
    )


def split_trainable(params: Any, trainable: Trainable) -> tuple[Any, Any]:
    """Split parameters into the float leaves that are trained and all others.

    None fills the gaps; `tree.merge` puts the halves together.

    Raises:
      ValueError: if `trainable` selects no float leaf.
    """
    floats, others = tree.split_floats(params)
    if trainable is None:
        return floats, others
    leaves = tree.named(floats)
    if isinstance(trainable, str):
        found = first_match(leaves, [(trainable, True)], "trainable")
        chosen = [path in found for path in leaves]
    else:
        chosen = [bool(trainable(path, leaf)) for path, leaf in leaves.items()]
    if not any(chosen):
        raise ValueError(
            f"trainable must select a float leaf of params; {trainable!r} selects none "
            f"of {', '.join([*leaves][:3])}, ..."
        )
    picks = jax.tree.unflatten(jax.tree.structure(floats), chosen)
    trained = jax.tree.map(lambda leaf, pick: leaf if pick else None, floats, picks)
    frozen = jax.tree.map(lambda leaf, pick: None if pick else leaf, floats, picks)
    return trained, tree.merge(frozen, others)


def averaged(params: Any, trainable: Trainable) -> Any:
    """Return `params` with None for frozen float leaves: what an average follows."""
    if trainable is None:
        return params
    trained, _ = split_trainable(params, trainable)
    _, others = tree.split_floats(params)
    return tree.merge(trained, others)


def init_optimizer(tx: Any, trainable: Any) -> Any:
    """Return the state of an optimizer, or of one for each part."""
    if not isinstance(tx, Mapping):
        return tx.init(trainable)
    names = [*trainable] if type(trainable) is dict else type(trainable)
    if type(trainable) is not dict or trainable.keys() != tx.keys():
        raise ValueError(
            f"tx must have the names of the parts of params, a dict; they are {[*tx]}, "
            f"not {names}"
        )
    return {name: each.init(trainable[name]) for name, each in tx.items()}
