"""Couplings: which source sample of a minibatch goes with which data sample."""

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from genlib.types import Array, ArrayLike, Key, Scalar, compute_dtype, concrete


class Pairs(NamedTuple):
    """Coupled samples: `x_0 = data[index_0]` and `x_1 = source[index_1]`, each [B]."""

    x_0: Array
    x_1: Array
    index_0: Array
    index_1: Array


class Coupling(Protocol):
    """Pairs a minibatch: `(key, x_0, x_1, condition) -> Pairs`.

    `x_0` is data [B, ...] and `x_1` an independent source [B, ...]; `condition` is
    [B, ...], of the data. Whatever else belongs to the data (labels, a mask) is taken
    at `index_0`. All but `conditional_coupling` ignore the condition.
    """

    def __call__(
        self, key: Key, x_0: Array, x_1: Array, condition: ArrayLike | None = None, /
    ) -> Pairs: ...


def independent_coupling(
    key: Key, x_0: Array, x_1: Array, condition: ArrayLike | None = None
) -> Pairs:
    """Pair at random: a uniform permutation of the source.

    Whatever order the two minibatches came in is forgotten.

    Args:
      key: typed PRNG key.
      x_0: data [B, ...].
      x_1: source [B, ...].
      condition: ignored.

    Returns:
      `Pairs`: data keeps its order, each source sample occurs once.

    Raises:
      ValueError: if the batch sizes differ.

    >>> x = jnp.arange(3.0)[:, None]
    >>> sorted(independent_coupling(jax.random.key(0), x, x).index_1.tolist())
    [0, 1, 2]
    """
    _check(x_0.shape[:1], x_1.shape[:1])
    return _take(x_0, x_1, jax.random.permutation(key, x_0.shape[0]))


def optimal_coupling(
    key: Key, x_0: Array, x_1: Array, condition: ArrayLike | None = None
) -> Pairs:
    """Pair by exact optimal transport: the permutation of least sum |x_0 - x_1|^2.

    Samples are flattened before the cost. The assignment (arXiv:2302.00482) is solved
    by SciPy on the host, in O(B^3) at worst, through `jax.pure_callback`: under `jit`
    the batch is gathered on one device and the others wait; inside `shard_map` each
    shard pairs its own samples.

    Args:
      key: not used, nothing is random.
      x_0: data [B, ...].
      x_1: source with the shape of `x_0`.
      condition: ignored.

    Returns:
      `Pairs`: data keeps its order, each source sample occurs once.

    Raises:
      ValueError: if the shapes differ.

    >>> x_0, x_1 = jnp.array([[0.0], [5.0]]), jnp.array([[6.0], [1.0]])
    >>> optimal_coupling(jax.random.key(0), x_0, x_1).x_1.tolist()
    [[1.0], [6.0]]
    """
    return _take(x_0, x_1, _assign(_cost(x_0, x_1)))


def conditional_coupling(weight: Scalar = math.inf) -> Coupling:
    """Pair by optimal transport that does not bend the source towards a condition.

    Optimal transport of the whole batch makes the source depend on the condition,
    which sampling from the whole source then misses. Here the source sample in row i
    is given the condition of row i, and unequal conditions cost extra
    (arXiv:2503.10636):

        cost_ij = |x_0i - x_1j|^2 + weight d(c_i, c_j),

    d = 1 between different labels (integers or bools) and the squared Euclidean
    distance between float conditions; give these unit length for a cosine distance.
    With infinite weight and labels it is optimal transport within each label.
    It runs where `optimal_coupling` does, and the rows must be in random order.

    Args:
      weight: what a mismatch costs, in units of the squared distance of samples;
        infinite only for labels.

    Returns:
      A coupling that needs the condition [B, ...] of the data.

    Raises:
      ValueError: when called, without a condition for each sample, or with infinite
        weight and float conditions.

    >>> x_0, x_1 = jnp.array([[0.0], [5.0]]), jnp.array([[6.0], [1.0]])
    >>> couple = conditional_coupling()
    >>> couple(jax.random.key(0), x_0, x_1, jnp.array([7, 8])).x_1.tolist()
    [[6.0], [1.0]]
    """

    def pair(
        key: Key, x_0: Array, x_1: Array, condition: ArrayLike | None = None, /
    ) -> Pairs:
        if condition is None or np.shape(condition)[:1] != x_0.shape[:1]:
            shape = None if condition is None else np.shape(condition)
            raise ValueError(
                f"condition must be one for each sample of x_0 {x_0.shape}; "
                f"its shape is {shape}"
            )
        return _take(x_0, x_1, _assign(_cost(x_0, x_1) + _mismatch(weight, condition)))

    return pair


def sinkhorn_coupling(
    reg: Scalar, *, tolerance: float = 1e-3, max_iterations: int = 2000
) -> Coupling:
    """Pair by entropic optimal transport: draw pairs from the Sinkhorn plan.

    The plan minimises sum_ij plan_ij |x_0i - x_1j|^2 + reg sum_ij plan_ij log plan_ij
    among those with uniform marginals (arXiv:1306.0895). Each data sample is kept once
    and draws its source from its row of the plan, with replacement. It runs where the
    data is, in the log domain, with reg lowered to its value in factors of two.

    Args:
      reg: entropic regularisation, > 0, in units of the squared distance.
      tolerance: on the total variation between the source marginal and uniform.
      max_iterations: after which the plan is used as it is; the data marginal is exact
        nevertheless.

    Returns:
      A coupling.

    Raises:
      ValueError: if a concrete `reg` is not positive.

    >>> x_0, x_1 = jnp.array([[0.0], [5.0]]), jnp.array([[6.0], [1.0]])
    >>> sinkhorn_coupling(0.1)(jax.random.key(0), x_0, x_1).x_1.tolist()
    [[1.0], [6.0]]
    """
    value = concrete(reg)
    if value is not None and not value > 0:
        raise ValueError(f"reg must be positive; it is {reg}")

    def pair(
        key: Key, x_0: Array, x_1: Array, condition: ArrayLike | None = None, /
    ) -> Pairs:
        cost = _cost(x_0, x_1)
        log_plan = _sinkhorn(cost, reg, tolerance, max_iterations)
        return _take(x_0, x_1, jax.random.categorical(key, log_plan))

    return pair


