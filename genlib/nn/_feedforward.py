"""What a transformer does to every token alone: an MLP, or a gated one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._layers import LECUN, check_positive, check_rate, drop
from genlib.types import Array, Key


class FeedForward(nnx.Module):
    """Apply an MLP of one hidden layer to every token.

        y = W_2 activation(W_1 x)

    Args:
        features: those of x and of the result.
        hidden: width of the hidden layer; 4 `features` by default.
        activation: of the hidden units.
        dropout: dropout rate of the hidden units, used only in calls that pass a key.
        use_bias: whether the linear layers have biases.
        init: initialiser of the first matrix, `hidden`.
        out_init: initialiser of the second, `out`.
        dtype: dtype of the computation; by default what inputs and parameters promote
            to.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[..., features]` and `key` (for dropout, or None) and returns
    `[..., features]`.

    Raises:
        ValueError: if a size is not positive or `dropout` is outside [0, 1).

    Source: arXiv:1706.03762.

    >>> call = lambda x: FeedForward(8, rngs=nnx.Rngs(0))(x)
    >>> jax.eval_shape(call, jnp.ones((1, 3, 8))).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        *,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        dropout: float = 0.0,
        use_bias: bool = True,
        init: nnx.Initializer = LECUN,
        out_init: nnx.Initializer = LECUN,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = 4 * features if hidden is None else hidden
        check_positive(features=features, hidden=hidden)
        check_rate(dropout)
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        kwargs |= {"use_bias": use_bias, "rngs": rngs}
        self.activation = activation
        self.dropout = dropout
        self.hidden = nnx.Linear(features, hidden, kernel_init=init, **kwargs)
        self.out = nnx.Linear(hidden, features, kernel_init=out_init, **kwargs)

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        return self.out(drop(key, self.activation(self.hidden(x)), self.dropout))


class SwiGLU(nnx.Module):
    """Apply a gated MLP to every token.

        y = W_2 (silu(W_g x) * W_u x)

    W_g and W_u are one matrix, `hidden`, whose outputs alternate between them, so that
    devices which split that axis hold whole hidden units.

    Args:
        features: those of x and of the result.
        hidden: number of hidden units; by default 8/3 `features`, which makes as many
            parameters as an MLP with 4 `features`, rounded up to a multiple of 64.
        dropout: dropout rate of the hidden units, used only in calls that pass a key.
        use_bias: whether the linear layers have biases.
        init: initialiser of the first matrix, `hidden`.
        out_init: initialiser of the second, `out`.
        dtype: dtype of the computation; by default what inputs and parameters promote
            to.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[..., features]` and `key` (for dropout, or None) and returns
    `[..., features]`.

    Raises:
        ValueError: if a size is not positive or `dropout` is outside [0, 1).

    Source: arXiv:2002.05202, equation 6.

    >>> call = lambda x: SwiGLU(24, rngs=nnx.Rngs(0))(x)
    >>> jax.eval_shape(call, jnp.ones((1, 3, 24))).shape
    (1, 3, 24)
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        *,
        dropout: float = 0.0,
        use_bias: bool = False,
        init: nnx.Initializer = LECUN,
        out_init: nnx.Initializer = LECUN,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = -(-8 * features // (3 * 64)) * 64 if hidden is None else hidden
        check_positive(features=features, hidden=hidden)
        check_rate(dropout)
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        kwargs |= {"use_bias": use_bias, "rngs": rngs}
        self.dropout = dropout
        self.hidden = nnx.Linear(features, 2 * hidden, kernel_init=init, **kwargs)
        self.out = nnx.Linear(hidden, features, kernel_init=out_init, **kwargs)

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        gate, up = rearrange(self.hidden(x), "... (h s) -> s ... h", s=2)
        return self.out(drop(key, jax.nn.silu(gate) * up, self.dropout))
