"""Vector quantisation: codes that are trained, or averages of what chose them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.quantize._codebook import (
    Statistics,
    check_decay,
    codebook_statistics,
    ema_codebook,
    ema_update,
    init_ema,
    unit,
)
from genlib.quantize._entropy import index_perplexity
from genlib.quantize._estimators import straight_through
from genlib.quantize._kmeans import kmeans
from genlib.quantize._nearest import METRICS, nearest
from genlib.quantize._quantizer import (
    Params,
    Quantized,
    Quantizer,
    check_indices,
    check_mask,
    check_vectors,
    mean_square,
    rows_of,
    without_masked,
)
from genlib.quantize._reset import check_share, dead_codes, reset_dead
from genlib.quantize._usage import perplexity
from genlib.tree import lerp
from genlib.types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    check_positive,
    compute_dtype,
)

Estimator = Callable[[Array, Array], Array]

INITS = ("kmeans", "data", "uniform", "normal")
# Of the counts that tell `vq` which codes are dead.
USE_DECAY = 0.99


def vq(
    size: int,
    *,
    metric: str = "euclidean",
    estimator: Estimator = straight_through,
    init: str = "kmeans",
    steps: int = 10,
    reset: Scalar | None = None,
    parts: int = 2,
) -> Quantizer:
    """Quantise to the nearest of `size` codes, which the optimizer trains.

        index = argmin_k |z - c_k|^2,
        commitment = mean_D (z - sg(c))^2,  codebook = mean_D (sg(z) - c)^2,

    with sg for no gradient. The codebook learns from its own loss alone: the gradient
    of what is made of the codes goes to z, by the estimator, and not to the codebook.
    With `metric` "cosine" vectors and codes are scaled to length 1 before all of this,
    so that the codes returned have it too.

    Args:
      size: how many codes, K.
      metric: "euclidean" or "cosine".
      estimator: of the gradient in z, `(z, codes) -> codes`: `straight_through`, as in
        the paper, or `rotate`, which uses more of the codebook in many models.
      init: where codes start: "kmeans" of the first batch, its vectors ("data"),
        "uniform" in -1/K .. 1/K, or "normal", of variance 1.
      steps: of k-means.
      reset: share of the average use below which a code is dead, and `update` puts it
        to a vector of the batch, if `quantize` had a key; None lets it be. Use is
        a moving average of decay 0.99. See `reset_dead`.
      parts: in about how many parts a batch comes whose statistics are added up:
        `accumulate` of `train.make_step`, times the devices under `shard_map_step` or
        `pmap_step`. Each part proposes a new place for a code with probability 1/parts,
        and a dead code restarts where just one does. The default suits 1 to 4; with far
        more parts than said, dead codes do not restart.

    Returns:
      A `Quantizer` with parameters {"codebook": [K, D]}, and with `reset`
      {"statistics": {"n": [K]}} beside it.

    Raises:
      ValueError: if a setting is out of range; from `init`, if the batch has fewer than
        K vectors for "kmeans" or "data".

    Source: arXiv:1711.00937, eq. 3.

    >>> from genlib import quantize
    >>> layer = quantize.vq(2, init="data")
    >>> z = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    >>> layer.quantize(layer.init(jax.random.key(0), z), 0.9 * z).codes.tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    _check_settings(size, metric, init, steps, reset, parts)

    def start(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        codebook = _start(key, z, size, metric, init, steps, mask, axis_name)
        if reset is None:
            return {"codebook": codebook}
        use = jnp.ones(size, codebook.dtype)
        return {"codebook": codebook, "statistics": {"n": use}}

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        codebook = params["codebook"]
        z = check_vectors(z, codebook.shape[-1])
        mask = check_mask(mask, z.shape[:-1])
        vectors, indices, codes = _nearest_codes(codebook, z, metric, mask)
        fixed = jax.lax.stop_gradient
        losses = {
            "commitment": mean_square(vectors - fixed(codes), mask),
            "codebook": mean_square(fixed(vectors) - codes, mask),
        }
        codes = estimator(vectors, fixed(codes)).astype(z.dtype)
        if reset is None:
            evenness = index_perplexity(indices, size, axis_name)
            return Quantized(codes, indices, losses, evenness, ())
        statistics = codebook_statistics(
            vectors,
            indices,
            size,
            mask=mask,
            key=key,
            parts=parts,
            axis_name=axis_name,
        )
        return Quantized(codes, indices, losses, perplexity(statistics.n), statistics)

    def lookup(params: Params, indices: ArrayLike) -> Array:
        return _codes(params["codebook"], check_indices(indices, size), metric)

    def update(params: Params, statistics: Any) -> Params:
        if reset is None:
            return params
        n = params["statistics"]["n"]
        any_chosen = statistics.n.sum() > 0
        n = jnp.where(any_chosen, lerp(n, statistics.n, 1 - USE_DECAY), n)
        dead, mean = dead_codes(n, statistics, reset)
        candidates = statistics.candidates.astype(params["codebook"].dtype)
        return params | {
            "codebook": jnp.where(dead[:, None], candidates, params["codebook"]),
            "statistics": {"n": jnp.where(dead, mean, n)},
        }

    return Quantizer(start, quantize, lookup, update, size)


def ema_vq(
    size: int,
    *,
    decay: Scalar = 0.99,
    eps: Scalar = 1e-5,
    metric: str = "euclidean",
    estimator: Estimator = straight_through,
    init: str = "kmeans",
    steps: int = 10,
    reset: Scalar | None = None,
    parts: int = 2,
) -> Quantizer:
    """Quantise to the nearest of `size` codes, moving averages of what chose them.

        index = argmin_k |z - c_k|^2,  commitment = mean_D (z - sg(c))^2,
        c_k = sum_k / n_k,  with (n, sum) moved by `update` (see `ema_update`),

    and no gradient to the codes. `quantize` looks up in the codebook as it is: what a
    batch changes, the next one sees. With `metric` "cosine" vectors and codes are
    scaled to length 1 before all of this, so that the codes returned have it too.

    Args:
      size: how many codes, K.
      decay: of the moving averages, from 0 to 1.
      eps: of the smoothing of n; see `ema_codebook`.
      metric: see `vq`.
      estimator: see `vq`.
      init: see `vq`.
      steps: see `vq`.
      reset: share of the average n below which a code is dead, and `update` restarts
        it at a vector of the batch, if `quantize` had a key; None lets it be. See
        `reset_dead`.
      parts: see `vq`.

    Returns:
      A `Quantizer` with parameters {"statistics": {"n": [K], "sum": [K, D]}}, which are
      not for an optimizer: see `trainable`.

    Raises:
      ValueError: if a setting is out of range; from `init`, if the batch has fewer than
        K vectors for "kmeans" or "data".

    Source: arXiv:1711.00937, appendix A.1.

    >>> from genlib import quantize
    >>> layer = quantize.ema_vq(2, decay=0.5, init="data")
    >>> z = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    >>> params = layer.init(jax.random.key(0), z)
    >>> params = layer.update(params, layer.quantize(params, 3 * z).statistics)
    >>> layer.quantize(params, z).codes.round(2).tolist()
    [[0.0, 0.0], [2.0, 2.0]]
    """
    _check_settings(size, metric, init, steps, reset, parts)
    check_decay(decay)
    check_positive("eps", eps)

    def start(
        key: Key, z: ArrayLike, *, mask: ArrayLike | None = None, axis_name: Any = None
    ) -> Params:
        codebook = _start(key, z, size, metric, init, steps, mask, axis_name)
        return {"statistics": init_ema(codebook)}

    def codebook_of(params: Params) -> Array:
        return ema_codebook(jax.lax.stop_gradient(params["statistics"]), eps)

    def quantize(
        params: Params,
        z: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        key: Key | None = None,
        axis_name: Any = None,
    ) -> Quantized:
        codebook = codebook_of(params)
        z = check_vectors(z, codebook.shape[-1])
        mask = check_mask(mask, z.shape[:-1])
        vectors, indices, codes = _nearest_codes(codebook, z, metric, mask)
        losses = {"commitment": mean_square(vectors - codes, mask)}
        statistics = codebook_statistics(
            vectors,
            indices,
            size,
            mask=mask,
            key=None if reset is None else key,
            parts=parts,
            axis_name=axis_name,
        )
        codes = estimator(vectors, codes).astype(z.dtype)
        return Quantized(codes, indices, losses, perplexity(statistics.n), statistics)

    def lookup(params: Params, indices: ArrayLike) -> Array:
        return _codes(codebook_of(params), check_indices(indices, size), metric)

    def update(params: Params, statistics: Statistics) -> Params:
        state = ema_update(params["statistics"], statistics, decay=decay, eps=eps)
        if reset is not None:
            state = reset_dead(state, statistics, share=reset)
        return params | {"statistics": state}

    return Quantizer(start, quantize, lookup, update, size)


def _nearest_codes(
    codebook: Array, z: Array, metric: str, mask: Array | None
) -> tuple[Array, Array, Array]:
    """Return vectors as they are compared, their indices and their codes."""
    z = without_masked(z, mask)
    z = unit(z) if metric == "cosine" else z
    indices = nearest(codebook, z, metric=metric)
    if mask is not None:
        indices = jnp.where(mask, indices, -1)
    return z, indices, _codes(codebook, indices, metric)


def _codes(codebook: Array, indices: Array, metric: str) -> Array:
    codes = rows_of(codebook.astype(compute_dtype(codebook.dtype)), indices)
    return unit(codes) if metric == "cosine" else codes


def _start(
    key: Key,
    z: ArrayLike,
    size: int,
    metric: str,
    init: str,
    steps: int,
    mask: ArrayLike | None,
    axis_name: Any,
) -> Array:
    """Return the codebook before training, [K, D] in at least float32."""
    z = check_vectors(z)
    shape, dtype = (size, z.shape[-1]), compute_dtype(z.dtype)
    if init == "uniform":
        codes = jax.random.uniform(key, shape, dtype, -1 / size, 1 / size)
    elif init == "normal":
        codes = jax.random.normal(key, shape, dtype)
    else:
        steps = steps if init == "kmeans" else 0
        rest = {"metric": metric, "mask": mask, "axis_name": axis_name}
        return kmeans(key, z, size, steps=steps, **rest)
    return unit(codes) if metric == "cosine" else codes


def _check_settings(
    size: int, metric: str, init: str, steps: int, reset: Scalar | None, parts: int
) -> None:
    for name, value in (("size", size), ("parts", parts)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; it is {value}")
    if steps < 0:
        raise ValueError(f"steps must not be negative; it is {steps}")
    for name, value, known in (("metric", metric, METRICS), ("init", init, INITS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}; it is {value!r}")
    if reset is not None:
        check_share("reset", reset)
