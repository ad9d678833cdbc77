"""Rational-quadratic splines: increasing, smooth, and inverted in closed form."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.flows._univariate import Univariate
from genlib.types import Array, Scalar, check_positive, concrete


def spline(
    bins: int = 8,
    *,
    bound: Scalar = 5.0,
    min_width: Scalar = 1e-3,
    min_height: Scalar = 1e-3,
    min_slope: Scalar = 1e-3,
    limit: Scalar | None = 7.0,
) -> Univariate:
    """Bend the interval [-bound, bound] by a rational-quadratic spline.

    Between knots (x_k, y_k) with slopes d_k, where t = (x - x_k) / w_k and
    s_k = h_k / w_k,

        y = y_k + h_k (s_k t^2 + d_k t (1 - t))
              / (s_k + (d_{k+1} + d_k - 2 s_k) t (1 - t)) (arXiv:1906.04032, eq. 4).

    Outside the interval the map is the identity and its log-derivative exactly 0. With
    a, b, c the raw numbers, in this order and after the soft limit,

        w_k = 2 bound (min_width + (1 - K min_width) softmax(a)_k),  h_k alike from b,
        d_k = min_slope + softplus(c_k + log(exp(1 - min_slope) - 1)),  1 at the ends.

    The soft limit u / (1 + |u| / limit) makes one width at most exp(limit) times
    another (it takes limit / 2 for a and b), so that the spline stays invertible in
    float32 whatever a network emits. Both directions are closed forms of one cost.

    Args:
      bins: K, at least 2.
      bound: positive, half of the interval's length.
      min_width: smallest width of a bin in units of the interval, in [0, 1 / K).
      min_height: smallest height of a bin, alike.
      min_slope: smallest slope at a knot, in (0, 1).
      limit: of the raw numbers, in (0, 80], or None for the equations of the paper as
        they stand.

    Returns:
      A `Univariate` of size 3 K - 1.

    Raises:
      ValueError: if a setting is out of its range.

    >>> y, log_det = spline().forward(jnp.zeros((2, 23)), jnp.array([-9.0, 1.5]))
    >>> y
    Array([-9. ,  1.5], dtype=float32)
    """
    shape = _checked(_Shape(bins, bound, min_width, min_height, min_slope, limit))

    def move(function):
        def apply(raw: Array, x: Array) -> tuple[Array, Array]:
            # The bins never see what is outside, so its gradients cannot be infinite.
            inside = jnp.abs(x) < bound
            ends = [(0, 0)] * (raw.ndim - 1) + [(1, 1)]
            widths, heights, slopes = jnp.split(raw, (bins, 2 * bins), -1)
            slopes = jnp.pad(slopes, ends)
            y, log_det = function(
                shape, widths, heights, slopes, jnp.where(inside, x, jnp.zeros_like(x))
            )
            outside = jnp.zeros_like(log_det)
            return jnp.where(inside, y, x), jnp.where(inside, log_det, outside)

        return apply

    return Univariate(3 * bins - 1, move(_forward), move(_inverse))


def circular_spline(
    bins: int = 8,
    *,
    bound: Scalar = math.pi,
    min_width: Scalar = 1e-3,
    min_height: Scalar = 1e-3,
    min_slope: Scalar = 1e-3,
    limit: Scalar | None = 7.0,
) -> Univariate:
    """Bend a circle, the interval [-bound, bound) with its ends joined.

    The spline of `spline` with one slope for both ends, which is free, so that
    densities are continuous on the circle. A number outside stands for a point after n
    whole turns and keeps them: f(x + 2 bound n) = f(x) + 2 bound n, which is increasing
    on all of R, and `inverse` gives back the very number that `forward` had. The point
    +-bound stays where it is; turn the circle between layers to move it too.

    Args:
      bins: K, at least 2.
      bound: positive, half of the circumference.
      min_width: see `spline`.
      min_height: see `spline`.
      min_slope: see `spline`.
      limit: see `spline`.

    Returns:
      A `Univariate` of size 3 K.

    Raises:
      ValueError: if a setting is out of its range.

    Source: arXiv:2002.02428.

    >>> circle = circular_spline(4, bound=1.0)
    >>> raw = jnp.tile(jnp.linspace(-1.0, 1.0, 12), (2, 1))
    >>> y, log_det = circle.forward(raw, jnp.array([0.25, 2.25]))
    >>> round((y[1] - y[0]).item(), 5), (log_det[1] - log_det[0]).item()
    (2.0, 0.0)
    """
    shape = _checked(_Shape(bins, bound, min_width, min_height, min_slope, limit))

    def move(function):
        def apply(raw: Array, x: Array) -> tuple[Array, Array]:
            turns = 2 * bound * jnp.floor((x + bound) / (2 * bound))
            widths, heights, slopes = jnp.split(raw, (bins, 2 * bins), -1)
            slopes = jnp.concatenate([slopes, slopes[..., :1]], -1)
            y, log_det = function(shape, widths, heights, slopes, x - turns)
            return y + turns, log_det

        return apply

    return Univariate(3 * bins, move(_forward), move(_inverse))


class _Shape(NamedTuple):
    bins: int
    bound: Scalar
    min_width: Scalar
    min_height: Scalar
    min_slope: Scalar
    limit: Scalar | None


def _checked(shape: _Shape) -> _Shape:
    bins = shape.bins
    if bins < 2:
        raise ValueError(f"bins must be at least 2; it is {bins}")
    check_positive("bound", shape.bound)
    ranges = {
        "min_width": ("in [0, 1 / bins)", lambda v: (v >= 0) & (v * bins < 1)),
        "min_height": ("in [0, 1 / bins)", lambda v: (v >= 0) & (v * bins < 1)),
        "min_slope": ("in (0, 1)", lambda v: (v > 0) & (v < 1)),
        # exp(limit / 2) is summed without the maximum taken off first.
        "limit": ("in (0, 80] or None", lambda v: (v > 0) & (v <= 80)),
    }
    for name, (words, inside) in ranges.items():
        value = getattr(shape, name)
        values = None if value is None else concrete(value)
        if values is not None and not inside(values).all():
            raise ValueError(f"{name} must be {words}; it is {value}")
    return shape


def soft_limit(raw: Array, limit: Scalar | None) -> Array:
    """Bound raw numbers by u / (1 + |u| / limit), with slope 1 at zero.

    >>> soft_limit(jnp.array([0.0, 1.0, 1e30]), 4.0)
    Array([0. , 0.8, 4. ], dtype=float32)
    """
    return raw if limit is None else raw / (1 + jnp.abs(raw) / limit)


class _Edges(NamedTuple):
    """A partition of the interval along one axis.

    The softmax is left undivided: the normaliser multiplies the few numbers that one
    bin needs instead of all K of them, which is faster.
    """

    exps: Array  # [..., K]
    sums: Array  # [..., K + 1], of the exps before each edge
    scale: Array  # [...], what one exp is worth
    smallest: Scalar  # the least size of a bin
    bound: Scalar

    def find(self, value: Array) -> Array:
        """Return the index of the bin of a value [...]."""
        inner = self.sums[..., 1:-1] * self.scale[..., None]
        count = 1 + jax.lax.broadcasted_iota(inner.dtype, inner.shape, inner.ndim - 1)
        inner = inner + (count * self.smallest - self.bound)
        return (value[..., None] >= inner).sum(-1, dtype=jnp.int32)

    def at(self, index: Array) -> tuple[Array, Array]:
        """Return the lower edge and the size of a bin."""
        lower = _take(self.sums, index) * self.scale
        size = _take(self.exps, index) * self.scale + self.smallest
        return lower + (index * self.smallest - self.bound), size


def _edges(
    logits: Array, bound: Scalar, smallest: Scalar, limit: Scalar | None
) -> _Edges:
    bins = logits.shape[-1]
    if limit is None:
        top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        exps = jnp.exp(logits - top)
    else:
        exps = jnp.exp(soft_limit(logits, limit / 2))
    # A product with a triangle of ones is faster than a cumulative sum.
    triangle = np.triu(np.ones((bins, bins + 1)), 1).astype(logits.dtype)
    sums = jnp.dot(exps, triangle, precision=jax.lax.Precision.HIGHEST)
    scale = 2 * bound * (1 - bins * smallest) / sums[..., -1]
    return _Edges(exps, sums, scale, 2 * bound * smallest, bound)


class _Bin(NamedTuple):
    """The bin of each value: its lower left corner, size and slopes, all [...]."""

    x: Array
    width: Array
    y: Array
    height: Array
    slope: Array
    next_slope: Array

    def log_slope(self, t: Array) -> Array:
        """Return log dy/dx at t (eq. 5)."""
        s, mixed = self.height / self.width, t * (1 - t)
        bend = self.next_slope + self.slope - 2 * s
        top = self.next_slope * t * t + 2 * s * mixed + self.slope * jnp.square(1 - t)
        return jnp.log(top * jnp.square(s / (s + bend * mixed)))


def _find(
    shape: _Shape,
    widths: Array,
    heights: Array,
    slopes: Array,
    value: Array,
    *,
    inverse: bool,
) -> _Bin:
    """Find the bin of x, or of y for the inverse.

    Args:
      shape: of the spline.
      widths: raw, [..., K].
      heights: raw, [..., K].
      slopes: raw slopes at all knots [..., K + 1].
      value: x or y [...].
      inverse: whether it is y.
    """
    _, bound, min_width, min_height, min_slope, limit = shape
    across = _edges(widths, bound, min_width, limit)
    up = _edges(heights, bound, min_height, limit)
    index = (up if inverse else across).find(value)

    def slope(at: Array) -> Array:
        u = soft_limit(_take(slopes, at), limit)
        return min_slope + jax.nn.softplus(u + jnp.log(jnp.expm1(1 - min_slope)))

    return _Bin(*across.at(index), *up.at(index), slope(index), slope(index + 1))


def _forward(
    shape: _Shape, widths: Array, heights: Array, slopes: Array, x: Array
) -> tuple[Array, Array]:
    bin_ = _find(shape, widths, heights, slopes, x, inverse=False)
    t = _unit((x - bin_.x) / bin_.width)
    s, mixed = bin_.height / bin_.width, t * (1 - t)
    bottom = s + (bin_.next_slope + bin_.slope - 2 * s) * mixed
    y = bin_.y + bin_.height * (s * t * t + bin_.slope * mixed) / bottom
    return y, bin_.log_slope(t)


def _inverse(
    shape: _Shape, widths: Array, heights: Array, slopes: Array, y: Array
) -> tuple[Array, Array]:
    bin_ = _find(shape, widths, heights, slopes, y, inverse=True)
    u = _unit((y - bin_.y) / bin_.height)
    s = bin_.height / bin_.width
    # (s - b) t^2 + b t = s u. Written so, the discriminant is a sum of two squares,
    # and each of the two forms of the root is used where nothing cancels in it.
    b = bin_.slope - u * (bin_.next_slope + bin_.slope - 2 * s)
    root = jnp.sqrt(jnp.square(b - 2 * s * u) + 4 * jnp.square(s) * u * (1 - u))
    positive = b > 0
    top = jnp.where(positive, 2 * s * u, root - b)
    bottom = jnp.where(positive, b + root, 2 * (s - b))
    t = _unit(top / bottom)
    return bin_.x + bin_.width * t, -bin_.log_slope(t)


def _unit(t: Array) -> Array:
    """Undo what rounding took out of [0, 1]; the gradient is whole at both ends."""
    t = jnp.where(t < 0, jnp.zeros_like(t), t)
    return jnp.where(t > 1, jnp.ones_like(t), t)


def _take(values: Array, index: Array) -> Array:
    return jnp.take_along_axis(values, index[..., None], -1, mode="promise_in_bounds")[
        ..., 0
    ]
