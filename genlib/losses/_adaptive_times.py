"""Training times drawn where the loss is, with the weight that keeps the mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.losses._times import TimeSampler, across, uniform, unit_draws
from genlib.losses._times_log_snr import check_range, log_snr_range, time_within
from genlib.losses._weights import Weight
from genlib.noise import Path
from genlib.prediction import Prediction
from genlib.types import Array, ArrayLike, Key, Scalar, compute_dtype, float_array


class AdaptiveTimes(NamedTuple):
    """Pure functions that learn from losses where to draw times.

    The state is a pytree of small arrays; keep it beside the parameters. Draw t with
    `times(state)`, update with the losses as they are, and train on the losses times
    `weight(state)`, whose expectation is that of uniform draws.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Path, Array, Array], Any]  # (state, path, t, losses)
    times: Callable[[Any], TimeSampler]
    weight: Callable[[Any], Weight]  # the same for every kind


class LossHistory(NamedTuple):
    """The last losses of each bin, [bins, history], and how many there have been."""

    losses: Array
    count: Array


class LossAverage(NamedTuple):
    """The moving average of the losses of each bin, [bins], and which have had one."""

    losses: Array
    seen: Array


def loss_second_moment(
    bins: int = 100,
    *,
    history: int = 10,
    floor: Scalar = 1e-3,
    draw: TimeSampler = uniform,
) -> AdaptiveTimes:
    """Draw times as often as the root mean square of their losses (iDDPM).

    p_k = (1 - floor) rms_k / sum_j rms_j + floor / bins over equal bins of time, from
    the last `history` losses of each, and uniform until every bin has as many; weight
    1 / (bins p_k), so that the mean is that of uniform times (arXiv:2102.09672,
    sec. 3.3).

    Args:
      bins: how many equal parts of the path have a probability of their own.
      history: how many losses of each are kept.
      floor: share of draws that stays uniform, which bounds the weight.
      draw: how the uniform numbers underneath are drawn: `uniform`, `stratified` or
        `low_discrepancy`.

    Returns:
      `AdaptiveTimes` with a `LossHistory` for its state.

    Raises:
      ValueError: if `bins` or `history` is less than 1.

    >>> from genlib import noise, prediction
    >>> adaptive, path = loss_second_moment(bins=2, history=1), noise.Cosine()
    >>> state = adaptive.init()
    >>> t = jnp.array([0.2, 0.7])
    >>> state = adaptive.update(state, path, t, jnp.array([1.0, 3.0]))
    >>> [round(w.item(), 2) for w in adaptive.weight(state)(path, prediction.V, t)]
    [2.0, 0.67]
    """
    _check_positive("bins", bins)
    _check_positive("history", history)

    def init() -> LossHistory:
        return LossHistory(jnp.zeros((bins, history)), jnp.zeros(bins, jnp.int32))

    def update(state: LossHistory, path: Path, t: Array, losses: Array) -> LossHistory:
        losses = jax.lax.stop_gradient(losses)
        # Losses that are not finite go to a bin that is dropped.
        k = jnp.where(jnp.isfinite(losses), _bin(_TIME.position(path, t), bins), bins)
        order = jnp.argsort(k)
        k, losses = k[order], losses[order]
        new = jnp.bincount(k, length=bins)
        place = jnp.arange(k.size) - jnp.searchsorted(k, k)  # among those of its bin
        row = jnp.where(place >= new[k] - history, k, bins)  # older ones are dropped
        column = (state.count[k] + place) % history
        kept = state.losses.at[row, column].set(
            losses.astype(state.losses.dtype), mode="drop"
        )
        count = state.count + new.astype(jnp.int32)
        # Counts stay small, so that they never overflow.
        wrapped = jnp.where(count >= history, history + count % history, count)
        return LossHistory(kept, wrapped)

    def shares(state: LossHistory) -> Array:
        rms = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
        full = jnp.all(state.count >= history)
        return _normalised(jnp.where(full, rms, 1.0), floor)

    return _histogram(init, update, shares, _TIME, bins, draw)


