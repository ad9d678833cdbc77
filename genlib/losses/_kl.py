"""Kullback-Leibler divergences in closed form, and how much of them is free."""

from typing import Any

import jax
import jax.numpy as jnp

from genlib.types import Array, ArrayLike, Scalar, compute_dtype, concrete


def kl_normal(
    mean: ArrayLike,
    log_std: ArrayLike,
    prior_mean: ArrayLike = 0.0,
    prior_log_std: ArrayLike = 0.0,
) -> Array:
    """Return KL(N(mean, std^2), N(prior_mean, prior_std^2)) of each variable.

    KL = 1/2 (r^2 - 1 - ln r^2 + ((mean - prior_mean) / prior_std)^2) with
    r = std / prior_std (arXiv:1312.6114, app. B, for the standard normal). r^2 - 1 is
    an `expm1` of the log-stds, so that where both are close the error is one of
    rounding ln r^2, not 1.

    Args:
      mean: of the posterior, [...].
      log_std: log of its standard deviations, [...].
      prior_mean: of the prior, [...] or a scalar; the standard normal by default.
      prior_log_std: log of its standard deviations, [...] or a scalar.

    Returns:
      Nats of each variable [...], float32 (float64 for float64 arguments). That of an
      example is their sum.

    >>> kl_normal(jnp.array([0.5, 0.0]), jnp.zeros(2))
    Array([0.125, 0.   ], dtype=float32)
    """
    mean, log_std, prior_mean, prior_log_std = _wide(
        mean, log_std, prior_mean, prior_log_std
    )
    log_ratio = 2 * (log_std - prior_log_std)
    shift = jnp.square((mean - prior_mean) * jnp.exp(-prior_log_std))
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + shift)


def kl_multivariate_normal(
    mean: ArrayLike,
    scale_tril: ArrayLike,
    prior_mean: ArrayLike | None = None,
    prior_scale_tril: ArrayLike | None = None,
) -> Array:
    """Return KL(N(m, L L^T), N(p, P P^T)) of normals with full covariance.

    KL = 1/2 (|P^-1 L|_F^2 - D + |P^-1 (m - p)|^2) + sum_i ln |P_ii / L_ii|.

    Args:
      mean: m, [..., D].
      scale_tril: L, a lower Cholesky factor [..., D, D]. What is above the diagonal is
        not read.
      prior_mean: p, [..., D] or [D]; 0 by default.
      prior_scale_tril: P, [..., D, D] or [D, D]; the identity by default.

    Returns:
      Nats [...], float32 (float64 for float64 arguments).

    Raises:
      ValueError: if shapes do not fit.

    >>> kl_multivariate_normal(jnp.array([[1.0, 0.0]]), jnp.eye(2)[None])
    Array([0.5], dtype=float32)
    """
    shape = jnp.shape(mean)
    if not shape or jnp.shape(scale_tril) != (*shape, shape[-1]):
        raise ValueError(
            "scale_tril must be [..., D, D] for a mean [..., D]; they are "
            f"{list(jnp.shape(scale_tril))} and {list(shape)}"
        )
    size = shape[-1]
    for name, value, fits in (
        ("prior_mean", prior_mean, (shape, (size,))),
        ("prior_scale_tril", prior_scale_tril, ((*shape, size), (size, size))),
    ):
        if value is not None and jnp.shape(value) not in fits:
            raise ValueError(
                f"{name} must be {list(fits[0])} or {list(fits[1])}; it is "
                f"{list(jnp.shape(value))}"
            )
    shift, scale, center, prior_scale = _wide(
        mean,
        scale_tril,
        0.0 if prior_mean is None else prior_mean,
        jnp.eye(size) if prior_scale_tril is None else prior_scale_tril,
    )
    scale, prior_scale = jnp.tril(scale), jnp.tril(prior_scale)
    shift = shift - jnp.broadcast_to(center, shape)
    prior_scale = jnp.broadcast_to(prior_scale, scale.shape)
    log_diagonal = lambda factor: jnp.log(
        jnp.abs(jnp.diagonal(factor, axis1=-2, axis2=-1))
    )
    log_ratio = log_diagonal(scale) - log_diagonal(prior_scale)
    both = jnp.concatenate([scale, shift[..., None]], axis=-1)
    if prior_scale_tril is not None:
        both = jax.lax.linalg.triangular_solve(
            prior_scale, both, left_side=True, lower=True
        )
    return 0.5 * (jnp.square(both).sum((-2, -1)) - size) - log_ratio.sum(-1)


