"""What a layer of a flow is: three pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genlib.types import Array, Key, compute_dtype

# {} where there are none, so that empty layers leave no trace in a tree of parameters.
Params = Any


class Bijector(NamedTuple):
    """An invertible map of a batch, and what it adds to the log-likelihood.

    `forward` goes from data to noise and `inverse` back. Both return the result and one
    number per example, [B] in float32 (float64 for float64 data): the log-likelihood
    contribution of the map applied, for a bijection log |det dy/dx|, so that

        log p(x) = log p(forward(x)) + contribution,

    and the contribution of `inverse` at y is minus that of `forward` at x. `x` is
    [B, ...], or a pytree of such arrays; the result has its dtype. `cond` is whatever
    the conditioners of the layer take, batch-first, or None. A map that mixes examples
    is no bijector.

    Attributes:
      init: `(key, x, cond=None) -> params`, a pytree of arrays, {} if there are none.
        `x` is a batch of data as it arrives at the layer: layers may look at it
        (`actnorm`), and `chain` carries it through. Pure, so right under `jit` and for
        sharded batches.
      forward: `(params, x, cond=None) -> (y, log_det)`.
      inverse: `(params, y, cond=None) -> (x, log_det)`.
      stochastic: whether `forward` and `inverse` take a `key=` too: dequantisation,
        surjections, estimated log-determinants.

    Source: arXiv:1912.02762; of stochastic layers arXiv:2007.02731.

    >>> from genlib import flows
    >>> def move(sign):  # y = exp(s) x, trained
    ...     def apply(params, x, cond=None):
    ...         s = sign * params["s"][None]
    ...         return jnp.exp(s) * x, flows.log_det_like(x, s)
    ...     return apply
    >>> scale = flows.Bijector(
    ...     init=lambda key, x, cond=None: {"s": jnp.zeros(x.shape[1:])},
    ...     forward=move(1),
    ...     inverse=move(-1),
    ... )
    >>> y, log_det = scale.forward({"s": jnp.ones(3)}, jnp.ones((2, 3)))
    >>> log_det
    Array([3., 3.], dtype=float32)
    """

    init: Callable[..., Params]
    forward: Callable[..., tuple[Any, Array]]
    inverse: Callable[..., tuple[Any, Array]]
    stochastic: bool = False


class Conditioner(NamedTuple):
    """A network that emits the parameters of a map: an (init, apply) pair.

    Any pair of such functions will do; those of `genlib.nn` are Flax networks.

    Attributes:
      init: `(key, x, features, cond=None) -> params`, for inputs like `x` [B, ..., C].
      apply: `(params, x, features, cond=None) -> [B, ..., features]`. It should return
        zeros at the start: zeros are the identity of every map of this room.

    >>> linear = Conditioner(
    ...     lambda key, x, features, cond=None: jnp.zeros((x.shape[-1], features)),
    ...     lambda params, x, features, cond=None: x @ params,
    ... )
    >>> params = linear.init(jax.random.key(0), jnp.ones((2, 3)), 8)
    >>> linear.apply(params, jnp.ones((2, 3)), 8).shape
    (2, 8)
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]


def invert(bijector: Bijector) -> Bijector:
    """Swap the two directions of a layer.

    The inverse autoregressive flow is `invert` of the masked autoregressive one
    (arXiv:1606.04934): what was sequential becomes parallel, and the reverse. Layers
    that look at data when they are initialised see it at their own forward side, so put
    `actnorm` beside an inverted layer, not into it.

    Args:
      bijector: any bijector.

    Returns:
      A `Bijector` with the same parameters.

    >>> from genlib import flows
    >>> invert(flows.sigmoid()).forward({}, jnp.array([[0.5]]))[0]
    Array([[0.]], dtype=float32)
    """
    return bijector._replace(forward=bijector.inverse, inverse=bijector.forward)


def with_its_arguments(bijector: Bijector) -> Bijector:
    """Take the argument `key` away from a layer that is not stochastic.

    >>> move = lambda params, x, cond=None, key=None: (x, zero_log_det(x))
    >>> layer = with_its_arguments(Bijector(no_params, move, move))
    >>> layer.forward({}, jnp.ones((1, 2)))[0]
    Array([[1., 1.]], dtype=float32)
    """
    if bijector.stochastic:
        return bijector
    _, forward, inverse, _ = bijector
    return bijector._replace(
        forward=lambda params, x, cond=None: forward(params, x, cond),
        inverse=lambda params, y, cond=None: inverse(params, y, cond),
    )


def check_bijector(name: str, layer: Any) -> Bijector:
    """Return a layer, or say what it is instead.

    Raises:
      ValueError: if it is no `Bijector`.

    >>> check_bijector("layer 0", print)
    Traceback (most recent call last):
    ValueError: layer 0 must be a Bijector; it is a function that returns one, or none
    """
    if isinstance(layer, Bijector):
        return layer
    what = "a function that returns one, or none"
    raise ValueError(
        f"{name} must be a Bijector; it is {what if callable(layer) else repr(layer)}"
    )


