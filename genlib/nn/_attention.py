"""Attention with its projections: the layer over `genlib.attention`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from genlib import attention
from genlib.attention import Mask
from genlib.nn._layers import LECUN, check_positive
from genlib.types import Array, ArrayLike

Keys = tuple[Array, Array]
METHODS = ("ring", "ulysses")


class Attention(nnx.Module):
    """Let the tokens of a sequence look at each other, or at those of a context.

        q_i = W_q x_i,   (k_j, v_j) = W_kv c_j,   y_i = W_o attention(q, k, v)_i

    with c = x without a context. A plain layer has one matrix `qkv`; one with fewer key
    heads, other value features or a context has `q` and `kv`. In the outputs of these
    matrices heads come first, so that devices which split that axis hold whole heads.

    Args:
        features: those of x and of the result.
        num_heads: number of heads N of the queries.
        num_kv_heads: number of heads of keys and values, a divisor of N: N by default,
            1 is multi-query attention, anything between grouped-query attention.
        head_features: those of one head of queries and keys; `features / num_heads` by
            default.
        value_features: those of one head of values; `head_features` by default.
        context_features: those of the context, or None for self-attention.
        encoding: `attention.Encoding` of positions, or None for none.
        mask: `attention.Mask` of every call, a function of positions; what has arrays,
            such as `segments`, is given in the call.
        softcap: bound of the scores, as of `attention`, or None.
        sink: whether each head learns the logit of a key whose value is 0.
        qk_norm: whether each head of queries and of keys is normalised (RMSNorm with
            learned scales), before positions are encoded.
        use_bias: whether the linear layers have biases.
        impl: as of `attention`, or "ring" or "ulysses" for sequences that are split
            over the axis "sequence" of the mesh.
        init: initialiser of the matrices that make queries, keys and values.
        out_init: initialiser of the last matrix.
        dtype: dtype of the computation; by default what inputs and parameters promote
            to.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, T, features]`, `context` (`[B, S, context_features]`, or
    what `keys_values` made of one; None in self-attention), `mask` (combined by `&`
    with that of the layer), integer `positions` `[T]` or `[B, T]` and
    `context_positions` `[S]` or `[B, S]` (by default both count from 0), and returns
    `[B, T, features]`. With a `cache`, such as `attention.kv_cache` makes, the keys and
    values of x are appended to it (but for tokens that `valid`, bool `[B, T]`, says are
    padding), x looks at all that it then holds, positions count from its length, and
    the result is `(y, cache)`; give such a layer a causal mask.

    Raises:
        ValueError: if heads do not divide, a size is not positive or `mask` has arrays,
            or when called with arrays of other shapes, with a context that is missing
            or not expected, or with a cache and a context, positions or an `impl` over
            a mesh.

    Source: arXiv:1706.03762; arXiv:1911.02150 and arXiv:2305.13245 (fewer key heads),
    arXiv:2302.05442 (normalised queries and keys), arXiv:2309.17453 (sinks).

    >>> from genlib.attention import causal
    >>> def call(x):
    ...     layer = Attention(8, 4, num_kv_heads=2, mask=causal(), rngs=nnx.Rngs(0))
    ...     return layer(x)
    >>> jax.eval_shape(call, jnp.ones((1, 3, 8))).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_features: int | None = None,
        value_features: int | None = None,
        context_features: int | None = None,
        encoding: Any = None,
        mask: Mask | None = None,
        softcap: float | None = None,
        sink: bool = False,
        qk_norm: bool = False,
        use_bias: bool = True,
        impl: str = "auto",
        init: nnx.Initializer = LECUN,
        out_init: nnx.Initializer = LECUN,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or (head_features is None and features % num_heads):
            raise ValueError(
                f"num_heads must divide the {features} features, got {num_heads}"
            )
        self.features = features
        self.context_features = context_features
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if self.num_kv_heads < 1 or num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide the {num_heads} heads, got {num_kv_heads}"
            )
        width = features // num_heads if head_features is None else head_features
        self.head_features = width
        self.value_features = width if value_features is None else value_features
        check_positive(head_features=width, value_features=self.value_features)
        self.encoding = encoding
        self.mask = check_mask(mask)
        self.softcap = softcap
        self.impl = impl
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        linear = {"use_bias": use_bias, **kwargs}
        queries, out_features = num_heads * width, num_heads * self.value_features
        keys = self.num_kv_heads * (width + self.value_features)
        if context_features is None and keys == 2 * queries == 2 * out_features:
            self.qkv = nnx.Linear(features, 3 * queries, kernel_init=init, **linear)
        else:
            source = features if context_features is None else context_features
            self.q = nnx.Linear(features, queries, kernel_init=init, **linear)
            self.kv = nnx.Linear(source, keys, kernel_init=init, **linear)
        norm = lambda: nnx.RMSNorm(width, use_fast_variance=False, **kwargs)
        self.q_norm = norm() if qk_norm else None
        self.k_norm = norm() if qk_norm else None
        self.sink = nnx.Param(jnp.zeros(num_heads, param_dtype)) if sink else None
        self.out = nnx.Linear(out_features, features, kernel_init=out_init, **linear)

    def __call__(
        self,
        x: Array,
        context: Any = None,
        *,
        mask: Mask | ArrayLike | None = None,
        positions: ArrayLike | None = None,
        context_positions: ArrayLike | None = None,
        cache: Any = None,
        valid: ArrayLike | None = None,
    ) -> Any:
        check_tokens("x", x, self.features)
        self._check_call(context, positions, context_positions, cache, valid)
        mask = both(self.mask, mask)
        if cache is not None:
            y, cache = self._remember(*self._project(x), mask, cache, valid)
            return self._join(y), cache
        if self.context_features is None:
            q, k, v = self._project(x)
            k, context_positions = self._encode(k, positions), positions
        else:
            q = self._queries(x)
            if not isinstance(context, tuple):
                context = self.keys_values(context, context_positions)
            k, v = context
            needed = self.encoding, mask, positions, context_positions
            if any(each is not None for each in needed):
                positions = places(q, positions)
                context_positions = places(k, context_positions)
        dtype = jnp.result_type(q, k, v)
        y = self._function()(
            *(each.astype(dtype) for each in (q, k, v)),
            mask=mask,
            q_positions=positions,
            kv_positions=context_positions,
            **self._options(),
        )
        return self._join(y)

    def keys_values(self, context: Array, positions: ArrayLike | None = None) -> Keys:
        """Return the keys and values of a context, to be computed once for many calls.

        Args:
            context: `[B, S, context_features]`.
            positions: integers `[S]` or `[B, S]`; counted from 0 by default.

        Returns:
            Keys `[B, S, K, head_features]` and values `[B, S, K, value_features]`.

        Raises:
            ValueError: if the layer has no `context_features`, or `context` is no
                such array.
        """
        if self.context_features is None:
            raise ValueError("a layer of self-attention has no keys of a context")
        check_tokens("context", context, self.context_features)
        k, v = self._keys_values(context)
        return self._encode(k, positions), v

    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        if hasattr(self, "qkv"):
            q, k, v = rearrange(
                self.qkv(x), "b t (n s d) -> s b t n d", s=3, n=self.num_heads
            )
            return _norm(self.q_norm, q), _norm(self.k_norm, k), v
        return self._queries(x), *self._keys_values(x)

    def _queries(self, x: Array) -> Array:
        q = rearrange(self.q(x), "b t (n d) -> b t n d", n=self.num_heads)
        return _norm(self.q_norm, q)

    def _keys_values(self, x: Array) -> Keys:
        kv = rearrange(self.kv(x), "b s (k d) -> b s k d", k=self.num_kv_heads)
        k, v = jnp.split(kv, [self.head_features], axis=-1)
        return _norm(self.k_norm, k), v

    def _encode(self, k: Array, positions: ArrayLike | None) -> Array:
        return k if self.encoding is None else self.encoding.keys(k, positions)

    def _remember(
        self, q: Array, k: Array, v: Array, mask: Any, cache: Any, valid: Any
    ) -> tuple[Array, Any]:
        k = self._encode(k, cache.next_positions(k.shape[1], valid=valid))
        attend = self._function()
        return attention.cached_attention(
            q, k, v, cache, mask=mask, valid=valid, attend=attend, **self._options()
        )

    def _join(self, y: Array) -> Array:
        return self.out(rearrange(y, "b t n v -> b t (n v)"))

    def _function(self) -> Callable[..., Array]:
        if self.encoding is not None:
            return self.encoding.attend
        return _over_mesh if self.impl in METHODS else attention.attention

    def _options(self) -> dict[str, Any]:
        sink = None if self.sink is None else self.sink[...]
        options = {"softcap": self.softcap, "sink": sink, "impl": self.impl}
        if self.encoding is not None and self.impl in METHODS:
            options["attend"] = _over_mesh
        return options

    def _check_call(
        self, context: Any, positions: Any, others: Any, cache: Any, valid: Any
    ) -> None:
        if self.context_features is None:
            if context is not None or others is not None:
                raise ValueError(
                    "context and context_positions must be None for a layer without "
                    "context_features"
                )
            if cache is not None and positions is not None:
                raise ValueError("positions must be None with a cache, which has them")
            if cache is not None and self.impl in METHODS:
                raise ValueError(f"cache must be None with impl={self.impl!r}")
        elif context is None:
            raise ValueError(
                f"context must be [B, S, {self.context_features}], or the keys and "
                "values that `keys_values` makes of one, got None"
            )
        elif cache is not None:
            raise ValueError(
                "cache must be None for a layer with a context, whose keys and values "
                "do not grow: make them once by `keys_values(context)` and give them "
                "as context"
            )
        if valid is not None and cache is None:
            raise ValueError("valid is for caches; without one, mask by `padding`")


def _over_mesh(q: Array, k: Array, v: Array, *, impl: Any, **options: Any) -> Array:
    return attention.sequence_attention(q, k, v, method=impl, **options)


def _norm(norm: nnx.RMSNorm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


def places(x: Array, positions: ArrayLike | None, cache: Any = None) -> Any:
    """Return the positions of tokens: as given, after those of a cache, or from 0."""
    if cache is not None:
        return cache.next_positions(x.shape[1])
    return np.arange(x.shape[1]) if positions is None else positions


def both(first: Mask | None, second: Mask | ArrayLike | None) -> Mask | None:
    """Return the mask that lets be seen what both do; None is everything."""
    if second is not None and not isinstance(second, Mask):
        second = attention.dense(second)
    if first is None or second is None:
        return second if first is None else first
    return first & second


def check_tokens(name: str, x: Array, features: int) -> None:
    """Refuse what is not floating `[B, T, features]`."""
    if (
        x.ndim != 3
        or x.shape[-1] != features
        or not jnp.issubdtype(x.dtype, jnp.floating)
    ):
        raise ValueError(
            f"{name} must be floating [B, length, {features}], got {x.dtype} of shape "
            f"{x.shape}"
        )


def check_mask(mask: Any) -> Mask | None:
    """Refuse what is no mask, and a mask with arrays: a layer has one for all data."""
    if mask is not None and not isinstance(mask, Mask):
        raise ValueError(f"mask must be a Mask or None, got {type(mask).__name__}")
    leaves = jax.tree.leaves(mask)
    if any(isinstance(leaf, jax.Array) or jnp.ndim(leaf) for leaf in leaves):
        raise ValueError(
            "mask of a layer must be a function of positions; one with arrays must be "
            "given in the call"
        )
    return mask