def kl_categorical(logits: ArrayLike, prior_logits: ArrayLike | None = None) -> Array:
    """Return KL(softmax(logits), softmax(prior_logits)) of categorical distributions.

    KL = sum_k q_k (ln q_k - ln p_k), where outcomes with q_k = 0 add nothing: logits of
    -inf are allowed. It is inf if the prior excludes what the posterior does not.

    Args:
      logits: unnormalised log-probabilities q [..., K], some of them finite.
      prior_logits: those of p, [..., K] or [K]; uniform by default.

    Returns:
      Nats [...], float32 (float64 for float64 arguments).

    Raises:
      ValueError: if shapes do not fit.

    >>> kl_categorical(jnp.array([0.0, -jnp.inf])).round(4)  # ln 2
    Array(0.6931, dtype=float32)
    """
    shape = jnp.shape(logits)
    prior_logits = jnp.zeros(shape[-1:]) if prior_logits is None else prior_logits
    if not shape or jnp.shape(prior_logits) not in (shape, shape[-1:]):
        raise ValueError(
            "prior_logits must be [..., K] like logits, or [K]; they are "
            f"{list(jnp.shape(prior_logits))} and {list(shape)}"
        )
    log_q, log_p = (jax.nn.log_softmax(x) for x in _wide(logits, prior_logits))
    log_p = jnp.broadcast_to(log_p, shape)
    q = jnp.exp(log_q)  # 0 for finite logits too, if they are far below the others
    ratio = jnp.where(q > 0, log_q, 0.0) - jnp.where(q > 0, log_p, 0.0)
    return (q * ratio).sum(-1)


def free_bits(
    kl: Array, minimum: Scalar, *, over: str = "dimension", axis_name: Any = None
) -> Array:
    """Return divergences that training does not push below a minimum.

    max(kl, minimum) of each entry, or max(mean of the batch, minimum) for every entry
    of the batch (arXiv:1606.04934): no gradient where that much is free. In the second,
    single examples may go below, which keeps more latents in use. Sum the divergences
    of a group of latents first, and the minimum is that of the group.

    Args:
      kl: nats of each latent or group, [B, ...].
      minimum: nats that are free for each of them, not negative.
      over: "dimension" for each entry by itself, or "batch". The second gives every
        example the same value, so that their mean is that of the batch.
      axis_name: of `shard_map` or `pmap`, for the mean over all devices.

    Returns:
      Nats [B, ...].

    Raises:
      ValueError: if `over` is neither, or `minimum` is known to be negative.

    >>> kl = jnp.array([[0.0, 1.0], [1.0, 2.0]])
    >>> free_bits(kl, 0.25).tolist()
    [[0.25, 1.0], [1.0, 2.0]]
    >>> free_bits(kl, 0.25, over="batch").tolist()
    [[0.5, 1.5], [0.5, 1.5]]
    """
    if over not in ("dimension", "batch"):
        raise ValueError(f"over must be 'dimension' or 'batch'; it is {over!r}")
    value = concrete(minimum)
    if value is not None and not (value >= 0).all():
        raise ValueError(f"minimum must not be negative; it is {minimum}")
    floor = jnp.asarray(minimum, kl.dtype)
    if over == "dimension":
        return jnp.maximum(kl, floor)
    mean = kl.mean(0, keepdims=True)
    mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
    return jnp.broadcast_to(jnp.maximum(mean, floor), kl.shape)


def cyclical_annealing(step: ArrayLike, period: Scalar, share: Scalar = 0.5) -> Array:
    """Return a weight of the KL that grows from 0 to 1 again and again.

    min(1, phase / share), phase = (step mod period) / period (arXiv:1903.10145). One
    rise, and then 1, is `optax.linear_schedule(0, 1, steps)`.

    Args:
      step: number of steps done, [].
      period: steps of a cycle, positive.
      share: of the cycle in which the weight grows, in (0, 1].

    Returns:
      Weights from 0 to 1, a float [].

    Raises:
      ValueError: if `period` or `share` is concretely out of range.

    >>> [cyclical_annealing(step, 8).item() for step in (0, 2, 4, 7, 8)]
    [0.0, 0.5, 1.0, 1.0, 0.0]
    """
    for name, setting, most in (("period", period, jnp.inf), ("share", share, 1)):
        value = concrete(setting)
        if value is not None and not (0 < value <= most):
            raise ValueError(f"{name} must be in (0, {most}]; it is {setting}")
    return jnp.minimum(jnp.mod(step, period) / period / share, 1.0)


def _wide(*values: ArrayLike) -> list[Array]:
    """Return arrays in one dtype, at least float32."""
    dtype = compute_dtype(jnp.result_type(*values))
    return [jnp.asarray(value, dtype) for value in values]
