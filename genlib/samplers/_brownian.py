"""One Brownian path for every grid of times.

In the variable y = x / (alpha sigma_hat^2), sigma_hat = sigma / alpha, the reverse SDE
is dy = x_0 dtau + dB(tau) with tau the SNR: what a step adds is an increment of B over
the SNRs that it covers.

B is known at the edges of 2^depth leaves, equally spaced in log-SNR, by bisection: the
halves of an increment are drawn given their sum (Levy's construction). Grids visit the
leaves in order, so that a stack of the halves that still wait is all there is to carry.
Inside a leaf an increment is split at the times of the grid in the same way.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genlib.types import Array, Key

# The log-SNRs between which B is the same for every grid. Beyond, noise is independent.
LOW, HIGH = -20.0, 20.0


class Brownian(NamedTuple):
    """Noise of one Brownian path, see `brownian`."""

    key: Key


def brownian(key: Key) -> Brownian:
    """Return noise that is the same Brownian path whatever the grid of times.

    For `sample(..., noise=brownian(key))`. What a step adds is the increment of one
    path B(SNR) for each example, sigma_s^2 / alpha_s (B(SNR_s) - B(SNR_t)), so that a
    sample of an SDE solver settles as the number of steps grows, where independent
    draws give another sample for every grid. Its law is exact for any grid. It costs
    about two independent draws.

    Args:
      key: one typed key, or one for each example [B].

    Returns:
      What `sample` takes as `noise`, with solvers whose noise is such an increment.

    >>> from genlib import noise, samplers
    >>> path, x_T = noise.EDM(), jnp.full((1, 1), 80.0)
    >>> denoise = lambda x, t: x / (1 + t**2)  # of standard normal data
    >>> source = samplers.brownian(jax.random.key(0))
    >>> def run(steps):
    ...     args = denoise, path, samplers.uniform_log_snr(path, steps), x_T
    ...     return samplers.sample(samplers.ddpm(), *args, noise=source)
    >>> bool(jnp.abs(run(100) - run(400)) < 0.2)
    True
    """
    return Brownian(key)


class State(NamedTuple):
    """What a grid carries: how far it came, and the increments that are still open."""

    now: Array  # the log-SNR reached
    leaf: Array  # the index of the leaf it is in
    rest: Array  # the increment over what remains of that leaf
    waiting: Array  # [depth + 1, *x.shape], right halves by their level


def brownian_stream(
    normal: Callable[[int, Array | int], Array], start: Array, increments: int
) -> tuple[State, Callable[[State, Array, Array], tuple[Array, State]]]:
    """Return the state before a grid and how one increment is drawn.

    Args:
      normal: standard normal noise for the indices (0, node of the tree) and
        (1, increment).
      start: the log-SNR at which the grid starts.
      increments: how many increments the grid has, at least 1. Leaves are about two
        increments long, if those cover the whole range.

    Returns:
      (state, draw), where `draw(state, index, log_snr)` gives the increment from where
      the state is to a log-SNR, scaled to be standard normal, and the state there.
    """
    depth = increments.bit_length() - 1

    def draw(state: State, index: Array, log_snr: Array) -> tuple[Array, State]:
        # Noise is no function of the grid: with fixed draws it would be none either.
        to = jax.lax.stop_gradient(jnp.clip(log_snr, state.now, HIGH))

        def ends_before(carry):
            leaf = carry[0]
            return (_edge(depth, leaf + 1) <= to) & (leaf < 2**depth - 1)

        def next_leaf(carry):
            leaf, rest, waiting, total = carry
            leaf, total = leaf + 1, total + rest
            # The next leaf is the first one of the deepest half that waits.
            level = depth - jax.lax.population_count((leaf & -leaf) - 1)
            draw_at = lambda level, node: normal(0, node)
            rest, waiting = _enter(waiting[level], waiting, level, leaf, draw_at)
            return leaf, rest, waiting, total

        carry = (state.leaf, state.rest, state.waiting, jnp.zeros_like(state.rest))
        leaf, rest, waiting, total = jax.lax.while_loop(ends_before, next_leaf, carry)
        low = jnp.maximum(state.now, _edge(depth, leaf))
        drawn = normal(1, index)
        first, rest = _split(rest, low, to, _edge(depth, leaf + 1), drawn)
        moved = to > state.now
        std = _std(state.now, jnp.where(moved, to, state.now + 1.0))
        noise = jnp.where(moved, (total + first) / std, drawn)
        return noise, State(to, leaf, rest, waiting)

    return _before(normal, depth, start), draw


def _before(normal: Callable, depth: int, start: Array) -> State:
    """Return the state at the start of a grid."""
    now = jax.lax.stop_gradient(jnp.clip(start, LOW, HIGH))
    leaf = jnp.floor((now - LOW) / (HIGH - LOW) * 2**depth).astype(jnp.int32)
    leaf = jnp.minimum(leaf, 2**depth - 1)
    # All draws on the way down at once: one program to compile instead of two.
    levels = jnp.arange(depth)
    nodes = jnp.append((1 << levels) + (leaf >> (depth - levels)), 0)
    drawn = jax.vmap(lambda node: normal(0, node))(nodes)
    whole = drawn[-1] * _std(jnp.asarray(LOW, now.dtype), HIGH)
    draw_at = lambda level, node: drawn[level]
    rest, waiting = _enter(whole, jnp.zeros_like(drawn), 0, leaf, draw_at)
    # What remains of the first leaf has the law of a shorter leaf.
    low, high = _edge(depth, leaf), _edge(depth, leaf + 1)
    rest = rest * _std(now, high) / _std(low, high)
    return State(now, leaf, rest, waiting)


def _enter(
    total: Array, waiting: Array, level: Array | int, leaf: Array, draw_at: Callable
) -> tuple[Array, Array]:
    """Split the increment of the node of a level that holds a leaf down to it."""
    depth = waiting.shape[0] - 1

    def halve(level, carry):
        total, waiting = carry
        node = leaf >> (depth - level)
        low, high = _edge(level, node), _edge(level, node + 1)
        drawn = draw_at(level, (1 << level) + node)
        left, right = _split(total, low, 0.5 * (low + high), high, drawn)
        is_right = (leaf >> (depth - level - 1)) & 1
        waiting = waiting.at[level + 1].set(right)
        return jnp.where(is_right, right, left), waiting

    return jax.lax.fori_loop(level, depth, halve, (total, waiting))


def _edge(level: Array | int, index: Array) -> Array:
    """Return the log-SNR at which the nodes of a level meet."""
    return LOW + (HIGH - LOW) * index / 2.0**level


def _split(total: Array, low: Array, at: Array, high: Array, drawn: Array):
    """Return the increments over (low, at) and (at, high), given the one over both."""
    is_empty = high <= low
    width = jnp.where(is_empty, 1.0, high - low)
    # The parts of e^high - e^low on both sides, each precise where it is small.
    before = jnp.where(is_empty, 1.0, jnp.expm1(at - low) / jnp.expm1(width))
    after = jnp.where(is_empty, 0.0, jnp.expm1(at - high) / jnp.expm1(-width))
    std = jnp.sqrt(before * after) * _std(low, low + width)
    first = before * total + std * drawn
    return first, total - first


def _std(low: Array, high: Array | float) -> Array:
    """Return sqrt(e^high - e^low)."""
    return jnp.exp(0.5 * low) * jnp.sqrt(jnp.expm1(high - low))
