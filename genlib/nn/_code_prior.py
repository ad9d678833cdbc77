"""Transformers that learn which codes a quantizer gives to data, and draw new ones."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from genlib.nn._adapters import lazy
from genlib.nn._code_sampling import (
    place_log_prob,
    sample_codes,
    sample_masked_codes,
)
from genlib.nn._code_transformer import CodeTransformer
from genlib.nn._layers import check_positive
from genlib.quantize._quantizer import check_indices
from genlib.types import (
    Array,
    Key,
    Scalar,
    check_typed_key,
    example_keys,
    expand_like,
)


class CodePrior(NamedTuple):
    """A distribution of codes, as pure functions.

    Codes are integers `[B, *shape]` in `0 .. size - 1`; -1 is no code. Labels are
    integers `[B]`, where `num_classes` is the null class and None is that for everyone.

    Attributes:
      init: `key -> params`.
      logits: `(params, indices, labels=None, key=None) -> [B, *shape, size]`, at least
        float32. Autoregressive: each place from those before it; masked: every place
        from all that are not -1. The key is for dropout.
      loss: `(key, params, indices, labels=None) -> [B]`, nats per code.
      sample: `(key, params, count, labels=None, *, guidance=None, temperature=1,
        top_k=None, top_p=None) -> indices`, int32 [count, *shape]; if masked also
        `steps=8` and `choice_temperature=4.5`.
    """

    init: Callable[..., Any]
    logits: Callable[..., Array]
    loss: Callable[..., Array]
    sample: Callable[..., Array]


def code_prior(
    size: int,
    shape: tuple[int, ...],
    features: int,
    *,
    depth: int,
    num_heads: int,
    mode: Literal["autoregressive", "masked"] = "autoregressive",
    mlp_ratio: int = 4,
    num_classes: int | None = None,
    dropout: float = 0.0,
    remat: bool | str = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> CodePrior:
    """Make a prior over the codes of a quantizer, autoregressive or masked.

    Autoregressive, in row-major order: `log p = sum_t log p(i_t | i_1 ... i_{t-1})`,
    which `code_log_prob(logits, indices)` gives; the loss is its negative mean over the
    codes, and sampling remembers keys and values of all places.

    Masked: each example loses a share `cos(pi u / 2)` of its codes, u uniform, at least
    one, and the loss is the mean cross-entropy of the lost ones. It is no bound on
    log p. See `sample_masked_codes` for sampling.

    An index of -1 is no code: it adds nothing to the loss, and the network sees that
    there is none. A new prior is uniform over the codes, so its loss is `log size`.

    `guidance` is a scale, or one for each example, of classifier-free guidance on the
    logits: `null + scale (conditional - null)`, so that 1 is the conditional model and
    None saves the second evaluation. Train with `drop_labels` for that.

    Args:
        size: number of codes, `size` of the quantizer.
        shape: of the codes of one example, such as `(H, W)` or `(T,)`.
        features: width of the transformer, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: number of attention heads.
        mode: "autoregressive" or "masked".
        mlp_ratio: width of the MLPs over `features`.
        num_classes: number of classes, or None for a prior without labels.
        dropout: dropout rate inside the MLPs, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.

    Returns:
        A `CodePrior`. The key of its `loss` may be None if it is autoregressive, for
        held-out data.

    Raises:
        ValueError: as `CodeTransformer`, if `mode` is another, or when called, if
            indices or labels are no such integers, guidance has no labels, or as
            `sample_codes` and `sample_masked_codes`.

    Source: arXiv:1711.00937, arXiv:2202.04200 (masked), arXiv:2207.12598 (guidance).

    >>> prior = code_prior(5, (2, 3), 8, depth=1, num_heads=2)
    >>> def train_and_sample(key):
    ...     params = prior.init(key)
    ...     indices = prior.sample(key, params, 4)
    ...     return indices, prior.loss(key, params, indices)
    >>> [each.shape for each in jax.eval_shape(train_and_sample, jax.random.key(0))]
    [(4, 2, 3), (4,)]
    """
    if mode not in ("autoregressive", "masked"):
        raise ValueError(f'mode must be "autoregressive" or "masked", got {mode!r}')
    shape = tuple(shape)
    check_positive(**{f"shape[{axis}]": n for axis, n in enumerate(shape)})
    causal, length = mode == "autoregressive", math.prod(shape)
    init, apply = lazy(
        lambda rngs: CodeTransformer(
            size,
            length,
            features,
            depth=depth,
            num_heads=num_heads,
            causal=causal,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            dropout=dropout,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
    )

    flat = functools.partial(_flat, size, shape)

    def logits(
        params: Any, indices: Array, labels: Any = None, key: Key | None = None
    ) -> Array:
        rows = apply(params, flat(indices), labels, key)
        return rows.reshape(*indices.shape, size)

    def loss(key: Any, params: Any, indices: Array, labels: Any = None) -> Array:
        term = _causal_loss if causal else _masked_loss
        predict = lambda indices, key: apply(params, indices, labels, key)
        return term(key, predict, flat(indices))

    memory = (depth, length, num_heads, features // num_heads), dtype
    draw = functools.partial(_sample_causal, memory) if causal else _sample_masked

    def sample(
        key: Key,
        params: Any,
        count: int,
        labels: Any = None,
        *,
        guidance: Scalar | None = None,
        **settings: Any,
    ) -> Array:
        guided = _guided(count, labels, num_classes, guidance)
        call = functools.partial(apply, params)
        indices = draw(key, call, (count, length), guided, **settings)
        return indices.reshape(count, *shape)

    return CodePrior(init, logits, loss, sample)


def _flat(size: int, shape: tuple[int, ...], indices: Array) -> Array:
    indices = check_indices(indices, size)
    if indices.ndim == 0 or indices.shape[1:] != shape:
        raise ValueError(
            f"indices must be [B, ...] with {shape} for each example; their shape is "
            f"{indices.shape}"
        )
    return indices.reshape(-1, math.prod(shape))


Predict = Callable[[Array, Key | None], Array]


def _causal_loss(key: Key | None, predict: Predict, indices: Array) -> Array:
    log_p = place_log_prob(predict(indices, key), indices)
    return -log_p.sum(1) / jnp.maximum((indices >= 0).sum(1), 1)


def _masked_loss(key: Key, predict: Predict, indices: Array) -> Array:
    check_typed_key(key)
    key_lost, key_dropout = jax.random.split(key)
    lost = _lost(example_keys(key_lost, indices), indices >= 0)
    logits = predict(jnp.where(lost, -1, indices), key_dropout)
    log_p = place_log_prob(logits, jnp.where(lost, indices, -1))
    return -log_p.sum(1) / jnp.maximum(lost.sum(1), 1)


def _lost(keys: Key, present: Array) -> Array:
    """Choose places [B, T] to mask, of those where there are codes."""

    def choose(key: Key, present: Array) -> Array:
        key_share, key_order = jax.random.split(key)
        share = jnp.cos(jnp.pi / 2 * jax.random.uniform(key_share))
        count = jnp.maximum(jnp.ceil(share * present.sum()), 1)
        order = jax.random.uniform(key_order, present.shape)
        place = jnp.where(present, order, jnp.inf).argsort().argsort()
        return (place < count) & present

    return jax.vmap(choose)(keys, present)


class _Guided(NamedTuple):
    """Labels of all rows to evaluate, how often examples are repeated, and the rule."""

    labels: Array | None
    repeats: int
    merge: Callable[[Array], Array]


def _guided(
    count: int, labels: Any, num_classes: int | None, scale: Scalar | None
) -> _Guided:
    check_positive(count=count)
    if labels is not None:
        labels = jnp.asarray(labels)
        if labels.shape != (count,):
            raise ValueError(
                f"labels must have shape ({count},), got shape {labels.shape}"
            )
    if scale is None:
        return _Guided(labels, 1, lambda logits: logits)
    if labels is None or num_classes is None:
        raise ValueError("guidance must be None without labels and num_classes")
    null = jnp.full_like(labels, num_classes)

    def merge(logits: Array) -> Array:
        conditional, without = jnp.split(logits, 2)
        guide = expand_like(jnp.asarray(scale, logits.dtype), without)
        return without + guide * (conditional - without)

    return _Guided(jnp.concatenate([labels, null]), 2, merge)


def _sample_causal(
    memory: tuple[tuple[int, ...], Any],
    key: Key,
    call: Callable[..., Any],
    shape: tuple[int, int],
    guided: _Guided,
    **settings: Any,
) -> Array:
    (depth, *rest), dtype = memory
    empty = jnp.zeros((depth, guided.repeats * shape[0], *rest), dtype)

    def step(cache: Any, index: Array, t: Array) -> tuple[Array, Any]:
        before = jnp.tile(index, guided.repeats)[:, None]
        logits, cache = call(before, guided.labels, None, cache, t)
        return guided.merge(logits[:, 0]), cache

    return sample_codes(key, step, (empty, empty), shape, **settings)


def _sample_masked(
    key: Key,
    call: Callable[..., Any],
    shape: tuple[int, int],
    guided: _Guided,
    **settings: Any,
) -> Array:
    def predict(indices: Array) -> Array:
        return guided.merge(call(jnp.tile(indices, (guided.repeats, 1)), guided.labels))

    return sample_masked_codes(key, predict, shape, **settings)