def adaptive_log_snr(
    low: Scalar = -10.0,
    high: Scalar = 10.0,
    bins: int = 100,
    *,
    decay: Scalar = 0.999,
    floor: Scalar = 1e-3,
    draw: TimeSampler = uniform,
) -> AdaptiveTimes:
    """Draw log-SNRs as often as the moving average of their losses (VDM++).

    p_k = (1 - floor) m_k / sum_j m_j + floor / bins over equal bins of log-SNR, where
    m_k is the moving average of the losses in the bin, and of all bins while it has had
    none; weight 1 / (bins p_k), so that the mean is that of log-SNRs uniform in
    [low, high], as far as the path has them (arXiv:2303.00848).

    Args:
      low: smallest log-SNR in nats.
      high: largest log-SNR.
      bins: how many equal parts have a probability of their own.
      decay: of the moving average, once for each update that has losses in a bin.
      floor: share of draws that stays uniform, which bounds the weight.
      draw: how the uniform numbers underneath are drawn: `uniform`, `stratified` or
        `low_discrepancy`.

    Returns:
      `AdaptiveTimes` with a `LossAverage` for its state. The losses may not be
      negative.

    Raises:
      ValueError: if `bins` is less than 1, or `low` concretely not below `high`.

    >>> from genlib import noise, prediction
    >>> adaptive, path = adaptive_log_snr(-4.0, 4.0, bins=2), noise.Cosine()
    >>> t = noise.time_at(path, jnp.array([-2.0, 2.0]))
    >>> state = adaptive.update(adaptive.init(), path, t, jnp.array([1.0, 3.0]))
    >>> [round(w.item(), 2) for w in adaptive.weight(state)(path, prediction.V, t)]
    [2.0, 0.67]
    """
    _check_positive("bins", bins)
    check_range(low, high)
    axis = _Axis(
        position=lambda path, t: (path.log_snr(float_array(t)) - low) / (high - low),
        time=lambda path, u: time_within(path, low + u * (high - low)),
        ends=lambda path, dtype: jnp.clip(
            (log_snr_range(path, dtype) - low) / (high - low), 0.0, 1.0
        ),
    )

    def init() -> LossAverage:
        return LossAverage(jnp.zeros(bins), jnp.zeros(bins, bool))

    def update(state: LossAverage, path: Path, t: Array, losses: Array) -> LossAverage:
        losses = jax.lax.stop_gradient(losses).astype(state.losses.dtype)
        # Losses that are not finite go to a bin that is dropped.
        k = jnp.where(jnp.isfinite(losses), _bin(axis.position(path, t), bins), bins)
        new = jnp.bincount(k, length=bins)
        mean = jnp.zeros_like(state.losses).at[k].add(
            losses, mode="drop"
        ) / jnp.maximum(new, 1)
        moved = jnp.where(
            state.seen, state.losses + (1 - decay) * (mean - state.losses), mean
        )
        return LossAverage(
            jnp.where(new > 0, moved, state.losses), state.seen | (new > 0)
        )

    def shares(state: LossAverage) -> Array:
        seen = jnp.sum(state.seen)
        typical = jnp.sum(state.losses) / jnp.maximum(seen, 1)  # unseen ones are 0
        return _normalised(jnp.where(state.seen, state.losses, typical), floor)

    return _histogram(init, update, shares, axis, bins, draw)


class _Axis(NamedTuple):
    """A coordinate of noise levels on [0, 1], which is cut into equal bins."""

    position: Callable[[Path, Array], Array]
    time: Callable[[Path, Array], Array]
    ends: Callable[[Path, Any], Array]  # the interval [2] that a path covers


_TIME = _Axis(
    position=lambda path, t: (float_array(t) - path.t_min) / (path.t_max - path.t_min),
    time=across,
    ends=lambda path, dtype: jnp.array([0.0, 1.0], dtype),
)


def _histogram(
    init: Callable[[], Any],
    update: Callable[[Any, Path, Array, Array], Any],
    shares: Callable[[Any], Array],
    axis: _Axis,
    bins: int,
    draw: TimeSampler,
) -> AdaptiveTimes:
    """Draw from bins of an axis by their shares, uniformly within each."""
    edges = lambda dtype: jnp.linspace(0.0, 1.0, bins + 1, dtype=dtype)

    def cumulative(state: Any, dtype: Any) -> Array:
        total = jnp.cumsum(shares(state).astype(dtype))
        return jnp.concatenate([jnp.zeros(1, dtype), total / total[-1]])

    def times(state: Any) -> TimeSampler:
        def sample(key: Key, path: Path, n: int, dtype: Any = jnp.float32) -> Array:
            dtype = compute_dtype(dtype)
            below, knots = cumulative(state, dtype), edges(dtype)
            first, last = jnp.interp(axis.ends(path, dtype), knots, below)
            u = first + unit_draws(draw, key, n, dtype) * (last - first)
            return axis.time(path, jnp.interp(u, below, knots))

        return sample

    def weight(state: Any) -> Weight:
        def inverse_density(path: Path, kind: Prediction, t: ArrayLike) -> Array:
            position = axis.position(path, jnp.asarray(t))
            dtype = position.dtype
            ends = axis.ends(path, dtype)
            covered = jnp.diff(jnp.interp(ends, edges(dtype), cumulative(state, dtype)))
            share = shares(state).astype(dtype)[_bin(position, bins)] / covered[0]
            return 1.0 / (bins * share * (ends[1] - ends[0]))

        return inverse_density

    return AdaptiveTimes(init, update, times, weight)


def _bin(position: Array, bins: int) -> Array:
    return jnp.clip(position * bins, 0, bins - 1).astype(jnp.int32)


def _normalised(loss: Array, floor: Scalar) -> Array:
    """Return probabilities of bins; uniform where no bin has any loss."""
    total = jnp.sum(loss)
    share = jnp.where(total > 0, loss / jnp.where(total > 0, total, 1.0), 1 / loss.size)
    return (1 - floor) * share + floor / loss.size


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1; it is {value}")
