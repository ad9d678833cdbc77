"""What a step does with one part of the parameters: gradient, update, turn."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genlib import tree
from genlib.train._gradient import LossFn, Sums, mean, sums
from genlib.train._precision import Precision
from genlib.train._state import Optimizer, State, Trainable, split_trainable
from genlib.types import Array

Metrics = dict[str, Array]
Reduce = Callable[[Sums], Sums]

# When a part is updated: every n-th step, or where a function of the step says so.
Turn = int | Callable[[Array], Any]

# (params, statistics) -> params: what is learned from sums instead of gradients.
Absorb = Callable[[Any, Any], Any]


class Settings(NamedTuple):
    """What `make_step` was told of every part."""

    accumulate: int
    precision: Precision
    trainable: Trainable
    clip_norm: Any


class Part(NamedTuple):
    """A part of the parameters with its own loss and optimizer; `None` names all."""

    name: str | None
    index: int
    loss_fn: LossFn
    tx: Optimizer
    turn: Turn
    absorb: Absorb | None
    settings: Settings

    def of(self, whole: Any) -> Any:
        """Return this part of a tree."""
        return whole if self.name is None else whole[self.name]

    def put(self, whole: Any, part: Any) -> Any:
        """Return a tree with this part replaced."""
        return part if self.name is None else {**whole, self.name: part}

    def only(self, whole: Any) -> tuple[Any, Any]:
        """Split a tree into this part and the others, None in the gaps."""
        if self.name is None:
            return whole, jax.tree.map(lambda _: None, whole)
        gap = lambda branch: jax.tree.map(lambda _: None, branch)
        mine = {k: v if k == self.name else gap(v) for k, v in whole.items()}
        return mine, self.put(whole, gap(self.of(whole)))

    def label(self, metrics: Metrics) -> Metrics:
        """Name metrics after this part."""
        prefix = "" if self.name is None else f"{self.name}/"
        return {prefix + name: value for name, value in metrics.items()}

    def take_turn(
        self, state: State, batch: Any, reduce: Reduce
    ) -> tuple[State, Metrics, Array]:
        """Return the new state, what was measured, and whether all of it is finite."""

        def move(state: State) -> tuple[State, Metrics, Array]:
            gradient, metrics, statistics = self._gradient(state, batch, reduce)
            watched = [metrics[name] for name in ("loss", "weight", "grad_norm")]
            finite = jnp.isfinite(jnp.stack(watched)).all()
            state = self._update(state, gradient)
            if self.absorb is not None:
                params = self.absorb(state.params, statistics)
                state = state._replace(params=_same(state.params, params))
            return state, metrics, finite

        if self.turn == 1:
            return move(state)
        step = state.step
        due = self.turn(step) if callable(self.turn) else step % self.turn == 0
        _, metrics, _ = jax.eval_shape(move, state)
        unknown = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), metrics)
        idle = lambda state: (state, unknown, jnp.array(True))
        return jax.lax.cond(due, move, idle, state)

    def _gradient(
        self, state: State, batch: Any, reduce: Reduce
    ) -> tuple[Any, Metrics, Any]:
        key = jax.random.fold_in(state.key, state.step)
        chosen, fixed = split_trainable(state.params, self.settings.trainable)
        mine, others = self.only(chosen)
        total = sums(
            self.loss_fn,
            mine,
            tree.merge(others, fixed),
            batch,
            key if self.name is None else jax.random.fold_in(key, self.index),
            accumulate=self.settings.accumulate,
            precision=self.settings.precision,
            scale=None if state.loss_scale is None else state.loss_scale.scale,
            statistics=self.absorb is not None,
        )
        total = reduce(total)
        weight = total.weight
        gradient = jax.tree.map(lambda g: mean(g, weight), self.of(total.gradient))
        metrics = {name: mean(*pair) for name, pair in total.aux.items()}
        metrics |= {"loss": mean(total.loss, weight), "weight": weight}
        metrics |= {"grad_norm": optax.tree.norm(gradient)}
        return gradient, metrics, total.statistics

    def _update(self, state: State, gradient: Any) -> State:
        if self.settings.clip_norm is not None:
            clip = optax.clip_by_global_norm(self.settings.clip_norm)
            gradient, _ = clip.update(gradient, optax.EmptyState())
        chosen, fixed = split_trainable(state.params, self.settings.trainable)
        mine, moments = self.of(chosen), self.of(state.opt_state)
        updates, moments = self.tx.update(gradient, moments, mine)
        moved = self.put(chosen, optax.apply_updates(mine, updates))
        opt_state = self.put(state.opt_state, moments)
        return state._replace(params=tree.merge(moved, fixed), opt_state=opt_state)


def make_parts(
    loss_fn: Any,
    tx: Any,
    every: Mapping[str, Turn] | None,
    absorb: Absorb | Mapping[str, Absorb] | None,
    settings: Settings,
) -> list[Part]:
    """Return the parts in the order of their turns.

    Raises:
      ValueError: if `loss_fn`, `tx`, `every` and `absorb` do not have the same names.
    """
    if not isinstance(loss_fn, Mapping) and not isinstance(tx, Mapping):
        if every is not None:
            raise ValueError(f"every must be None for one loss; it is {every}")
        if isinstance(absorb, Mapping):
            raise ValueError("absorb must be one function for one loss; it is a dict")
        return [Part(None, 0, loss_fn, tx, 1, absorb, settings)]
    every = {} if every is None else dict(every)
    names, others = (
        [*each] if isinstance(each, Mapping) else None for each in (loss_fn, tx)
    )
    if names is None or others is None or {*names} != {*others}:
        raise ValueError(
            "loss_fn and tx must be dicts of equal keys, or neither a dict; their keys "
            f"are {names} and {others}"
        )
    for name, turn in every.items():
        number = isinstance(turn, (int, np.integer)) and turn >= 1
        if name not in names or not (callable(turn) or number):
            raise ValueError(
                f"every must give parts of {names} a positive number or a function of "
                f"the step; it has {name!r}: {turn!r}"
            )
    if absorb is not None and not (
        isinstance(absorb, Mapping) and {*absorb} <= {*names}
    ):
        raise ValueError(
            f"absorb must be a dict with names of {names}; it is "
            f"{[*absorb] if isinstance(absorb, Mapping) else absorb}"
        )
    absorb = dict(absorb or {})
    return [
        Part(
            name,
            index,
            loss_fn[name],
            tx[name],
            every.get(name, 1),
            absorb.get(name),
            settings,
        )
        for index, name in enumerate(names)
    ]


def _same(old: Any, new: Any) -> Any:
    """Return parameters that `absorb` gave, if they are like those it was given."""
    before, after = (jax.eval_shape(lambda tree=tree: tree) for tree in (old, new))
    if before == after:
        return new
    raise ValueError(
        f"absorb must return params like those it is given, {before}; it returned "
        f"{after}"
    )
