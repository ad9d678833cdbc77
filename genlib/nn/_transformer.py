"""The transformer: language model, encoder, decoder."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib import attention
from genlib.attention import Mask
from genlib.attention._scores import dot
from genlib.nn._attention import Keys, check_tokens, places
from genlib.nn._blocks import TransformerBlock, make_norm
from genlib.nn._layers import (
    check_positive,
    check_rate,
    check_remat,
    keep_rows,
    recompute,
)
from genlib.nn._transformer_parts import (
    check_ids,
    check_room,
    layer_groups,
    learned,
    next_places,
    nth,
    rows_of,
)
from genlib.types import Array, ArrayLike, Key


class Transformer(nnx.Module):
    """Map a sequence of tokens to logits of tokens, or to vectors, by pre-norm blocks.

    By default it is a language model: token t is mapped to the logits of token t + 1,
    from tokens 0 .. t alone, and a new one says that all are about equally probable.
    With `causal=False, logits=False` it is an encoder; with `cross_features` a decoder
    that looks at what an encoder made: `decoder(tokens, context=encoder(source))`.

    The parameters of neighbouring layers with the same encoding and mask are stacked
    on a first axis, and those layers run under `jax.lax.scan`: compile time grows with
    the number of such groups, not with depth.

    Args:
        vocabulary: number of tokens V, or None for vectors instead of tokens.
        features: width of the transformer.
        depth: number of blocks.
        num_heads: number of attention heads.
        causal: whether a token sees only itself and those before it.
        logits: whether the result is logits; if not, or without vocabulary, it is the
            normalised vectors of the last block.
        encodings: `attention.Encoding` of positions in the attention of every layer, or
            one for each layer, or pairs (encoding, mask) for each layer, as
            `attention.hwfa` returns them; None encodes none.
        learned_positions: number of positions that have a learned embedding, or None.
        sinusoidal: whether sinusoids of the position are added to the embeddings of
            tokens, which are then scaled by the root of `features`.
        tie_embeddings: whether the embeddings of tokens also make the logits.
        feedforward: as of `TransformerBlock`.
        norm: likewise.
        cross_features: features of the context that tokens look at, or None for none.
        use_bias: whether the linear layers have biases.
        dropout: dropout rate inside the MLPs, used only in calls that pass a key.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: dtype of the computation; by default what inputs and parameters promote
            to.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.
        **block: what else `TransformerBlock` takes: `num_kv_heads`, `qk_norm`,
            `hidden_features`, `condition_features`, `impl`, ...

    Calling it takes `tokens`, ids `[B, T]` in 0 .. V - 1 (traced ones outside of that
    give NaN) or vectors `[B, T, features]`, and as keywords `context` (or what
    `keys_values` made of it), `context_mask`, `condition`, `mask`, `positions`, `valid`
    and `key` of `TransformerBlock`, all None by default. It returns logits `[B, T, V]`
    in at least float32, or vectors `[B, T, features]`. With `caches`, as `init_caches`
    makes them, it returns the result and the caches: a prompt at once, then token by
    token. A sequence of caches, one of its own for each layer, serves as well; the
    layers then run one after another without a scan, and each cache grows in place.

    Raises:
        ValueError: if a size is not positive, `remat` is no policy, there are not as
            many encodings as layers, both kinds of absolute positions are asked for or
            a block refuses its options, or when called with tokens of another shape or
            range, positions without an embedding, or caches and `causal=False`.

    Source: arXiv:1706.03762; the defaults are those of arXiv:2302.13971 (RMSNorm,
    SwiGLU, no biases).

    >>> def call(tokens):
    ...     return Transformer(7, 8, depth=2, num_heads=2, rngs=nnx.Rngs(0))(tokens)
    >>> jax.eval_shape(call, jnp.ones((1, 3), int)).shape
    (1, 3, 7)
    """

    def __init__(
        self,
        vocabulary: int | None,
        features: int,
        depth: int,
        num_heads: int,
        *,
        causal: bool = True,
        logits: bool = True,
        encodings: Any = None,
        learned_positions: int | None = None,
        sinusoidal: bool = False,
        tie_embeddings: bool = True,
        feedforward: Literal["gelu", "swiglu"] = "swiglu",
        norm: Literal["layer", "rms"] = "rms",
        cross_features: int | None = None,
        use_bias: bool = False,
        dropout: float = 0.0,
        remat: bool | str = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **block: Any,
    ):
        check_positive(features=features, depth=depth)
        if vocabulary is not None:
            check_positive(vocabulary=vocabulary)
        check_rate(dropout)
        if learned_positions is not None and sinusoidal:
            raise ValueError("positions are either learned_positions or sinusoidal")
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        draw = lambda *shape: nnx.Param(
            0.02 * jax.random.normal(rngs.params(), shape, param_dtype)
        )
        self.features = features
        self.depth = depth
        self.causal = causal
        self.sinusoidal = sinusoidal
        self.remat = check_remat(remat)
        self.dtype = dtype
        self.embedding = None if vocabulary is None else draw(vocabulary, features)
        self.tied = logits and tie_embeddings
        own = vocabulary is not None and logits and not tie_embeddings
        self.logits = draw(vocabulary, features) if own else None
        if learned_positions is not None:
            check_positive(learned_positions=learned_positions)
        self.positions = (
            None if learned_positions is None else draw(learned_positions, features)
        )
        groups = layer_groups(encodings, depth, attention.causal() if causal else None)

        def stack(encoding: Any, mask: Mask | None, count: int) -> TransformerBlock:
            make = lambda rngs: TransformerBlock(
                features,
                num_heads,
                feedforward=feedforward,
                norm=norm,
                cross_features=cross_features,
                use_bias=use_bias,
                dropout=dropout,
                encoding=encoding,
                mask=mask,
                rngs=rngs,
                **kwargs,
                **block,
            )
            return nnx.vmap(make)(rngs.split(count))

        stacks = [stack(*group) for group in groups]
        self.blocks: Any = stacks[0] if len(stacks) == 1 else nnx.List(stacks)
        self.counts = tuple(count for *_, count in groups)
        self.norm = make_norm(norm, features, True, rngs=rngs, **kwargs)

    def __call__(
        self,
        tokens: Array,
        *,
        context: Any = None,
        context_mask: Mask | ArrayLike | None = None,
        condition: Array | None = None,
        mask: Mask | ArrayLike | None = None,
        positions: ArrayLike | None = None,
        caches: Any = None,
        valid: ArrayLike | None = None,
        key: Key | None = None,
    ) -> Any:
        if self.embedding is None:
            check_tokens("tokens", tokens, self.features)
        else:
            check_ids(tokens, len(self.embedding[...]))
        places = self._places(tokens, positions, caches, valid)
        h = keep_rows(self._embed(tokens, places, (condition, context)))
        same = {
            "condition": condition,
            "mask": mask,
            "context_mask": context_mask,
            "positions": positions,
            "valid": valid,
        }
        h, caches = self._run_blocks(h, caches, context, key, same)
        h = self.norm(h)
        table = self.embedding if self.tied else self.logits
        if table is not None:
            h = dot("btf,vf->btv", h, table[...].astype(h.dtype))
        if caches is None:
            return h
        check_room(caches, tokens.shape[1])
        return h, caches

    def init_caches(self, batch: int, capacity: int, dtype: Any = None) -> Any:
        """Return empty caches of all layers, `attention.kv_cache` on a first axis.

        Args:
            batch: number of sequences B.
            capacity: number of tokens of each.
            dtype: that of the computation; by default that of the network.
        """
        layer = self._stacks[0].attention
        cache = attention.kv_cache(
            batch,
            capacity,
            layer.num_kv_heads,
            layer.head_features,
            layer.value_features,
            dtype=dtype or self.dtype or self.norm.param_dtype,
        )
        copies = lambda x: jnp.broadcast_to(x, (self.depth, *x.shape))
        return jax.tree.map(copies, cache)

    def keys_values(self, context: Array) -> list[Keys]:
        """Return what all layers make of a context, to be given as context many times.

        Args:
            context: `[B, S, cross_features]`.

        Raises:
            ValueError: if the network has no `cross_features`, or `context` is no such
                array.
        """
        if self._stacks[0].cross is None:
            raise ValueError(
                "a network without cross_features has no keys of a context"
            )
        made = []
        for stack in self._stacks:
            graphdef, params = nnx.split(stack)
            make = lambda row, graphdef=graphdef: nnx.merge(
                graphdef, row
            ).cross.keys_values(context)
            made.append(jax.vmap(make)(params))
        return made

    @property
    def _stacks(self) -> list[Any]:
        return [self.blocks] if len(self.counts) == 1 else list(self.blocks)

    def _places(self, tokens: Array, positions: Any, caches: Any, valid: Any) -> Any:
        if caches is None:
            return places(tokens, positions)
        if not self.causal:
            raise ValueError("caches must be None for a network that is not causal")
        return next_places(caches, tokens, self.depth, valid)

    def _embed(self, tokens: Array, places: Any, others: Any) -> Array:
        h = tokens
        if self.embedding is not None:
            h = rows_of(self.embedding[...], tokens)
        inputs = jax.tree.leaves((h, others))
        dtype = self.dtype or jnp.result_type(*inputs, self.norm.param_dtype)
        if self.sinusoidal:
            waves = attention.sinusoidal_positions(places, self.features)
            h = h * self.features**0.5 + _batched(waves)
        if self.positions is not None:
            h = h + _batched(learned(self.positions[...], places))
        return h.astype(dtype)

    def _run_blocks(
        self, h: Array, caches: Any, context: Any, key: Key | None, same: dict[str, Any]
    ) -> tuple[Array, Any]:
        keys = None if key is None else jax.random.split(key, self.depth)
        start, new = 0, []
        for group, stack in enumerate(self._stacks):
            graphdef, params = nnx.split(stack)
            layers = range(start, start := start + self.counts[group])
            own = context[group] if isinstance(context, list) else None

            def apply(h, row, cache, graphdef=graphdef):
                params, key, own = row
                block = nnx.merge(graphdef, params)
                seen = context if own is None else own
                out = block(keep_rows(h), context=seen, cache=cache, key=key, **same)
                return out if cache is not None else (out, None)

            part = None if keys is None else keys[layers.start : layers.stop]
            rows = params, part, own
            if isinstance(caches, Sequence):
                for index, layer in enumerate(layers):
                    row = jax.tree.map(lambda x, index=index: x[index], rows)
                    h, cache = recompute(apply, self.remat)(h, row, caches[layer])
                    new.append(cache)
            else:
                h, caches = self._scan(apply, h, rows, caches, layers)
        if isinstance(caches, Sequence):
            caches = tuple(new) if isinstance(caches, tuple) else new
        return h, caches

    def _scan(
        self, apply: Any, h: Array, rows: Any, caches: Any, layers: range
    ) -> tuple[Array, Any]:
        def body(carry, row):
            h, caches = carry
            layer, row = row
            h, cache = apply(h, row, nth(caches, layer))
            # The loop carries one array for all layers, and writes to where it is.
            write = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, layer, 0)
            return (h, jax.tree.map(write, caches, cache)), None

        # A scan keeps the compiler from undoing the recomputation.
        body = recompute(body, self.remat, prevent_cse=False)
        rows = (jnp.arange(layers.start, layers.stop), rows)
        return jax.lax.scan(body, (h, caches), rows)[0]


def _batched(x: Array) -> Array:
    return x if x.ndim == 3 else x[None]
