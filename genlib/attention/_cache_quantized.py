"""A cache of eight bits a number, with a scale for each group of them."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from einops import rearrange

from genlib.attention._cache import Cache, CacheView
from genlib.attention._cache_rows import (
    check_rows,
    check_sizes,
    empty_length,
    next_slots,
    refuse_overflow,
    spoil,
    view_positions,
    write,
)
from genlib.attention._mask import pytree
from genlib.attention._masks import prefix
from genlib.types import Array, ArrayLike, compute_dtype


@pytree
class _QuantizedCache(Cache):
    k: Array
    k_scale: Array
    v: Array
    v_scale: Array
    length: Array
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    @property
    def capacity(self) -> int:
        return self.k.shape[1]

    def append(self, k: Array, v: Array, *, valid: ArrayLike | None = None) -> Self:
        like = (jax.ShapeDtypeStruct(x.shape, self.dtype) for x in (self.k, self.v))
        k, v = check_rows(*like, k=k, v=v)
        slots, length = next_slots(self, k.shape[1], valid)
        new = {"length": length}
        for name, x in (("k", k), ("v", v)):
            codes, scale = getattr(self, name), getattr(self, f"{name}_scale")
            rows, row_scale = _quantize(x, scale.shape[-1], codes.dtype)
            new[name] = write(codes, slots, rows)
            new[f"{name}_scale"] = write(scale, slots, row_scale)
        return refuse_overflow(self._replace(**new))

    def read(self) -> CacheView:
        sides = (self.k, self.k_scale), (self.v, self.v_scale)
        k, v = (
            _dequantize(codes, spoil(self.overflowed, scale), self.dtype)
            for codes, scale in sides
        )
        return CacheView(k, v, view_positions(self), prefix(self.length))


def quantized_cache(
    batch: int,
    capacity: int,
    num_kv_heads: int,
    features: int,
    value_features: int | None = None,
    *,
    dtype: Any = jnp.float32,
    code_dtype: Any = jnp.int8,
    group: int | None = None,
) -> Cache:
    """Make an empty cache that keeps eight bits of each number.

        scale = max |x| / c_max,  code = round(x / scale),  x' = scale code

    with one scale for every token, head and group of features, and c_max = 127 of int8,
    448 of float8_e4m3fn, which is not rounded further. So |x - x'| <= scale / 2 by int8
    and <= max(|x| / 16, scale / 1024) by float8, up to rounding, and 0 stays 0. A group
    that holds a NaN or an infinity is read as NaN. Tokens see each other as they are
    kept, so that chunks change nothing.

    Args:
      batch: sequences B.
      capacity: tokens S of each.
      num_kv_heads: heads K of keys and values.
      features: of a key, H.
      value_features: of a value, V; by default H.
      dtype: of the keys and values that are appended and read. Scales are in at least
        float32.
      code_dtype: `jnp.int8` or `jnp.float8_e4m3fn`.
      group: how many features share a scale; by default all of a head.

    Raises:
      ValueError: if a size is not positive, features do not divide into groups, or a
        dtype is none of these.

    Source: arXiv:2402.02750 (caches of few bits; there asymmetric).

    >>> cache = quantized_cache(1, capacity=4, num_kv_heads=1, features=2)
    >>> x = jnp.array([127.0, 0.4]).reshape(1, 1, 1, 2)
    >>> cache.append(x, x).read().k[0, 0, 0].tolist()
    [127.0, 0.0]
    """
    value_features = features if value_features is None else value_features
    sizes = dict(num_kv_heads=num_kv_heads, features=features)
    sizes |= dict(batch=batch, capacity=capacity, value_features=value_features)
    check_sizes(dtype, **sizes, group=1 if group is None else group)
    code_dtype = jnp.dtype(code_dtype)
    if code_dtype not in (jnp.int8, jnp.float8_e4m3fn):
        raise ValueError(f"code_dtype must be int8 or float8_e4m3fn, got {code_dtype}")
    parts = []
    for n in (features, value_features):
        size = n if group is None else group
        if n % size:
            raise ValueError(f"group must divide {n} features, got {group}")
        shape = (batch, capacity, num_kv_heads)
        parts.append(jnp.zeros((*shape, n), code_dtype))
        parts.append(jnp.zeros((*shape, n // size), compute_dtype(dtype)))
    return _QuantizedCache(*parts, empty_length(batch), jnp.dtype(dtype))


def _quantize(x: Array, groups: int, dtype: Any) -> tuple[Array, Array]:
    """Return codes `[..., n]` and scales `[..., groups]`."""
    x = rearrange(x.astype(compute_dtype(x.dtype)), "... (g n) -> ... g n", g=groups)
    integer = jnp.issubdtype(dtype, jnp.integer)
    largest = 127 if integer else float(jnp.finfo(dtype).max)
    scale = jnp.abs(x).max(-1) / largest
    # 0 / 0 of a group of zeros; what is not finite has no code, and its scale says so.
    usable = ((scale > 0) & jnp.isfinite(scale))[..., None]
    codes = jnp.where(usable, x, 0) / jnp.where(usable, scale[..., None], 1)
    codes = jnp.clip(codes, -largest, largest)  # x / (x / 127) may round above 127
    codes = (jnp.round(codes) if integer else codes).astype(dtype)
    return rearrange(codes, "... g n -> ... (g n)"), scale


def _dequantize(codes: Array, scale: Array, dtype: Any) -> Array:
    split = rearrange(codes, "... (g n) -> ... g n", g=scale.shape[-1])
    x = split.astype(scale.dtype) * scale[..., None]
    return rearrange(x, "... g n -> ... (g n)").astype(dtype)
