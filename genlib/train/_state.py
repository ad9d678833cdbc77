"""What a run carries from one step to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genlib import tree
from genlib.types import Array, Key


class State(NamedTuple):
    """Everything that a step reads and writes; a pytree of device arrays.

    Attributes:
      step: int32 scalar, the batches seen so far (skipped ones included; the
        optimizer's own count, inside `opt_state`, counts the applied updates).
      params: pytree; float leaves are the float32 master copies.
      ema: float32 moving average of `params`, a tuple of several, or None.
      opt_state: the state of the optax transformation.
      key: typed key of the run; the draws of a step come from `fold_in(key, step)`.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    key: Key


def init(
    key: Key,
    params: Any,
    tx: optax.GradientTransformation,
    *,
    ema: bool | tuple[Any, ...] = True,
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
      tx: optax transformation; it sees float leaves only.
      ema: whether to keep a moving average (its decay is set in `make_step`); a tuple,
        the one that `make_step` is given, keeps one for each entry.

    Raises:
      ValueError: if `key` is not one typed key.

    >>> state = init(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> int(state.step), state.ema["w"].tolist()
    (0, [1.0, 1.0])
    """
    dtype = key.dtype if isinstance(key, jax.Array) else np.dtype(object)
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.ndim:
        raise ValueError(f"key must be one typed key (jax.random.key); it is {key!r}")
    params = tree.own(params)
    trainable, _ = tree.split_floats(params)
    if isinstance(ema, tuple):
        average = tuple(tree.own(params) for _ in ema)
    else:
        average = tree.own(params) if ema else None
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=average,
        # Some transformations keep the parameters themselves in their state.
        opt_state=tree.own(tx.init(trainable)),
        key=tree.own(key),
    )
