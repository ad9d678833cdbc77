"""Multi-head latent attention as a layer: a small cache for many heads."""

import functools
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from genlib import attention
from genlib.attention import Frequencies, Mask
from genlib.nn._attention import both, check_mask, check_tokens, places
from genlib.nn._layers import LECUN, check_positive
from genlib.types import Array, ArrayLike


class LatentAttention(nnx.Module):
    """Let tokens look at each other through one latent vector for each of them.

        [c, k_rope] = W_kv_down x,   c <- norm(c),   [k_nope, v] = W_kv_up c
        [q_nope, q_rope] = W_q x     or   W_q_up norm(W_q_down x)
        y = W_o softmax(scale [q_nope, R q_rope] [k_nope, R k_rope]) v

    with RMSNorm and R the rotation of positions; k_rope is one for all heads. What a
    token leaves for later ones, in a cache, are `latent_features + rope_features`
    numbers, c after its norm and k_rope after its rotation.

    Args:
        features: those of x and of the result.
        num_heads: number of heads N.
        latent_features: d_c, those of c.
        nope_features: d_n, those of a head of queries and keys without position.
        rope_features: d_r, those with position, an even number.
        value_features: d_v, those of a head of values; `nope_features` by default.
        query_latent_features: those of the latent of queries, or None for none.
        frequencies: of the rotation, such as `attention.yarn_frequencies` makes for
            d_r features; `attention.rope_frequencies(rope_features)` by default. Their
            `score_factor` multiplies the scale `(d_n + d_r)**-0.5`.
        layout: of rotated features, as of `attention.rotate`.
        mask: `attention.Mask` of every call, a function of positions.
        absorb: whether queries are projected instead of latents, as of
            `attention.latent_attention`; None is what takes fewer products: absorbed
            where few queries look at many keys, as in decoding, expanded in training.
        impl: as of `attention.attention`.
        init: initialiser of all matrices but the last.
        out_init: initialiser of the last matrix.
        dtype: dtype of the computation; by default what inputs and parameters promote
            to.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters.

    Calling it takes `x` `[B, T, features]`, `mask` (combined by `&` with that of the
    layer) and integer `positions` `[T]` or `[B, T]` (counted from 0 by default), and
    returns `[B, T, features]`. With a `cache`, as `attention.latent_cache` makes, the
    latents of x are appended to it, x looks at all that it holds, positions count from
    its length, and the result is `(y, cache)`; give such a layer a causal mask.

    Raises:
        ValueError: if a size is not positive, `frequencies` are not those of
            `rope_features` or `mask` has arrays, or when called with an `x` of another
            rank or size, or with a cache and positions.

    Source: arXiv:2405.04434, section 2.1.

    >>> import jax
    >>> sizes = dict(latent_features=4, nope_features=4, rope_features=2)
    >>> def call(x):
    ...     return LatentAttention(8, 2, **sizes, rngs=nnx.Rngs(0))(x)
    >>> jax.eval_shape(call, jnp.ones((1, 3, 8))).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        latent_features: int,
        nope_features: int,
        rope_features: int,
        value_features: int | None = None,
        query_latent_features: int | None = None,
        frequencies: Frequencies | None = None,
        layout: Literal["half", "interleaved"] = "half",
        mask: Mask | None = None,
        absorb: bool | None = None,
        impl: str = "auto",
        init: nnx.Initializer = LECUN,
        out_init: nnx.Initializer = LECUN,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        values = nope_features if value_features is None else value_features
        check_positive(features=features, num_heads=num_heads, value_features=values)
        check_positive(latent_features=latent_features, nope_features=nope_features)
        check_positive(rope_features=rope_features)
        if query_latent_features is not None:
            check_positive(query_latent_features=query_latent_features)
        if frequencies is None:
            frequencies = attention.rope_frequencies(rope_features)
        if 2 * len(frequencies.inverse) != rope_features:
            raise ValueError(
                f"frequencies must be of {rope_features} features as rope_features "
                f"says, got {len(frequencies.inverse)} pairs"
            )
        self.features = features
        self.num_heads = num_heads
        self.sizes = (latent_features, nope_features, rope_features, values)
        # Numbers, not arrays, which would be leaves of the module and be stacked.
        inverse, *factors = frequencies
        inverse = tuple(np.asarray(inverse).tolist())
        self.frequencies = Frequencies(inverse, *map(float, factors))
        self.layout: Literal["half", "interleaved"] = layout
        self.mask = check_mask(mask)
        self.absorb = absorb
        self.impl = impl
        kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        linear = functools.partial(
            nnx.Linear, use_bias=False, kernel_init=init, **kwargs
        )
        norm = functools.partial(nnx.RMSNorm, use_fast_variance=False, **kwargs)
        queries = num_heads * (nope_features + rope_features)
        if query_latent_features is None:
            self.q = linear(features, queries)
        else:
            self.q_down = linear(features, query_latent_features)
            self.q_norm = norm(query_latent_features)
            self.q_up = linear(query_latent_features, queries)
        self.kv_down = linear(features, latent_features + rope_features)
        self.kv_norm = norm(latent_features)
        # Heads come first, so that devices which split this axis hold whole heads.
        self.kv_up = linear(latent_features, num_heads * (nope_features + values))
        self.out = nnx.Linear(
            num_heads * values, features, use_bias=False, kernel_init=out_init, **kwargs
        )

    def __call__(
        self,
        x: Array,
        *,
        mask: Mask | ArrayLike | None = None,
        positions: ArrayLike | None = None,
        cache: Any = None,
    ) -> Any:
        check_tokens("x", x, self.features)
        if cache is not None and positions is not None:
            raise ValueError("positions must be None with a cache, which has them")
        d_c, d_n, d_r, _ = self.sizes
        mine: Any = places(x, positions, cache)
        options: dict[str, Any] = {"mask": both(self.mask, mask)}
        if positions is not None:
            options |= {"q_positions": mine, "kv_positions": mine}
        q_nope, q_rope = jnp.split(self._queries(x), [d_n], -1)
        c, k_rope = jnp.split(self.kv_down(x), [d_c], -1)
        c = self.kv_norm(c)
        q_rope = self._rotate(q_rope, mine)
        k_rope = self._rotate(k_rope[:, :, None], mine)[:, :, 0]
        if cache is not None:
            cache = cache.append(c, k_rope)
            c, k_rope, others, held = cache.read()
            options |= {"q_positions": mine, "kv_positions": others}
            options["mask"] = both(held, options["mask"])
        up = rearrange(self.kv_up.kernel[...], "c (n d) -> c n d", n=self.num_heads)
        arrays = q_nope, q_rope, c, k_rope, *jnp.split(up, [d_n], -1)
        dtype = jnp.result_type(q_nope, c)
        y = attention.latent_attention(
            *(each.astype(dtype) for each in arrays),
            absorb=self.absorb,
            scale=self.frequencies.score_factor * (d_n + d_r) ** -0.5,
            impl=self.impl,
            **options,
        )
        y = self.out(rearrange(y, "b t n v -> b t (n v)"))
        return y if cache is None else (y, cache)

    def _queries(self, x: Array) -> Array:
        q = self.q(x) if hasattr(self, "q") else self.q_up(self.q_norm(self.q_down(x)))
        return rearrange(q, "b t (n d) -> b t n d", n=self.num_heads)

    def _rotate(self, x: Array, positions: ArrayLike) -> Array:
        inverse = np.asarray(self.frequencies.inverse)
        frequencies = self.frequencies._replace(inverse=inverse)
        return attention.rotate(x, positions, frequencies, layout=self.layout)
