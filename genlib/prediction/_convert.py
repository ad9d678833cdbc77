"""The one 2x2 system behind all conversions, and denoisers made from networks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genlib.noise import Path, check_time, marginal_and_rate
from genlib.prediction._kinds import X0, Prediction, check_kind
from genlib.types import (
    Array,
    ArrayLike,
    Denoiser,
    StatefulDenoiser,
    concrete,
    expand_like,
    float_array,
    is_concrete,
)


def target(path: Path, x_0: Array, eps: Array, t: ArrayLike, kind: Prediction) -> Array:
    """Return what a network of a kind should output: (a x_0 + b eps) / scale.

    Args:
      path: the forward process.
      x_0: data [B, ...].
      eps: the noise in x_t, with the shape of `x_0`.
      t: time, a scalar or [B].
      kind: the kind of prediction.

    Returns:
      The target with the shape and dtype of `x_0`. Where it is infinite (the score at
      sigma = 0) it is 0 if `t` is traced.

    Raises:
      ValueError: if `kind` is not a `Prediction`, a concrete `t` is outside the path,
        or the target is infinite there.

    >>> from genlib import noise, prediction
    >>> x_0, eps = jnp.full((1, 1), 2.0), jnp.ones((1, 1))
    >>> target(noise.Rectified(), x_0, eps, 0.3, prediction.VELOCITY).item()
    -1.0
    """
    check_kind(kind)
    check_time(path, t)
    form = kind(*marginal_and_rate(path, t))
    infinite = jnp.asarray(form.scale) == 0
    _refuse(infinite, t, f"{kind} is infinite")
    inverse = jnp.where(infinite, 0.0, 1.0 / jnp.where(infinite, 1.0, form.scale))
    a, b = (expand_like(c * inverse, x_0) for c in (form.x_0, form.eps))
    return (a * x_0 + b * eps).astype(x_0.dtype)


def convert(
    path: Path,
    value: Array,
    x_t: Array,
    t: ArrayLike,
    source: Prediction,
    target: Prediction,
) -> Array:
    """Turn one kind of prediction into another.

    Source and target are linear forms p and q in (x_0, eps), as x_t = (alpha, sigma)
    is; two of them determine the third. With det(p) = alpha p_eps - sigma p_x0,

        target = (det(q) scale_p value + (q_x0 p_eps - q_eps p_x0) x_t)
                 / (det(p) scale_q).

    Nothing else is divided by, so x_0 from v is exactly -v at alpha = 0. Where
    det(p) = 0 the value says the same as x_t: a target parallel to it is still exact
    (eps to score at alpha = 0), and any other is undetermined (x_0 from eps there).

    Args:
      path: the forward process.
      value: a prediction of kind `source` [B, ...].
      x_t: what it was predicted from, with the shape of `value`.
      t: time, a scalar or [B].
      source: the kind of `value`.
      target: the kind to return.

    Returns:
      The prediction with the shape of `value` and the dtype of `x_t`. Where it is
      undetermined or infinite it is 0 if `t` is traced.

    Raises:
      ValueError: if a kind is not a `Prediction`, shapes disagree, a concrete `t` is
        outside the path, or the result is undetermined or infinite there.

    >>> from genlib import noise, prediction
    >>> v, x_t = jnp.full((1, 1), 3.0), jnp.ones((1, 1))
    >>> convert(noise.Cosine(), v, x_t, 1.0, prediction.V, prediction.X0).item()
    -3.0
    """
    check_kind(source, "source")
    check_kind(target, "target")
    check_time(path, t)
    if value.shape != x_t.shape:
        raise ValueError(
            f"value must have the shape {x_t.shape} of x_t; it is {value.shape}"
        )
    if source == target:
        return value.astype(x_t.dtype)
    marginal, rate = marginal_and_rate(path, t)
    p, q = source(marginal, rate), target(marginal, rate)
    det_p, det_q = p.determinant(marginal), q.determinant(marginal)

    unsolvable = (det_p == 0) & (det_q != 0)
    _refuse(unsolvable, t, f"{target} is not determined by {source} and x_t")
    infinite = (det_p * 0 + q.scale) == 0
    _refuse(infinite, t, f"{target} is infinite")

    parallel = (q.x_0 * p.x_0 + q.eps * p.eps) / (p.x_0 * p.x_0 + p.eps * p.eps)
    safe_det = jnp.where(det_p == 0, 1.0, det_p)
    keep = jnp.where(det_p == 0, parallel, det_q / safe_det) * p.scale
    add = jnp.where(det_p == 0, 0.0, (q.x_0 * p.eps - q.eps * p.x_0) / safe_det)
    lost = unsolvable | infinite
    inverse = jnp.where(lost, 0.0, 1.0 / jnp.where(lost, 1.0, q.scale))
    keep, add = (expand_like(c * inverse, x_t) for c in (keep, add))
    return (keep * value + add * x_t).astype(x_t.dtype)


def denoiser(
    predict: Callable[[Array, Array], Array], path: Path, kind: Prediction
) -> Denoiser:
    """Make a denoiser (x_t, t) -> x_0 from a network.

    Args:
      predict: the network, `predict(x, t)` with x [B, ...] and t [B], already
        conditioned. For `EDM` it sees the preconditioned input and c_noise.
      path: the path that the network was trained on.
      kind: what its output means.

    Returns:
      A `Denoiser`. `samplers.sample` refuses to start it where `kind` says nothing
      about x_0 (eps or score at alpha = 0).

    Raises:
      ValueError: if `kind` is not a `Prediction`; when called, if the network returns
        another shape than it was given.

    >>> from genlib import noise, prediction
    >>> denoise = denoiser(lambda x, t: 0 * x, noise.Rectified(), prediction.VELOCITY)
    >>> denoise(jnp.ones((2, 3)), 0.5).shape
    (2, 3)
    """
    check_kind(kind)

    def denoise(x_t: Array, t: ArrayLike) -> Array:
        t = float_array(t)
        expand_like(t, x_t)  # refuses times of the wrong shape
        x_in, t_in = kind.inputs(path(t), x_t, t)
        value = predict(x_in, jnp.broadcast_to(t_in, x_t.shape[:1]))
        if value.shape != x_t.shape:
            raise ValueError(
                f"predict must return the shape {x_t.shape} of its input; "
                f"it returned {value.shape}"
            )
        return convert(path, value, x_t, t, kind, X0)

    def check_start(t: ArrayLike) -> None:
        if not is_concrete(path, t):
            return
        with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
            marginal, rate = marginal_and_rate(path, t)
            lost = kind(marginal, rate).determinant(marginal) == 0
            lost = lost & (marginal.sigma != 0)
        _refuse(lost, t, f"{X0} is not determined by {kind} and x_t")

    denoise.check_start = check_start
    return denoise


def retime(denoise: Denoiser, source: Path, target: Path) -> Denoiser:
    """Use a denoiser trained on one path on another, by matching log-SNR.

    D_target(x, t) = D_source(c x, s) with log_snr_source(s) = log_snr_target(t), where
    c = |(alpha_s, sigma_s)| / |(alpha_t, sigma_t)| (arXiv:2206.00364, app. C). Beyond
    the noise levels of `source`, its own end stands in.

    Args:
      denoise: a denoiser on `source`.
      source: the path of `denoise`.
      target: the path to sample on.

    Returns:
      A denoiser on `target`.

    >>> from genlib import noise
    >>> vp = retime(lambda x, t: 0.5 * x, noise.EDM(), noise.Cosine())
    >>> round(vp(jnp.ones((1, 1)), 0.5).item(), 4)  # alpha = sigma: x is twice as large
    0.7071
    """

    def time_on_source(t: Array) -> Array:
        # Where the target goes further than the source, the source's end stands in.
        ends = (
            source.log_snr(jnp.asarray(source.t_max, t.dtype)),
            source.log_snr(jnp.asarray(source.t_min, t.dtype)),
        )
        s = source.time_at(jnp.clip(target.log_snr(t), *ends))
        return jnp.clip(s, source.t_min, source.t_max)

    def on_source(x_t: Array, t: ArrayLike) -> tuple[Array, Array]:
        t = float_array(t)
        s = time_on_source(t)
        scale = jnp.hypot(*source(s)) / jnp.hypot(*target(t))
        return (expand_like(scale, x_t) * x_t).astype(x_t.dtype), s

    denoise_on_target: Any = lambda x_t, t: denoise(*on_source(x_t, t))
    if isinstance(denoise, StatefulDenoiser):
        denoise_on_target = StatefulDenoiser(
            denoise.init,
            lambda x_t, t, memory: denoise.apply(*on_source(x_t, t), memory),
        )
    check = getattr(denoise, "check_start", None)
    if check is not None:

        def check_start(t: ArrayLike) -> None:
            if is_concrete(source, target, t):
                with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
                    check(time_on_source(float_array(t)))

        if isinstance(denoise_on_target, StatefulDenoiser):
            return dataclasses.replace(denoise_on_target, check_start=check_start)
        denoise_on_target.check_start = check_start
    return denoise_on_target


def _refuse(wrong: Array, t: ArrayLike, message: str) -> None:
    """Raise a ValueError if `wrong` is concretely true anywhere."""
    value = concrete(wrong)
    if value is not None and value.any():
        raise ValueError(f"{message} at t = {t}")
