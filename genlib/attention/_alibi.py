"""Linear biases: what is far counts less."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from genlib.attention._bias import Bias
from genlib.attention._mask import pytree
from genlib.types import Array, compute_dtype


@pytree
class _Alibi(Bias):
    slopes: Any

    def __call__(self, q: Array, kv: Array) -> Array:
        slopes = jnp.asarray(self.slopes)
        slopes = slopes.astype(compute_dtype(slopes.dtype)).reshape(1, -1, 1, 1)
        return slopes * (-jnp.abs(q - kv)).astype(slopes.dtype)


def alibi(num_heads: int) -> Bias:
    """Return the biases of ALiBi: each head forgets with the distance at its own rate.

        -m_h |q - k|,   m = 2**(-8 h / n),  h = 1 .. n

    for n a power of 2. For another n they are those of the power p below it, and then
    every other one of those of 2 p. Under a causal mask |q - k| is the paper's q - k.
    The slopes are a leaf, which may be trained.

    Args:
      num_heads: n, those of the queries.

    Raises:
      ValueError: if `num_heads` is not positive.

    Source: arXiv:2108.12409.

    >>> q, k = jnp.full((1, 1, 1, 1), 3), jnp.arange(4).reshape(1, 1, 1, 4)
    >>> alibi(2)(q, k)[0, 0, 0].tolist()
    [-0.1875, -0.125, -0.0625, 0.0]
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be positive, got {num_heads}")
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power, 2) / power)
    return _Alibi(np.concatenate([slopes, between])[:num_heads])
