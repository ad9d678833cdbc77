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

    def log_prob(
        params: Params, z: Any, cond: Any = None, *, temperature: Scalar = 1.0
    ) -> Array:
        total = zero_log_det(z)
        for index, leaf in enumerate(jax.tree.leaves(z)):
            mean, log_scale = moments(params, index, leaf, cond)
            squares = jnp.square(
                (wide(leaf) - mean) * jnp.exp(-log_scale) / temperature
            )
            each = -0.5 * (squares + math.log(2 * math.pi)) - jnp.log(temperature)
            total = total + log_det_like(leaf, each - log_scale)
        return total

    def sample(
        key: Key,
        params: Params,
        like: Any,
        cond: Any = None,
        *,
        temperature: Scalar = 1.0,
    ) -> Any:
        def draw(key: Key, index: int, leaf: Any) -> Array:
            mean, log_scale = moments(params, index, leaf, cond)
            noise = jax.random.normal(key, leaf.shape, compute_dtype(leaf.dtype))
            return mean + temperature * jnp.exp(log_scale) * noise

        return _draw(key, like, draw)

    return Base(init, log_prob, sample)


def uniform() -> Base:
    """Return the uniform distribution on [0, 1]: log-density 0, and -inf outside.

    Gradients are 0 everywhere, outside too.

    Returns:
      A `Base` for arrays and pytrees of them; a temperature other than 1 has no meaning
      and is refused.

    >>> uniform().log_prob({}, jnp.array([[0.5], [1.5]])).tolist()
    [0.0, -inf]
    """

    def log_prob(
        params: Params, z: Any, cond: Any = None, *, temperature: Scalar = 1.0
    ) -> Array:
        check_temperature("uniform", temperature)
        total = zero_log_det(z)
        for leaf in jax.tree.leaves(z):
            inside = (leaf >= 0) & (leaf <= 1)
            outside = jnp.where(jnp.isnan(leaf), jnp.nan, -jnp.inf)
            total = total + log_det_like(leaf, jnp.where(inside, 0.0, outside))
        return total

    def sample(
        key: Key,
        params: Params,
        like: Any,
        cond: Any = None,
        *,
        temperature: Scalar = 1.0,
    ) -> Any:
        check_temperature("uniform", temperature)
        draw = lambda key, index, leaf: jax.random.uniform(key, leaf.shape, leaf.dtype)
        return _draw(key, like, draw)

    return Base(no_params, log_prob, sample)


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

    def log_prob(
        params: Params, z: Any, cond: Any = None, *, temperature: Scalar = 1.0
    ) -> Array:
        check_temperature("Student-t", temperature)
        total = zero_log_det(z)
        for leaf in jax.tree.leaves(z):
            v = freedom(params, leaf.dtype)
            tails = (v + 1) / 2 * _log1p_square(wide(leaf) / jnp.sqrt(v))
            constant = _half_step(v / 2) - 0.5 * jnp.log(math.pi * v)
            total = total + log_det_like(leaf, constant - tails)
        return total

    def sample(
        key: Key,
        params: Params,
        like: Any,
        cond: Any = None,
        *,
        temperature: Scalar = 1.0,
    ) -> Any:
        check_temperature("Student-t", temperature)

        def draw(key: Key, index: int, leaf: Any) -> Array:
            key_normal, key_gamma = jax.random.split(key)
            v, dtype = freedom(params, leaf.dtype), compute_dtype(leaf.dtype)
            # A gamma variable underflows where its logarithm does not.
            log_gamma = jax.random.loggamma(key_gamma, v / 2, leaf.shape, dtype)
            widths = jnp.exp(0.5 * (jnp.log(v / 2) - log_gamma))
            return widths * jax.random.normal(key_normal, leaf.shape, dtype)

        return _draw(key, like, draw)

    return Base(init, log_prob, sample)


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


def _draw(key: Key, like: Any, draw: Callable[[Key, int, Any], Array]) -> Any:
    """Draw each leaf of a pytree with a key of its own."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [
        draw(key, index, leaf).astype(leaf.dtype)
        for index, (key, leaf) in enumerate(zip(keys, leaves, strict=True))
    ]
    return jax.tree.unflatten(structure, draws)


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
