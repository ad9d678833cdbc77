"""Codes drawn one after another, or many at a time where a network is most certain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.quantize._quantizer import check_indices
from genlib.types import (
    Array,
    Key,
    Scalar,
    compute_dtype,
    concrete,
    example_keys,
    expand_like,
)


def code_log_prob(logits: Array, indices: Array) -> Array:
    """Return the log-probability of codes, of which each place has its own logits.

        sum_t log softmax(logits_t)[index_t]

    With the logits of an autoregressive prior this is log p of the example, exactly.

    Args:
        logits: `[B, ..., K]`.
        indices: integers `[B, ...]` in `0 .. K - 1`; -1 (no code) counts nothing. A
            traced index outside of that gives NaN.

    Returns:
        Nats for each example `[B]`, at least float32.

    Raises:
        ValueError: if the shapes do not belong together, or an index is known to be
            outside of -1 .. K - 1.

    >>> code_log_prob(jnp.zeros((1, 3, 4)), jnp.array([[0, 3, -1]])).round(4)
    Array([-2.7726], dtype=float32)
    """
    return place_log_prob(logits, indices).reshape(logits.shape[0], -1).sum(1)


def place_log_prob(logits: Array, indices: Array) -> Array:
    """Return the terms of `code_log_prob`, `[B, ...]`."""
    size = logits.shape[-1]
    indices = check_indices(indices, size)
    if logits.ndim < 2 or indices.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits must be [B, ..., K] for indices {list(indices.shape)}; their "
            f"shape is {list(logits.shape)}"
        )
    log_p = jax.nn.log_softmax(logits.astype(compute_dtype(logits.dtype)))
    # A negative index would wrap around to another code.
    index = jnp.where(indices < 0, size, indices)[..., None]
    picked = jnp.take_along_axis(log_p, index, -1, mode="fill")[..., 0]
    return jnp.where(indices == -1, 0, picked)


def sample_codes(
    key: Key,
    step: Callable[[Any, Array, Array], tuple[Array, Any]],
    cache: Any,
    shape: tuple[int, int],
    *,
    temperature: Scalar = 1.0,
    top_k: int | None = None,
    top_p: Scalar | None = None,
) -> Array:
    """Draw codes one after another, each from what a network says after those before.

    One `jax.lax.scan` over the places, with what the network remembers carried along.
    The draws of an example do not change with the batch around it.

    Args:
        key: one key, or one for each example `[B]`.
        step: `(cache, index, t) -> (logits, cache)`: logits `[B, K]` of place t from
            the codes `[B]` of the place before, -1 at the first, and a cache that keeps
            its shapes and dtypes.
        cache: before the first place.
        shape: `(B, T)`.
        temperature: of the softmax, also one for each example `[B]`; 0 takes the most
            probable code, 1 is the model.
        top_k: draw only from so many of the most probable codes, or None.
        top_p: draw only from the fewest most probable codes that have so much
            probability together, at temperature 1 (arXiv:1904.09751), or None.

    Returns:
        int32 `[B, T]`.

    Raises:
        ValueError: if `temperature` is negative, `top_k` is not within 1 .. K or
            `top_p` not within (0, 1].

    >>> step = lambda cache, index, t: (jax.nn.one_hot(index + 1, 5), cache)
    >>> sample_codes(jax.random.key(0), step, (), (1, 4), temperature=0.0).tolist()
    [[0, 1, 2, 3]]
    """
    first = jnp.full(shape[:1], -1, jnp.int32)
    keys = example_keys(key, first)

    def body(carry: Any, t: Array) -> Any:
        cache, index = carry
        logits, cache = step(cache, index, t)
        index = _draw(_folded(keys, t), logits, temperature, top_k, top_p)
        return (cache, index), index

    _, indices = jax.lax.scan(body, (cache, first), jnp.arange(shape[1]))
    return indices.swapaxes(0, 1)


def sample_masked_codes(
    key: Key,
    predict: Callable[[Array], Array],
    shape: tuple[int, int],
    *,
    steps: int = 8,
    temperature: Scalar = 1.0,
    choice_temperature: Scalar = 4.5,
    top_k: int | None = None,
    top_p: Scalar | None = None,
) -> Array:
    """Draw all codes at once, keep those that the network is most certain of, repeat.

    After step n of N, `T cos(pi n / (2 N))` places, rounded down, are masked again:
    those whose codes have the lowest `log p + choice_temperature (1 - n / N) Gumbel`.
    Every step decides on at least one code, and the last on all that are left.

    One step draws all codes independently; T steps draw one at a time.

    Args:
        key: as of `sample_codes`.
        predict: indices `[B, T]`, -1 where masked, to logits `[B, T, K]`.
        shape: `(B, T)`.
        steps: N, from 1 to T.
        temperature: as of `sample_codes`.
        choice_temperature: randomness of which codes to keep, 0 for none; also `[B]`.
        top_k: as of `sample_codes`.
        top_p: as of `sample_codes`.

    Returns:
        int32 `[B, T]`, none of them masked.

    Raises:
        ValueError: if `steps` is not within 1 .. T, or as `sample_codes`.

    Source: arXiv:2202.04200; 4.5 is the authors' choice temperature.

    >>> predict = lambda indices: jax.nn.one_hot(jnp.array([[2, 0, 1]]), 3)
    >>> draw = lambda **kwargs: sample_masked_codes(
    ...     jax.random.key(0), predict, (1, 3), temperature=0.0, **kwargs
    ... )
    >>> draw(steps=2).tolist()
    [[2, 0, 1]]
    """
    length = shape[1]
    if not 1 <= steps <= length:
        raise ValueError(f"steps must be within 1 .. {length}, got {steps}")
    check_not_negative("choice_temperature", choice_temperature)
    start = jnp.full(shape, -1, jnp.int32)
    keys = example_keys(key, start)

    def body(indices: Array, row: Any) -> Any:
        n, masked = row
        key_code, key_choice = jax.vmap(jax.random.split, out_axes=1)(_folded(keys, n))
        logits = predict(indices)
        drawn = _draw(key_code, logits, temperature, top_k, top_p)
        known = indices >= 0
        sure = place_log_prob(logits, drawn)
        spread = jnp.asarray(choice_temperature * (1 - (n + 1) / steps), sure.dtype)
        sure = sure + expand_like(spread, sure) * _gumbel(key_choice, sure)
        place = jnp.where(known, jnp.inf, sure).argsort(1).argsort(1)
        drawn = jnp.where(known, indices, drawn)
        return jnp.where(place < masked, -1, drawn), None

    rows = (jnp.arange(steps), jnp.asarray(masked_after(steps, length)))
    return jax.lax.scan(body, start, rows)[0]


def masked_after(steps: int, length: int) -> np.ndarray:
    """Return how many places are still masked after each step.

    >>> masked_after(4, 16).tolist(), masked_after(4, 4).tolist()
    ([14, 11, 6, 0], [3, 2, 1, 0])
    """
    n = np.arange(steps)
    count = np.floor(length * np.cos(np.pi / 2 * (n + 1) / steps)).astype(np.int32)
    # At least one code for each step, and at least one left for each step to come.
    falling = np.clip(count + n, steps - 1, length - 1)
    return (np.minimum.accumulate(falling) - n).astype(np.int32)


def check_not_negative(name: str, value: Scalar) -> None:
    """Refuse a setting that is known to be negative."""
    values = concrete(value)
    if values is not None and not (values >= 0).all():
        raise ValueError(f"{name} must not be negative, got {value}")


def _draw(
    keys: Key, logits: Array, temperature: Scalar, top_k: int | None, top_p: Any
) -> Array:
    """Return a code for each row of logits: `argmax(logits + temperature Gumbel)`."""
    check_not_negative("temperature", temperature)
    logits = _truncated(logits.astype(compute_dtype(logits.dtype)), top_k, top_p)
    spread = expand_like(jnp.asarray(temperature, logits.dtype), logits)
    return (logits + spread * _gumbel(keys, logits)).argmax(-1).astype(jnp.int32)


def _truncated(logits: Array, top_k: int | None, top_p: Scalar | None) -> Array:
    """Give -inf to all codes but the most probable."""
    size = logits.shape[-1]
    if top_k is not None and not 1 <= top_k <= size:
        raise ValueError(f"top_k must be within 1 .. {size}, got {top_k}")
    share = None if top_p is None else concrete(top_p)
    if share is not None and not ((share > 0) & (share <= 1)).all():
        raise ValueError(f"top_p must be within (0, 1], got {top_p}")
    if top_k is None and top_p is None:
        return logits
    order = jnp.argsort(-logits, -1)
    rank = jnp.argsort(order, -1)
    keep = jnp.ones(logits.shape, bool)
    if top_k is not None:
        keep = rank < top_k
    if top_p is not None:
        p = jnp.take_along_axis(jax.nn.softmax(logits), order, -1)
        before = jnp.take_along_axis(p.cumsum(-1) - p, rank, -1)
        # The most probable code is always among them.
        keep = keep & ((before < expand_like(top_p, before)) | (rank == 0))
    return jnp.where(keep, logits, -jnp.inf)


def _gumbel(keys: Key, like: Array) -> Array:
    draw = lambda key: jax.random.gumbel(key, like.shape[1:], like.dtype)
    return jax.vmap(draw)(keys)


def _folded(keys: Key, step: Array) -> Key:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, step)
