"""Normalisation of each channel by what the first batch of data says."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from genlib.flows._bijector import Bijector, Params, check_features, wide
from genlib.types import Array, Key, Scalar, compute_dtype


def actnorm(*, ddof: int = 0, eps: Scalar = 1e-6) -> Bijector:
    """Shift and scale each channel, at the start to mean 0 and variance 1.

        y = (x + shift) exp(log_scale)                     (arXiv:1807.03039, sec. 3.1).

    `init` sets shift = -mean and log_scale = -log std of the batch that it sees, over
    all axes but the last; from then on both are trained like any parameter. It is pure,
    and under `jit` with a sharded batch its statistics are those of the whole batch.

    A channel is constant if its standard deviation is not above `eps` times the size of
    its mean: it says nothing of a scale, and keeps log_scale = 0.

    Args:
      ddof: the variance is the sum of squares over n - ddof: 0, or 1 as in some
        libraries.
      eps: relative size of rounding errors, which are no spread.

    Returns:
      A `Bijector` for x [B, ..., C] with parameters {"shift": [C], "log_scale": [C]}.

    Raises:
      ValueError: from `init`, if a channel has too few numbers for a variance.

    >>> layer = actnorm()
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> layer.forward(layer.init(jax.random.key(0), x), x)[0].round().tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """

    def init(key: Key, x: Array, cond: Any = None) -> Params:
        mean, log_std = safe_log_std(wide(check_features("x", x)), ddof, eps)
        return {"shift": -mean, "log_scale": -log_std}

    def forward(params: Params, x: Array, cond: Any = None) -> tuple[Array, Array]:
        shift, scale = _like(params["shift"], x), jnp.exp(_like(params["log_scale"], x))
        y = ((wide(x) + shift) * scale).astype(x.dtype)
        return y, position_log_det(x, _like(params["log_scale"], x).sum())

    def inverse(params: Params, y: Array, cond: Any = None) -> tuple[Array, Array]:
        shift, scale = (
            _like(params["shift"], y),
            jnp.exp(-_like(params["log_scale"], y)),
        )
        x = (wide(y) * scale - shift).astype(y.dtype)
        return x, position_log_det(y, -_like(params["log_scale"], y).sum())

    return Bijector(init, forward, inverse)


def normalize(*, ddof: int = 0, eps: Scalar = 1e-6) -> Bijector:
    """Shift and scale each channel by the statistics of the first batch, for good.

        y = (x + shift) exp(log_scale),  without gradients to either.

    This is `actnorm` that is never trained: the normalisation of the data, kept with
    the parameters, so that it is saved with them and sampling undoes it. It depends on
    no batch but the one of `init`. Weight decay would move it all the same: train with
    `trainable=lambda path, leaf: "statistics" not in path`.

    Args:
      ddof: see `actnorm`.
      eps: see `actnorm`.

    Returns:
      A `Bijector` for x [B, ..., C] with parameters {"statistics": {"shift": [C],
      "log_scale": [C]}}.

    >>> layer = normalize()
    >>> x = jnp.array([[1.0], [3.0]])
    >>> params = layer.init(jax.random.key(0), x)
    >>> gradient = jax.grad(lambda p: layer.forward(p, x)[1].sum())(params)
    >>> gradient["statistics"]["log_scale"].item()
    0.0
    """
    init, forward, inverse, _ = actnorm(ddof=ddof, eps=eps)
    fixed = lambda params: jax.lax.stop_gradient(params["statistics"])
    return Bijector(
        lambda key, x, cond=None: {"statistics": init(key, x)},
        lambda params, x, cond=None: forward(fixed(params), x),
        lambda params, y, cond=None: inverse(fixed(params), y),
    )


def safe_log_std(x: Array, ddof: int = 0, eps: Scalar = 1e-6) -> tuple[Array, Array]:
    """Return mean and log standard deviation, 0 where there is no spread.

    Args:
      x: [B, ..., C]; the statistics are over all axes but the last.
      ddof: see `actnorm`.
      eps: see `actnorm`.

    Returns:
      [C] and [C].

    Raises:
      ValueError: if there are fewer than two numbers, or not more than `ddof`.

    >>> safe_log_std(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
    (Array([2., 5.], dtype=float32), Array([0., 0.], dtype=float32))
    """
    axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    if count < max(2, ddof + 1):
        raise ValueError(
            f"x must hold at least {max(2, ddof + 1)} numbers for each channel, for a "
            f"variance with ddof = {ddof}; its shape is {x.shape}"
        )
    mean, std = x.mean(axes), x.std(axes, ddof=ddof)
    return mean, jnp.log(jnp.where(std > eps * jnp.abs(mean), std, 1.0))


def position_log_det(x: Array, log_det: Array) -> Array:
    """Return the log-determinant of a map that acts alike at every position.

    Args:
      x: the batch [B, ..., C].
      log_det: of the map of one position, [].

    Returns:
      [B], `log_det` times the number of positions, in at least float32.

    >>> position_log_det(jnp.zeros((2, 4, 4, 3)), jnp.float32(0.5))
    Array([8., 8.], dtype=float32)
    """
    total = math.prod(x.shape[1:-1]) * log_det
    return jnp.broadcast_to(total.astype(compute_dtype(x.dtype)), x.shape[:1])


def _like(value: Array, x: Array) -> Array:
    """Return a number for each channel [C] in the rank and width of a batch."""
    return value.astype(compute_dtype(x.dtype)).reshape((1,) * (x.ndim - 1) + (-1,))
