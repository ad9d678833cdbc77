"""Transformers over tokens that emit the parameters of flows."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from genlib.flows import CausalConditioner, Conditioner
from genlib.nn._stack import Cache
from genlib.nn._token_transformer import token_transformers
from genlib.types import Array, Key


def causal_transformer_conditioner(
    width: int = 768,
    depth: int = 8,
    num_heads: int = 12,
    *,
    mlp_ratio: int = 4,
    remat: bool | str = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> CausalConditioner:
    """Condition each token on those before it, by a transformer that keeps a cache.

    `h <- h + attention(norm(h))`, `h <- h + mlp(norm(h))` in each block, where a token
    attends to itself and to earlier ones; positions are learned, the blocks run under
    `jax.lax.scan`, and the last layer starts at zero.

    A step of the cached inverse computes one token: `24 width^2 + 4 T width` FLOPs for
    each block and example (with `mlp_ratio` 4), and reads all parameters once and, for
    each block and example, `2 T width` cached numbers, whatever the token.

    Args:
        width: features of a token inside, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLPs over `width`.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: of the computation and the cache; by default what inputs and parameters
            promote to. The softmax is in at least float32.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.CausalConditioner` for x `[B, T, C]` and cond None or vectors `[B, K]`
        (`jax.nn.one_hot` of labels), which a linear map adds to every token. T is part
        of the parameters.

    Raises:
        ValueError: if a size is not positive, `num_heads` does not divide `width` or
            `remat` is no policy, or when called, if x or cond has another rank or
            dtype, or the parameters were made for other sizes.

    Source: arXiv:2412.06329.

    >>> network = causal_transformer_conditioner(width=8, depth=1, num_heads=2)
    >>> x = jnp.ones((1, 3, 2))
    >>> def call(key):
    ...     params = network.init(key, x, 4)
    ...     return network.apply(params, x, 4), network.start(params, x, 4)[0]
    >>> rows, keys = jax.eval_shape(call, jax.random.key(0))
    >>> rows.shape, keys.shape
    ((1, 3, 4), (1, 1, 3, 2, 4))
    """
    network = token_transformers(
        width,
        depth,
        num_heads,
        mlp_ratio=mlp_ratio,
        causal=True,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )

    def init(key: Key, x: Array, features: int, cond: Any = None) -> Any:
        return network(x, features, cond)[0](key)

    def apply(params: Any, x: Array, features: int, cond: Any = None) -> Array:
        return network(x, features, cond, params)[1](params, x, cond)

    def start(params: Any, x: Array, features: int, cond: Any = None) -> Cache:
        shape = (depth, *x.shape[:2], num_heads, width // num_heads)
        own = jnp.result_type(x, *jax.tree.leaves(params)) if dtype is None else dtype
        return jnp.zeros(shape, own), jnp.zeros(shape, own)

    def step(
        params: Any, cache: Cache, x_t: Array, t: Array, features: int, cond: Any = None
    ) -> tuple[Array, Cache]:
        length = cache[0].shape[2]
        like = jax.ShapeDtypeStruct((len(x_t), length, x_t.shape[-1]), x_t.dtype)
        call = network(like, features, cond, params)[1]
        row, cache = call(params, x_t[:, None], cond, cache, t)
        return row[:, 0], cache

    return CausalConditioner(init, apply, start, step)


def transformer_conditioner(
    width: int = 512,
    depth: int = 2,
    num_heads: int = 8,
    *,
    mlp_ratio: int = 4,
    remat: bool | str = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Conditioner:
    """Condition on tokens by a transformer in which every token sees all others.

    The network of `causal_transformer_conditioner` without its mask: a vision
    transformer whose patches are the tokens that it is given.

    Args:
        width: features of a token inside, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLPs over `width`.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: of the computation; by default what inputs and parameters promote to.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Conditioner` for tokens `[B, T, C]` or images `[B, H, W, C]`, whose
        pixels are tokens, and cond as of `causal_transformer_conditioner`.

    Raises:
        ValueError: as `causal_transformer_conditioner`.

    Source: arXiv:2412.15129, arXiv:2010.11929.

    >>> network = transformer_conditioner(width=8, depth=1, num_heads=2)
    >>> x = jnp.ones((1, 3, 2))
    >>> call = lambda key: network.apply(network.init(key, x, 4), x, 4)
    >>> jax.eval_shape(call, jax.random.key(0)).shape
    (1, 3, 4)
    """
    network = token_transformers(
        width,
        depth,
        num_heads,
        mlp_ratio=mlp_ratio,
        causal=False,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )

    def tokens(x: Array) -> Array:
        return rearrange(x, "b h w c -> b (h w) c") if x.ndim == 4 else x

    def init(key: Key, x: Array, features: int, cond: Any = None) -> Any:
        return network(tokens(x), features, cond)[0](key)

    def apply(params: Any, x: Array, features: int, cond: Any = None) -> Array:
        call = network(tokens(x), features, cond, params)[1]
        return call(params, tokens(x), cond).reshape(*x.shape[:-1], features)

    return Conditioner(init, apply)
