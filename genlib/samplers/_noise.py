"""Where the noise of a solver comes from: keys, given draws or a Brownian path."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.samplers._brownian import Brownian, brownian_stream
from genlib.types import Array, Key, example_keys

Rows = dict[str, Any]


class Stream(NamedTuple):
    """Noise for one row after another.

    Attributes:
      column: what each row carries as "noise", [rows, ...].
      state: what the stream remembers between rows.
      draw: `(state, row) -> (noise, state)`.
    """

    column: Array
    state: Any
    draw: Callable[[Any, Rows], tuple[Array, Any]]


def noise_stream(
    key: Key | None,
    noise: Any,
    x: Array,
    segments: list[Rows],
    draws: int,
    dtype: Any,
) -> Stream:
    """Return the noise of a plan, from either `key` or `noise` of `sample`."""
    if (key is None) == (noise is None):
        raise ValueError(
            "this solver is stochastic: sample needs either key or noise; it got "
            + ("both" if key is not None else "neither")
        )
    index = jnp.arange(sum(len(segment["t"]) for segment in segments))
    shape = x.shape if draws == 1 else (draws, *x.shape)
    if isinstance(noise, Brownian):
        return _brownian(noise, x, segments, draws, dtype)
    if callable(noise):
        return Stream(
            index,
            (),
            lambda state, row: (_shaped(noise(row["noise"]), shape, dtype), ()),
        )
    if noise is not None:
        table = jnp.asarray(noise, dtype)
        if table.shape[1:] != shape or table.shape[0] < len(index):
            raise ValueError(
                f"noise must be one draw of {shape} for each step, "
                f"{(len(index), *shape)}; its shape is {table.shape}"
            )
        return Stream(table[: len(index)], (), lambda state, row: (row["noise"], ()))

    keys = example_keys(key, x)
    one = (*shape[: -x.ndim], *x.shape[1:])  # of one example
    draw_one = lambda k, i: _normal(jax.random.fold_in(k, i), one, dtype)
    draw = jax.vmap(draw_one, (0, None), out_axes=len(shape) - x.ndim)
    return Stream(index, (), lambda state, row: (draw(keys, row["noise"]), ()))


def _brownian(
    noise: Brownian, x: Array, segments: list[Rows], draws: int, dtype: Any
) -> Stream:
    if not all("clock" in segment for segment in segments):
        raise ValueError(
            "noise must be a key, an array or a function for this solver: its noise is "
            "no increment over log-SNR, as samplers.brownian would give"
        )
    keys = example_keys(noise.key, x)
    steps = sum(len(segment["t"]) for segment in segments)

    kinds = [jax.vmap(jax.random.fold_in, (0, None))(keys, kind) for kind in range(2)]

    def normal(kind, i):
        one = lambda k: _normal(jax.random.fold_in(k, i), x.shape[1:], dtype)
        return jax.vmap(one)(kinds[kind])

    start = jnp.asarray(segments[0]["clock"])[0, 0].astype(dtype)
    state, draw = brownian_stream(normal, start, steps * draws)

    def draw_row(state, row):
        drawn = []
        for i in range(draws):
            index = row["noise"] * draws + i
            noise, state = draw(state, index, row["clock"][i + 1])
            drawn.append(noise)
        return (drawn[0] if draws == 1 else jnp.stack(drawn)), state

    return Stream(jnp.arange(steps), state, draw_row)


def _shaped(noise: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    if jnp.shape(noise) != shape:
        raise ValueError(
            f"noise must return the shape {shape}; it returned {jnp.shape(noise)}"
        )
    return jnp.asarray(noise, dtype)


def _normal(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    # The same numbers as of `shape` at once; XLA on CPU needs half the time for a line.
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
