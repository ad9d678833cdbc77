"""Finite scalar quantization in stages, each on a finer grid."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.quantize._entropy import index_perplexity
from genlib.quantize._estimators import straight_through
from genlib.quantize._fsq import (
    Grid,
    along_last,
    check_eps,
    check_levels,
    check_share,
    without_params,
)
from genlib.quantize._grouped import check_axis
from genlib.quantize._keys import stage_counts
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_mask,
    check_vectors,
    without_masked,
)
from genlib.types import Array, ArrayLike, Key, Scalar, expand_like


def residual_fsq(
    levels: Sequence[int],
    depth: int,
    *,
    eps: float = 1e-3,
    dropout: Scalar = 0.0,
    keep: int = 1,
) -> Quantizer:
    """Round each number to a few levels, what is left to finer ones, and so on.

    Numbers are bounded once, as in `fsq`: x in steps. Then, from r_0 = x, in stages
    (arXiv:2309.15505 within the residual scheme of arXiv:2107.03312):

        k_i = round(r_i),    r_{i+1} = (l - 1)(r_i - k_i),
        code = sum_i (l - 1)^-i k_i / floor(l/2)

    so that the levels of a stage cover what the one before left, and what is left never
    grows. The gradient is that of x / floor(l/2), once. Odd levels are the best: of an
    even number, the stages after the first leave the lowest one unused.

    Args:
      levels: of each of the D numbers, at least 3.
      depth: number of stages S; float32 has to resolve the last.
      eps: as in `fsq`.
      dropout: share of the examples (entries of the first axis) that, given a `key`,
        only use the first n stages, with n uniform in keep .. depth.
      keep: the least number of stages.

    Returns:
      A `Quantizer` of vectors [..., D], without parameters, with indices [..., S] and
      perplexity [S]; `size` is that of one stage. A stage of index -1 adds nothing:
      `lookup` of indices set to -1 from a stage on decodes the stages before it.

    Raises:
      ValueError: if `levels` are no integers from 3, or have more than 2^31 - 1 codes;
        if (max(levels) - 1)^depth is more than 2^24; if `keep` is not within 1 ..
        depth, or `dropout` not within 0 .. 1; from `lookup`, if there are not S.

    >>> bottleneck = residual_fsq((5, 5), 3)
    >>> codes, indices, *_ = bottleneck.quantize({}, jnp.array([[0.3, -0.7]]))
    >>> codes.tolist(), indices.tolist()
    ([[0.28125, -0.59375]], [[8, 5, 18]])
    """
    grid = Grid(check_levels(levels, least=3), check_eps(eps, levels))
    _check_stages(grid.levels, depth, keep)
    check_share("dropout", dropout)
    finer = grid.levels - 1
    # The steps of each stage in those of the last: sums of integers are exact.
    steps = finer ** np.arange(depth - 1, -1, -1)[:, None]

    def decode(digits: Array, dtype: Any) -> Array:
        """Return the sum of the codes of levels [S, ..., D]."""
        scale = jnp.asarray(steps, jnp.int32)
        scale = scale.reshape(depth, *(1,) * (digits.ndim - 2), -1)
        total = (digits * scale).sum(0, dtype=jnp.int32).astype(dtype)
        return total * along_last(1 / (grid.middle * steps[0]), total, dtype)

    def stages(x: Array) -> Array:
        def stage(rest: Array, _: None) -> tuple[Array, Array]:
            digits = grid.round(rest)
            return (rest - digits) * along_last(finer, rest, rest.dtype), digits

        return jax.lax.scan(stage, jax.lax.stop_gradient(x), length=depth)[1]

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        z = check_vectors(z, len(grid.levels))
        mask = check_mask(mask, z.shape[:-1])
        x = grid.bound(without_masked(z, mask))
        used = jnp.ones((depth, *z.shape[:-1]), bool)
        if mask is not None:
            used &= mask[None]
        if key is not None:
            count = stage_counts(key, len(z), depth, dropout, keep, axis_name)
            stage = jnp.arange(depth).reshape(depth, *(1,) * (z.ndim - 1))
            used &= stage < expand_like(count, z[..., 0])[None]
        digits = jnp.where(used[..., None], stages(x), 0)
        codes = straight_through(grid.unit(x), decode(digits, x.dtype))
        if mask is not None:
            codes = jnp.where(mask[..., None], codes, 0)
        indices = jnp.where(used, grid.pack(digits), -1)
        perplexity = jax.vmap(
            lambda stage: index_perplexity(stage, grid.size, axis_name)
        )(indices)
        indices = jnp.moveaxis(indices, 0, -1)
        return Quantized(codes.astype(z.dtype), indices, {}, perplexity, ())

    def lookup(indices: Array) -> Array:
        stages = jnp.moveaxis(check_axis("depth", depth, indices), -1, 0)
        return decode(grid.unpack(stages), jnp.result_type(float))

    return without_params(len(grid.levels), quantize, lookup, grid.size)


def _check_stages(levels: np.ndarray, depth: int, keep: int) -> None:
    most = int(levels.max()) - 1
    if depth < 1 or most**depth > 2**24:
        raise ValueError(
            "depth must be at least 1, and (max(levels) - 1)^depth at most 2^24, which "
            f"float32 resolves; they are {depth} and {most}^{depth}"
        )
    if not 1 <= keep <= depth:
        raise ValueError(f"keep must be within 1 .. {depth}; it is {keep}")
