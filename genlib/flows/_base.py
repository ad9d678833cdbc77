"""Base distributions: what a flow carries data to."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from genlib.flows._bijector import (
    Conditioner,
    Params,
    check_conditioner,
    log_det_like,
    no_params,
    wide,
    zero_log_det,
)
from genlib.flows._coupling import raw_numbers
from genlib.types import Array, Key, Scalar, check_positive, compute_dtype, concrete


class Base(NamedTuple):
    """A distribution of latents z, a batch [B, ...] or a pytree of batches.

    Attributes:
      init: `(key, z, cond=None) -> params`, {} if there are none.
      log_prob: `(params, z, cond=None, *, temperature=1.0) -> [B]`, nats, in at least
        float32.
      sample: `(key, params, like, cond=None, *, temperature=1.0) -> z` with the shapes
        and dtypes of the pytree `like`.

    >>> from genlib import flows
    >>> flows.normal().log_prob({}, jnp.zeros((1, 2))).item()  # -ln 2 pi
    -1.8378770351409912
    """

    init: Callable[..., Params]
    log_prob: Callable[..., Array]
    sample: Callable[..., Any]


def normal(
    *,
    trainable: bool = False,
    conditioner: Conditioner | None = None,
    bound: Scalar = 2.0,
) -> Base:
    """Return a normal distribution N(mean, (temperature scale)^2), N(0, I) by default.

    Args:
      trainable: whether mean and log-scale of each variable are parameters, 0 at the
        start: {"0": {"mean", "log_scale"}} with a number for each leaf of z.
      conditioner: a network that sees `cond` and emits mean and raw log-scale instead.
        `cond` is [B, C] for the whole of z at once, or has the axes of z but the last,
        [B, H, W, C], for each position on its own.
      bound: of the conditioner's |log_scale| = |bound tanh(raw / bound)|.

    Returns:
      A `Base` for arrays and pytrees of them.

    Raises:
      ValueError: for both `trainable` and `conditioner`, or a `cond` that does not fit.

    >>> z = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    >>> normal().sample(jax.random.key(0), {}, z, temperature=0.0).sum().item()
    0.0
    """
    check_positive("bound", bound)
    if trainable and conditioner is not None:
        raise ValueError("trainable must be False with a conditioner, which is trained")
    conditioner = None if conditioner is None else check_conditioner(conditioner)

    def init(key: Key, z: Any, cond: Any = None) -> Params:
        params = {}
        for index, leaf in enumerate(jax.tree.leaves(z)):
            zeros = lambda leaf=leaf: jnp.zeros(
                leaf.shape[1:], compute_dtype(leaf.dtype)
            )
            if trainable:
                params[str(index)] = {"mean": zeros(), "log_scale": zeros()}
            elif conditioner is not None:
                own_key, features = (
                    jax.random.fold_in(key, index),
                    _features(leaf, cond),
                )
                params[str(index)] = conditioner.init(own_key, cond, features)
        return params

    def moments(params: Params, index: int, z: Any, cond: Any) -> Any:
        own = params.get(str(index), {})
        if conditioner is not None:
            shape = (*cond.shape[:-1], _features(z, cond) // 2)
            raw = raw_numbers(conditioner.apply, own, cond, shape, 2, None)
            raw = raw.astype(compute_dtype(z.dtype)).reshape(*z.shape, 2)
            return raw[..., 0], bound * jnp.tanh(raw[..., 1] / bound)
        return (own["mean"][None], own["log_scale"][None]) if trainable else (0.0, 0.0)

    def log_density(
        params: Params, index: int, z: Any, cond: Any, temperature: Scalar
    ) -> Array:
        mean, log_scale = moments(params, index, z, cond)
        squares = jnp.square((wide(z) - mean) * jnp.exp(-log_scale) / temperature)
        each = -0.5 * (squares + math.log(2 * math.pi)) - jnp.log(temperature)
        return each - log_scale

    def draw(
        key: Key, params: Params, index: int, z: Any, cond: Any, temperature: Scalar
    ) -> Array:
        mean, log_scale = moments(params, index, z, cond)
        noise = jax.random.normal(key, z.shape, compute_dtype(z.dtype))
        return mean + temperature * jnp.exp(log_scale) * noise

    return _of_leaves(init, log_density, draw)


def uniform() -> Base:
    """Return the uniform distribution on [0, 1]: log-density 0, and -inf outside.

    Gradients are 0 everywhere, outside too.

    Returns:
      A `Base` for arrays and pytrees of them; a temperature other than 1 has no meaning
      and is refused.

    >>> uniform().log_prob({}, jnp.array([[0.5], [1.5]])).tolist()
    [0.0, -inf]
    """

    def log_density(
        params: Params, index: int, z: Any, cond: Any, temperature: Scalar
    ) -> Array:
        check_temperature("uniform", temperature)
        inside = (z >= 0) & (z <= 1)
        return jnp.where(inside, 0.0, jnp.where(jnp.isnan(z), jnp.nan, -jnp.inf))

    def draw(
        key: Key, params: Params, index: int, z: Any, cond: Any, temperature: Scalar
    ) -> Array:
        check_temperature("uniform", temperature)
        return jax.random.uniform(key, z.shape, z.dtype)

    return _of_leaves(no_params, log_density, draw)


def student_t(df: Scalar = 4.0, *, trainable: bool = False) -> Base:
    """Return independent Student-t distributions, with tails |z|^-(df + 1).

    Heavy tails at the base keep the tails of data from being squeezed by the flow
    (arXiv:1907.04481).

    Args:
      df: degrees of freedom, positive; 1 is the Cauchy distribution.
      trainable: whether its log is a parameter, {"log_df": []}, with `df` at the start.

    Returns:
      A `Base` for arrays and pytrees of them; a temperature other than 1 has no meaning
      and is refused.

    Raises:
      ValueError: if `df` is not positive.

    >>> round(student_t(1.0).log_prob({}, jnp.zeros((1, 1))).item(), 4)  # -ln pi
    -1.1447
    """
    check_positive("df", df)

    def init(key: Key, z: Any, cond: Any = None) -> Params:
        dtype = zero_log_det(z).dtype
        return {"log_df": jnp.log(jnp.asarray(df, dtype))} if trainable else {}

    def freedom(params: Params, dtype: Any) -> Array:
        value = jnp.exp(params["log_df"]) if trainable else jnp.asarray(df)
        return value.astype(compute_dtype(dtype))

    def log_density(
        params: Params, index: int, z: Any, cond: Any, temperature: Scalar
    ) -> Array:
        check_temperature("Student-t", temperature)
        v = freedom(params, z.dtype)
        tails = (v + 1) / 2 * _log1p_square(wide(z) / jnp.sqrt(v))
        return _half_step(v / 2) - 0.5 * jnp.log(math.pi * v) - tails

    def draw(
        key: Key, params: Params, index: int, z: Any, cond: Any, temperature: Scalar
    ) -> Array:
        check_temperature("Student-t", temperature)
        key_normal, key_gamma = jax.random.split(key)
        v, dtype = freedom(params, z.dtype), compute_dtype(z.dtype)
        # A gamma variable underflows where its logarithm does not.
        log_gamma = jax.random.loggamma(key_gamma, v / 2, z.shape, dtype)
        widths = jnp.exp(0.5 * (jnp.log(v / 2) - log_gamma))
        return widths * jax.random.normal(key_normal, z.shape, dtype)

    return _of_leaves(init, log_density, draw)


def check_temperature(what: str, temperature: Scalar) -> None:
    """Refuse a temperature for a distribution that has none.

    Raises:
      ValueError: unless it is 1, and known to be.

    >>> check_temperature("uniform", 1.0)
    """
    value = concrete(temperature)
    if value is None or value != 1:
        raise ValueError(
            f"temperature must be 1 for the {what} distribution; it is {temperature}"
        )


def _of_leaves(
    init: Callable[..., Params],
    log_density: Callable[..., Array],
    draw: Callable[..., Array],
) -> Base:
    """Return a distribution whose leaves are independent.

    Args:
      init: of the `Base`.
      log_density: `(params, index, leaf, cond, temperature) ->` that of each number.
      draw: `(key, params, index, leaf, cond, temperature) ->` numbers like the leaf.
    """

    def log_prob(
        params: Params, z: Any, cond: Any = None, *, temperature: Scalar = 1.0
    ) -> Array:
        total = zero_log_det(z)
        for index, leaf in enumerate(jax.tree.leaves(z)):
            each = log_density(params, index, leaf, cond, temperature)
            total = total + log_det_like(leaf, each)
        return total

    def sample(
        key: Key,
        params: Params,
        like: Any,
        cond: Any = None,
        *,
        temperature: Scalar = 1.0,
    ) -> Any:
        leaves, structure = jax.tree.flatten(like)
        keys = jax.random.split(key, len(leaves))
        draws = [
            draw(key, params, index, leaf, cond, temperature).astype(leaf.dtype)
            for index, (key, leaf) in enumerate(zip(keys, leaves, strict=True))
        ]
        return jax.tree.unflatten(structure, draws)

    return Base(init, log_prob, sample)


def _features(z: Any, cond: Any) -> int:
    """Return how many numbers a conditioner is to emit for mean and log-scale of z."""
    shape = () if cond is None else cond.shape
    axes = len(shape) - 1
    if axes < 1 or shape[:-1] != z.shape[:axes]:
        raise ValueError(
            f"cond must be [B, C], or have the axes of z {z.shape} but the last; its "
            f"shape is {None if cond is None else shape}"
        )
    return 2 * math.prod(z.shape[axes:])


def _half_step(a: Array) -> Array:
    """Return log Gamma(a + 1/2) - log Gamma(a), of large a without cancellation."""
    large = a > 10
    b = jnp.where(large, a, 10.0)
    r = 1 / b
    terms = r * (-1 / 8 + r**2 * (1 / 192 + r**2 * (-1 / 640 + r**2 * 17 / 14336)))
    series = 0.5 * jnp.log(b) + terms
    small = jnp.where(large, 1.0, a)
    return jnp.where(large, series, gammaln(small + 0.5) - gammaln(small))


def _log1p_square(x: Array) -> Array:
    """Return log(1 + x^2) where x^2 overflows too."""
    large = jnp.abs(x) > 1e9
    far = 2 * jnp.log(jnp.where(large, jnp.abs(x), 1e9))
    return jnp.where(large, far, jnp.log1p(jnp.square(jnp.where(large, 0.0, x))))