def check_conditioner(conditioner: Any) -> Conditioner:
    """Return a conditioner, or any (init, apply) pair as one.

    Raises:
      ValueError: if it is no pair of functions.

    >>> check_conditioner((print, print)).init is print
    True
    """
    pair = isinstance(conditioner, tuple) and len(conditioner) == 2
    if pair and callable(conditioner[0]) and callable(conditioner[1]):
        return Conditioner(*conditioner)
    raise ValueError(
        "conditioner must be an (init, apply) pair, as nn.mlp_conditioner() makes, or "
        f"nn.conditioner of a network; it is a {type(conditioner).__name__}"
    )


def log_det_like(x: Any, elementwise: Any) -> Array:
    """Sum the log-derivatives of an elementwise map: a log_det for each example.

    Args:
      x: the batch [B, ...].
      elementwise: log-derivatives, broadcast to the shape of `x`.

    Returns:
      [B], in at least float32.

    >>> from genlib import flows
    >>> flows.log_det_like(jnp.zeros((2, 3, 4), jnp.bfloat16), 0.5)
    Array([6., 6.], dtype=float32)
    """
    elementwise = jnp.asarray(elementwise, compute_dtype(x.dtype))
    elementwise = jnp.broadcast_to(
        elementwise.reshape((1,) * (x.ndim - elementwise.ndim) + elementwise.shape),
        x.shape,
    )
    return elementwise.sum(tuple(range(1, x.ndim)))


def zero_log_det(x: Any) -> Array:
    """Return zeros [B] for a batch, which may be a pytree.

    >>> zero_log_det({"a": jnp.ones((2, 3), jnp.bfloat16)})
    Array([0., 0.], dtype=float32)
    """
    first = jax.tree.leaves(x)[0]
    return jnp.zeros(first.shape[0], compute_dtype(first.dtype))


def wide(x: Array) -> Array:
    """Return a batch in the dtype of the computation, at least float32.

    >>> wide(jnp.ones(2, jnp.bfloat16)).dtype.name
    'float32'
    """
    return x.astype(compute_dtype(x.dtype))


def no_params(key: Key, x: Any, cond: Any = None) -> Params:
    """Return the parameters of a layer that has none.

    >>> no_params(jax.random.key(0), jnp.ones(2))
    {}
    """
    return {}


def check_features(name: str, x: Any, ndim: int = 2) -> Array:
    """Return a floating batch [B, ..., D] of at least `ndim` axes, or refuse it.

    Raises:
      ValueError: if `x` has fewer axes or is not floating.

    >>> check_features("x", jnp.ones(3))
    Traceback (most recent call last):
    ValueError: x must be a floating batch with at least 2 axes; it is float32 (3,)
    """
    x = jnp.asarray(x) if not hasattr(x, "dtype") else x
    if x.ndim < ndim or not jnp.issubdtype(x.dtype, jnp.floating):
        integers = jnp.issubdtype(x.dtype, jnp.integer)
        raise ValueError(
            f"{name} must be a floating batch with at least {ndim} axes; "
            f"it is {x.dtype} {x.shape}"
            + integers
            * " (flows.uniform_dequantization is for integers)"
        )
    return x


def beside(x: Array, cond: Any) -> Array:
    """Put conditioning beside what a network sees of the data, on the last axis.

    Args:
      x: [B, ..., C].
      cond: None, or [B, K] or [B, ..., K], which goes to every place alike.

    Returns:
      [B, ..., C + K], or `x` itself.

    Raises:
      ValueError: if `cond` does not fit to x.

    >>> beside(jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 5))).shape
    (2, 4, 4, 8)
    """
    if cond is None:
        return x
    if not 2 <= cond.ndim <= x.ndim or cond.shape[0] != x.shape[0]:
        raise ValueError(
            f"cond must be [B, K] or [B, ..., K] beside x {x.shape}; its shape is "
            f"{cond.shape}"
        )
    middle = (1,) * (x.ndim - cond.ndim)
    cond = cond.reshape(cond.shape[0], *middle, *cond.shape[1:])
    cond = jnp.broadcast_to(cond, (*x.shape[:-1], cond.shape[-1]))
    return jnp.concatenate([x, cond.astype(x.dtype)], -1)


def check_key(key: Key | None, what: str) -> Key:
    """Return the key of a stochastic layer, or say that it is missing.

    Raises:
      ValueError: if there is none.

    >>> check_key(None, "dequantisation")
    Traceback (most recent call last):
    ValueError: key must be given: dequantisation draws random numbers
    """
    if key is None:
        raise ValueError(f"key must be given: {what} draws random numbers")
    return key
