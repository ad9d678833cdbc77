"""What a codebook learns from a batch: sums, and moving averages of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.quantize._quantizer import (
    check_indices,
    check_mask,
    check_vectors,
    without_masked,
)
from genlib.tree import lerp, select
from genlib.types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    check_positive,
    check_typed_key,
    concrete,
    safe_sqrt,
)

State = dict[str, Array]


class Statistics(NamedTuple):
    """Sums over a batch that a codebook learns from; those of its parts add up.

    Attributes:
      n: how many vectors have each code, [K].
      sum: of these vectors, [K, D].
      candidates: vectors of the batch, one for each code, from which it may start
        again; 0 where none was drawn. [K, D].
      drawn: how many candidates are added up, [K]: only a sum of one is a vector.
    """

    n: Array
    sum: Array
    candidates: Array
    drawn: Array


def codebook_statistics(
    z: ArrayLike,
    indices: ArrayLike,
    size: int,
    *,
    mask: ArrayLike | None = None,
    key: Key | None = None,
    parts: int = 1,
    axis_name: Any = None,
) -> Statistics:
    """Sum the vectors of a batch by their codes.

        n_k = |{i: index_i = k}|,  sum_k = sum of z_i over these i,

    as scatter-adds, whose memory does not grow with the number of vectors times K.
    Split over devices they are one all-reduce, the candidates included. Only `mask` and
    `key` together cost more: under `jit` the mask is gathered, to count what is left.

    Args:
      z: vectors [..., D]. No gradient comes from here.
      indices: their codes, integers [...]; -1, for no code, is not counted.
      size: how many codes there are, K.
      mask: bool [...], False for what is neither counted nor a candidate, whatever it
        holds.
      key: draws the candidates, different vectors if there are K of them; none without.
      parts: of how many parts of a batch, as in the accumulation of gradients, the
        statistics will be added up. Each then proposes with probability 1 / parts,
        so that often exactly one does; their keys must differ.
      axis_name: of `shard_map` or `pmap`, to sum over all devices, with the same `key`
        on each.

    Returns:
      `Statistics`, in at least float32 (n is exact up to 2^24).

    Raises:
      ValueError: if shapes do not fit, `key` is no typed key, or an index is known not
        to be below `size`.

    >>> z = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    >>> statistics = codebook_statistics(z, jnp.array([1, 1, 0]), 2)
    >>> statistics.n.tolist(), statistics.sum.tolist()
    ([1.0, 2.0], [[0.0, 5.0], [4.0, 0.0]])
    """
    z = check_vectors(z)
    mask = check_mask(mask, z.shape[:-1])
    indices = check_indices(indices, size)
    if indices.shape != z.shape[:-1]:
        raise ValueError(
            f"indices must be {list(z.shape[:-1])}, one for each vector; they are "
            f"{list(indices.shape)}"
        )
    if parts < 1:
        raise ValueError(f"parts must be at least 1; it is {parts}")
    rows = with_ones(jax.lax.stop_gradient(without_masked(z, mask)))
    counted = indices >= 0 if mask is None else (indices >= 0) & mask
    # What is not counted goes to the row after the last, which does not exist.
    index = jnp.where(counted, indices, size).ravel()
    none = jnp.zeros((size, rows.shape[-1]), rows.dtype)
    both = [none.at[index].add(rows)]
    if key is not None:
        check_typed_key(key)
        row_key, part_key = jax.random.split(key)
        drawn = draw_rows(row_key, rows, size, mask, axis_name)
        proposed = jax.random.bernoulli(part_key, 1 / parts, (size, 1))
        both.append(jnp.where(proposed, drawn, 0))
    if axis_name is not None:
        # One array is one collective.
        both = jnp.split(jax.lax.psum(jnp.concatenate(both), axis_name), len(both))
    sums, drawn = both if key is not None else (both[0], none)
    return Statistics(sums[:, -1], sums[:, :-1], drawn[:, :-1], drawn[:, -1])


def with_ones(z: Array) -> Array:
    """Return vectors as rows with a 1 behind each, so that sums of rows count them.

    >>> with_ones(jnp.zeros((1, 2, 3))).shape
    (2, 4)
    """
    rows = z.reshape(-1, z.shape[-1])
    return jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], 1)


def draw_rows(
    key: Key, rows: Array, size: int, mask: Array | None, axis_name: Any
) -> Array:
    """Draw rows of a batch, different ones if it has as many that are not masked.

    Each has the same probability to be drawn; they come from all parts of the batch
    alike, and need neither a sort of it nor, split over devices, the whole of it. Which
    they are does not change with masked rows between them, nor with the devices.

    Args:
      key: the same on all devices.
      rows: [N, D], under `axis_name` one device's part of them.
      size: how many are drawn, K. If there are fewer rows they are drawn repeatedly.
      mask: bool [...] of N elements, False for rows that are not drawn.
      axis_name: of `shard_map` or `pmap`.

    Returns:
      [K, D], 0 for what other devices hold: under `axis_name` still to be summed. All
      is 0 if all rows are masked.

    >>> draw_rows(jax.random.key(0), jnp.ones((5, 1)), 2, None, None).tolist()
    [[1.0], [1.0]]
    """
    if len(rows) == 0:
        return jnp.zeros((size, rows.shape[-1]), rows.dtype)
    count = len(rows) if mask is None else mask.sum(dtype=jnp.int32)
    total, before = count, 0
    if axis_name is not None:
        total = jax.lax.psum(count, axis_name)
        device = jax.lax.axis_index(axis_name)
        before = device * count
        if mask is not None:
            counts = jax.lax.all_gather(count, axis_name)
            earlier = jnp.arange(len(counts)) < device
            before = jnp.where(earlier, counts, 0).sum(dtype=jnp.int32)
    # One row from each of K stretches in turn, starting anywhere: all of it in the
    # numbers 0 .. total - 1 of the rows that are not masked.
    start_key, place_key = jax.random.split(key)
    stretch = jnp.maximum(total // size, 1)
    total = jnp.maximum(total, 1)
    start = jax.random.randint(start_key, (), 0, total, jnp.int32)
    place = jax.random.randint(place_key, (size,), 0, stretch, jnp.int32)
    step = stretch.astype(jnp.int32) * jnp.arange(size, dtype=jnp.int32)
    number = (start + step + place) % total.astype(jnp.int32) - before
    here = (number >= 0) & (number < count)
    if mask is not None:
        seen = jnp.cumsum(mask.ravel(), dtype=jnp.int32)
        number = jnp.searchsorted(seen, number, side="right").astype(jnp.int32)
    return rows.at[jnp.where(here, number, len(rows))].get(mode="fill", fill_value=0)


def unit(z: Array) -> Array:
    """Return z / |z|, and z where it is 0, with its gradient; no square overflows.

    >>> unit(jnp.array([[0.0, 3e38], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    # Lengths do not matter to the result, so neither to its gradient. The reciprocal
    # of what divides must not vanish: compilers multiply by it.
    tiny = float(jnp.finfo(z.dtype).tiny)
    largest = jax.lax.stop_gradient(jnp.abs(z).max(-1, keepdims=True))
    z = z / jnp.where(largest < tiny, 1, jnp.minimum(largest, 1 / tiny))
    norm = safe_sqrt(jnp.square(z).sum(-1, keepdims=True))
    return z / jnp.where(largest < tiny, 1, norm)


def init_ema(codebook: ArrayLike) -> State:
    """Return the moving averages from which a codebook starts: n = 1, sum = codebook.

    Args:
      codebook: [K, D].

    Returns:
      {"n": [K], "sum": [K, D]}, in at least float32.

    Raises:
      ValueError: if `codebook` is not floating point [K, D].

    >>> init_ema(jnp.array([[2.0, 0.0]]))["n"]
    Array([1.], dtype=float32)
    """
    codebook = jnp.asarray(codebook)
    if codebook.ndim != 2 or not jnp.issubdtype(codebook.dtype, jnp.floating):
        raise ValueError(
            "codebook must be floating point codes [K, D]; it is "
            f"{codebook.dtype}{list(codebook.shape)}"
        )
    codebook = without_masked(codebook, None)
    return {"n": jnp.ones(len(codebook), codebook.dtype), "sum": codebook}


def ema_codebook(state: State, eps: Scalar = 1e-5) -> Array:
    """Return the codebook of moving averages, with Laplace's smoothing of the counts.

        c_k = sum_k / ((n_k + eps) n / (n + K eps)),  n = sum_k n_k.

    Args:
      state: {"n": [K], "sum": [K, D]}.
      eps: of the smoothing.

    Returns:
      [K, D].

    Source: arXiv:1711.00937, appendix A.1.

    >>> ema_codebook(init_ema(jnp.array([[2.0], [4.0]]))).tolist()
    [[2.0], [4.0]]
    """
    n, total = state["n"], state["n"].sum()
    eps = jnp.asarray(eps, n.dtype)
    smooth = (n + eps) * (total / (total + len(n) * eps))
    return state["sum"] / smooth[:, None]


def ema_update(
    state: State,
    statistics: Statistics,
    *,
    decay: Scalar = 0.99,
    eps: Scalar = 1e-5,
) -> State:
    """Move the averages of a codebook by a batch.

        n <- decay n + (1 - decay) n_batch,  sum <- decay sum + (1 - decay) sum_batch.

    There is no correction for the start: it would take codes that are not chosen to the
    origin. They stay where they are: both averages shrink alike, and stop once n would
    fall below 1000 eps, where the smoothing would move the code by a thousandth. A
    batch without any vector changes nothing.

    Args:
      state: {"n": [K], "sum": [K, D]}.
      statistics: of the batch.
      decay: from 0 to 1.
      eps: of the smoothing in `ema_codebook`.

    Returns:
      The new state. For a codebook that is used before it is updated, look the batch up
      in the old one.

    Raises:
      ValueError: if `decay` or `eps` is known to be out of range.

    Source: arXiv:1711.00937, appendix A.1.

    >>> state = init_ema(jnp.array([[0.0], [1.0]]))
    >>> z, indices = jnp.array([[3.0]]), jnp.array([1])
    >>> state = ema_update(state, codebook_statistics(z, indices, 2), decay=0.5)
    >>> ema_codebook(state).round(2).tolist()
    [[0.0], [2.0]]
    """
    check_decay(decay)
    check_positive("eps", eps)
    batch = {"n": statistics.n, "sum": statistics.sum}
    moved = lerp(state, batch, 1 - decay)
    held = (statistics.n == 0) & (moved["n"] < 1000 * eps)
    moved = {
        "n": jnp.where(held, state["n"], moved["n"]),
        "sum": jnp.where(held[:, None], state["sum"], moved["sum"]),
    }
    return select(statistics.n.sum() > 0, moved, state)


def check_decay(decay: Scalar) -> None:
    """Raise a ValueError unless a concrete decay is from 0 to 1.

    >>> check_decay(99)
    Traceback (most recent call last):
    ValueError: decay must be from 0 to 1; it is 99
    """
    values = concrete(decay)
    if values is not None and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"decay must be from 0 to 1; it is {decay}")