def schroedinger_coupling(sigma: Scalar) -> Coupling:
    """Pair as the Schroedinger bridge of Brownian motion of scale sigma does.

    That is the Sinkhorn plan with reg = 2 sigma^2 (arXiv:2307.03672); join the pairs
    with `BridgeInterpolant(sigma)`.

    Args:
      sigma: scale of the Brownian motion over the whole unit of time, > 0.

    Returns:
      A coupling.

    Raises:
      ValueError: if a concrete `sigma` is not positive.

    >>> x = jax.random.normal(jax.random.key(0), (8, 2))
    >>> schroedinger_coupling(0.5)(jax.random.key(1), x, x).x_1.shape
    (8, 2)
    """
    value = concrete(sigma)
    if value is not None and not value > 0:
        raise ValueError(f"sigma must be positive; it is {sigma}")
    return sinkhorn_coupling(2.0 * sigma**2)


def _take(x_0: Array, x_1: Array, index_1: Array) -> Pairs:
    return Pairs(x_0, x_1[index_1], jnp.arange(x_0.shape[0]), index_1)


def _check(shape_0: tuple[int, ...], shape_1: tuple[int, ...]) -> None:
    if not shape_0 or shape_0 != shape_1:
        raise ValueError(
            f"x_1 must have the shape of x_0, [B, ...]; x_0 has {shape_0}, "
            f"x_1 has {shape_1}"
        )


def _cost(x_0: Array, x_1: Array) -> Array:
    """Return |x_0i - x_1j|^2 up to terms of i or of j alone, which no plan feels."""
    _check(x_0.shape, x_1.shape)
    dtype = compute_dtype(jnp.promote_types(x_0.dtype, x_1.dtype))
    x_0, x_1 = (
        jax.lax.stop_gradient(x).reshape(x.shape[0], -1).astype(dtype)
        for x in (x_0, x_1)
    )
    # A common shift changes such terms only, and large means would cost digits.
    x_0, x_1 = x_0 - x_0.mean(0, keepdims=True), x_1 - x_1.mean(0, keepdims=True)
    return -2.0 * jnp.matmul(x_0, x_1.T, precision=jax.lax.Precision.HIGHEST)


def _mismatch(weight: Scalar, condition: ArrayLike) -> Array:
    """Return weight d(c_i, c_j), [B, B]."""
    c = jnp.asarray(condition)
    c = c.reshape(c.shape[0], -1)
    if not jnp.issubdtype(c.dtype, jnp.inexact):
        return jnp.where((c[:, None] != c[None]).any(-1), weight, 0.0)
    value = concrete(weight)
    if value is not None and not np.isfinite(value):
        raise ValueError(f"weight must be finite for float conditions; it is {weight}")
    return weight * jnp.square(c[:, None] - c[None]).sum(-1)


def _assign(cost: Array) -> Array:
    """Return the column of each row in the assignment of least total cost, [B]."""
    shape = jax.ShapeDtypeStruct(cost.shape[:1], jnp.int32)
    cost = jax.lax.stop_gradient(cost)
    return jax.pure_callback(_assign_on_host, shape, cost, vmap_method="sequential")


def _assign_on_host(cost: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(np.asarray(cost))[1].astype(np.int32)


def _sinkhorn(cost: Array, reg: Scalar, tolerance: float, max_iterations: int) -> Array:
    """Return the log of the plan, up to a constant, with exact row marginals.

    A loop of our own: it needs two potentials and nothing of a transport library.
    """
    reg = jnp.asarray(reg, cost.dtype)
    spread = jnp.maximum(cost.max() - cost.min(), reg)

    def potentials(i, g):
        # From the spread of the costs down: far fewer iterations for small reg.
        eps = jnp.maximum(reg, spread * 0.5**i)
        f = -eps * jax.nn.logsumexp((g - cost) / eps, axis=1, keepdims=True)
        return eps, f

    def body(carry):
        i, g, _ = carry
        eps, f = potentials(i, g)
        log_columns = jax.nn.logsumexp((f + g - cost) / eps, axis=0, keepdims=True)
        n = cost.shape[1]
        miss = 0.5 * jnp.abs(jnp.exp(log_columns) / n - 1 / n).sum()
        miss = jnp.where(eps > reg, jnp.inf, miss)
        return i + 1, g - jnp.where(miss > tolerance, eps * log_columns, 0.0), miss

    def unfinished(carry):
        i, _, miss = carry
        return (i < max_iterations) & (miss > tolerance)

    start = 0, jnp.zeros_like(cost[:1]), jnp.asarray(jnp.inf, cost.dtype)
    i, g, _ = jax.lax.while_loop(unfinished, body, start)
    eps, f = potentials(i, g)
    return (f + g - cost) / eps
