"""The pre-norm block of transformers."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.attention import Mask
from genlib.nn._attention import Attention, Keys
from genlib.nn._feedforward import FeedForward, SwiGLU
from genlib.nn._layers import LECUN, ZEROS, modulate
from genlib.types import Array, ArrayLike, Key


class TransformerBlock(nnx.Module):
    """Add to every token what attention and an MLP make of it, each after a norm.

        h <- h + attention(norm(h))
        h <- h + attention(norm(h), context)        with cross_features
        h <- h + mlp(norm(h))

    With `condition_features` each line is `h <- h + gate f(norm(h) (1 + scale) +
    shift)`, where scale, shift and gate are linear in a condition and zero at the start
    (adaLN-zero), so that a new block returns h.

    Args:
        features: width of the tokens.
        num_heads: number of attention heads.
        feedforward: "gelu", a `FeedForward`, or "swiglu", a `SwiGLU`.
        hidden_features: width of its hidden layer; by default its own default.
        norm: "layer" or "rms".
        cross_features: features of the context that tokens look at, or None for none.
        condition_features: features of the condition, or None for none.
        dropout: dropout rate inside the MLP, used only in calls that pass a key.
        use_bias: whether the linear layers of attention and MLP have biases.
        init: initialiser of their first matrices.
        out_init: initialiser of their last ones.
        dtype: dtype of the computation; by default what inputs and parameters promote
            to.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.
        **attention: what else `Attention` takes: `encoding`, `mask`, `num_kv_heads`,
            `head_features`, `value_features`, `softcap`, `sink`, `qk_norm`, `impl`. The
            attention to a context has the last four, its heads and their features too.

    Calling it takes `h` `[B, T, features]`, `context` and `context_mask` as the context
    and the mask of `Attention`, `condition` (`[B, C]`, or `[B, T, C]` for one of each
    token), `mask`, `positions`, `cache` and `valid` of the self-attention, and `key`
    (for dropout, or None). It returns `[B, T, features]`, with a cache `(h, cache)`.

    Raises:
        ValueError: if `feedforward` or `norm` names none, `dropout` is outside [0, 1)
            or `Attention` refuses its options, or when called with a condition or
            context that is missing or not expected.

    Source: arXiv:1706.03762, arXiv:2002.04745 (norm first), arXiv:2212.09748
    (adaLN-zero).

    >>> import jax
    >>> def call(h, condition):
    ...     block = TransformerBlock(8, 2, condition_features=4, rngs=nnx.Rngs(0))
    ...     return block(h, condition=condition)
    >>> jax.eval_shape(call, jnp.ones((1, 3, 8)), jnp.ones((1, 4))).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        feedforward: Literal["gelu", "swiglu"] = "gelu",
        hidden_features: int | None = None,
        norm: Literal["layer", "rms"] = "layer",
        cross_features: int | None = None,
        condition_features: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        init: nnx.Initializer = LECUN,
        out_init: nnx.Initializer = LECUN,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **attention: Any,
    ):
        kinds = {"gelu": FeedForward, "swiglu": SwiGLU}
        if feedforward not in kinds:
            raise ValueError(
                f"feedforward must be one of {list(kinds)}, got {feedforward!r}"
            )
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        inner = {"use_bias": use_bias, "init": init, "out_init": out_init, **kwargs}
        own = lambda: make_norm(norm, features, condition_features is None, **kwargs)
        self.attention_norm = own()
        self.attention = Attention(features, num_heads, **attention, **inner)
        places = {"encoding": None, "mask": None, "context_features": cross_features}
        self.cross_norm = None if cross_features is None else own()
        self.cross = (
            None
            if cross_features is None
            else Attention(features, num_heads, **{**attention, **places}, **inner)
        )
        self.feedforward_norm = own()
        self.feedforward = kinds[feedforward](
            features, hidden_features, dropout=dropout, **inner
        )
        parts = 6 if cross_features is None else 9
        self.modulation = (
            None
            if condition_features is None
            else nnx.Linear(
                condition_features, parts * features, kernel_init=ZEROS, **kwargs
            )
        )

    def __call__(
        self,
        h: Array,
        *,
        context: Array | Keys | None = None,
        condition: Array | None = None,
        mask: Mask | ArrayLike | None = None,
        context_mask: Mask | ArrayLike | None = None,
        positions: ArrayLike | None = None,
        cache: Any = None,
        valid: ArrayLike | None = None,
        key: Key | None = None,
    ) -> Any:
        if self.cross is None and (context is not None or context_mask is not None):
            raise ValueError(
                "context and context_mask must be None for a block without "
                "cross_features"
            )
        parts = self._modulations(condition)
        if cache is None:
            places = positions
        else:
            places = cache.next_positions(h.shape[1], valid=valid)
        x = _prepare(self.attention_norm(h), parts[0])
        y = self.attention(x, mask=mask, positions=positions, cache=cache, valid=valid)
        if cache is not None:
            y, cache = y
        h = h + _gated(y, parts[0])
        if self.cross_norm is not None and self.cross is not None:
            x = _prepare(self.cross_norm(h), parts[1])
            y = self.cross(x, context, mask=context_mask, positions=places)
            h = h + _gated(y, parts[1])
        x = _prepare(self.feedforward_norm(h), parts[-1])
        h = h + _gated(self.feedforward(x, key), parts[-1])
        return h if cache is None else (h, cache)

    def _modulations(self, condition: Array | None) -> list[Any]:
        """Return scale, shift and gate of each line, or None for each."""
        lines = 2 if self.cross is None else 3
        if (condition is None) != (self.modulation is None):
            raise ValueError(
                "condition must be given to a block with condition_features, and to "
                f"no other, got {None if condition is None else condition.shape}"
            )
        if condition is None or self.modulation is None:
            return [None] * lines
        if condition.ndim == 2:
            condition = condition[:, None]
        parts = jnp.split(self.modulation(condition), 3 * lines, axis=-1)
        return [parts[3 * line : 3 * line + 3] for line in range(lines)]


def _prepare(x: Array, part: list[Array] | None) -> Array:
    return x if part is None else modulate(x, part[0], part[1])


def _gated(y: Array, part: list[Array] | None) -> Array:
    return y if part is None else part[2] * y


def make_norm(kind: str, features: int, affine: bool, **kwargs: Any) -> Any:
    """Return the norm of a kind; without `affine` it has no parameters."""
    if kind == "layer":
        affinity = {"use_scale": affine, "use_bias": affine}
        return nnx.LayerNorm(features, use_fast_variance=False, **affinity, **kwargs)
    if kind == "rms":
        return nnx.RMSNorm(
            features, use_scale=affine, use_fast_variance=False, **kwargs
        )
    raise ValueError(f"norm must be 'layer' or 'rms', got {kind!r}")
