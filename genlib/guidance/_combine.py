"""What all guidance is made of: several denoisers, one rule, per-example sums."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from genlib.noise import Path
from genlib.prediction import X0, Prediction, check_kind, convert, denoiser
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    Scalar,
    StatefulDenoiser,
    check_start,
    compute_dtype,
    concrete,
    expand_like,
)

# A scale is a number, one for each example [B], or a function of the time.
Scale = Scalar | Callable[[Array], Scalar]
# What refuses to start sampling where it knows nothing of x_0.
Check = Callable[[ArrayLike], None]


def combine(
    models: Sequence[Denoiser],
    rule: Callable[..., Any],
    *checks: Check,
    init: Callable[[Array], Any] | None = None,
) -> Denoiser:
    """Return the denoiser `rule(x_t, t, *x_0s)` of what several models predict.

    The rule sees float32 (or float64) arrays. With `init`, `x -> memory`, it is
    `rule(x_t, t, memory, *x_0s) -> (x_0, memory)`.
    """

    def apply(x_t: Array, t: Array, memories: Any) -> tuple[Array, Any]:
        wide = compute_dtype(x_t.dtype)
        pairs = zip(models, memories, strict=False)  # the last memory may be our own
        parts = [lift(model).apply(x_t, t, memory) for model, memory in pairs]
        kept = [memory for _, memory in parts]
        x_0s = [x_0.astype(wide) for x_0, _ in parts]
        if init is None:
            x_0 = rule(x_t.astype(wide), t, *x_0s)
        else:
            x_0, own = rule(x_t.astype(wide), t, memories[-1], *x_0s)
            kept.append(own)
        return x_0.astype(x_t.dtype), tuple(kept)

    return join(models, apply, *checks, init=init)


def lift(model: Denoiser) -> StatefulDenoiser:
    """Return a model as one with memory, which may be empty."""
    if isinstance(model, StatefulDenoiser):
        return model
    return StatefulDenoiser(lambda x: (), lambda x_t, t, memory: (model(x_t, t), ()))


def join(
    models: Sequence[Denoiser],
    apply: Callable[[Array, Array, Any], tuple[Array, Any]],
    *checks: Check,
    init: Callable[[Array], Any] | None = None,
) -> Denoiser:
    """Return the denoiser `apply(x_t, t, memories) -> (x_0, memories)`.

    The memories are a tuple of those of `models`, with its own last if it has an
    `init`; it is a plain denoiser if there are none. Sampling may start where all
    models and all `checks` allow it.
    """

    def check_all(t: ArrayLike) -> None:
        for model in models:
            check_start(model, t)
        for check in checks:
            check(t)

    if init is not None or any(isinstance(m, StatefulDenoiser) for m in models):
        inits = (*(lift(m).init for m in models), *([] if init is None else [init]))
        init_all = lambda x: tuple(each(x) for each in inits)
        return StatefulDenoiser(init_all, apply, check_all)

    def denoise(x_t: Array, t: Array) -> Array:
        return apply(x_t, t, ((),) * len(models))[0]

    denoise.check_start = check_all
    return denoise


def at_time(scale: Scale, t: ArrayLike, x: Array) -> Array:
    """Return a scale at a time, so that it broadcasts against x."""
    return expand_like(scale(jnp.asarray(t)) if callable(scale) else scale, x)


def check_space(path: Path | None, kind: Prediction) -> Check:
    """Refuse a space that needs a path where there is none; return its check_start."""
    check_kind(kind)
    if kind == X0:
        return lambda t: None
    if path is None:
        raise ValueError(f"path must be given where kind is {kind}; it is None")
    # What it knows about x_0 is what a network of that kind would.
    through = denoiser(lambda x, t: x, path, kind)
    return lambda t: check_start(through, t)


def in_space(
    path: Path | None,
    kind: Prediction,
    x_t: Array,
    t: ArrayLike,
    rule: Callable[..., Array],
    *x_0s: Array,
) -> Array:
    """Apply a rule to predictions of a kind, and return x_0."""
    if kind == X0 or path is None:
        return rule(*x_0s)
    # At sigma = 0, x_0 says nothing about other kinds, and is x_t / alpha anyway.
    marginal = path(t)
    clean = marginal.sigma == 0
    t = jnp.where(clean, 0.5 * (path.t_min + path.t_max), t)
    values = (convert(path, x_0, x_t, t, X0, kind) for x_0 in x_0s)
    guided = convert(path, rule(*values), x_t, t, kind, X0)
    alpha = expand_like(jnp.where(clean, marginal.alpha, 1.0), x_t)
    return jnp.where(expand_like(clean, x_t), x_t / alpha, guided)


def inner(a: Array, b: Array) -> Array:
    """Return the inner product of each example, [B, 1, ..., 1]."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def ratio(a: Array, b: Array, otherwise: float) -> Array:
    """Return a / b, or a number of no slope where b is not positive."""
    positive = b > 0
    return jnp.where(positive, a / jnp.where(positive, b, 1.0), otherwise)


def check_within(name: str, value: Any, low: float, high: float) -> None:
    """Raise a ValueError if a concrete setting is outside [low, high]."""
    values = concrete(value)
    if values is not None and not ((values >= low) & (values <= high)).all():
        raise ValueError(f"{name} must be within [{low}, {high}]; it is {value}")


def check_order(low: Any, high: Any) -> None:
    """Raise a ValueError unless concrete bounds are low <= high."""
    bottom, top = concrete(low), concrete(high)
    if bottom is not None and top is not None and not (bottom <= top).all():
        raise ValueError(f"low must be at most high; they are {low} and {high}")
