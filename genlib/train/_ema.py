"""Moving averages of parameters whose decay follows the step, and any average after."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike as NumpyLike

from genlib import tree
from genlib.types import Array, ArrayLike, Scalar, concrete

# The decay of the update of a step (0 for the first), as `make_step` takes it.
Decay = Callable[[ArrayLike], Array]

# Beyond it the profile t^gamma has gamma < 0.
_LARGEST = 12.0**-0.5


class Snapshot(NamedTuple):
    """A power-function average at some step of a run.

    Attributes:
      step: the updates that it averages, `State.step` when it was taken.
      std: its relative width, that of its `power_ema`.
      params: pytree.
    """

    step: int
    std: float
    params: Any


def power_ema(std: Scalar) -> Decay:
    """Return the decay of a power-function average, for `make_step(..., ema=...)`.

        decay_t = (1 - 1 / t)^(gamma + 1),  t = step + 1,

    weighs the parameters of step tau by (tau / t)^gamma, whatever the length of the
    run: the standard deviation of tau / t is `std` (arXiv:2312.02696, sec. 3.1). The
    first decay is 0, so that the initial parameters are forgotten at once.

    Args:
      std: relative width of the profile, in (0, 12^-1/2]; 0.05 and 0.10 are usual.

    Returns:
      A function of the step.

    Raises:
      ValueError: if a concrete `std` is out of range.

    >>> decay = power_ema(0.05)
    >>> decay(0).item(), round(decay(99).item(), 6)
    (0.0, 0.834747)
    """
    _check_std(std)
    power = _exponent(std, np if concrete(std) is not None else jnp) + 1

    def decay(step: ArrayLike) -> Array:
        t = jnp.asarray(step) + 1.0
        # (1 - 1 / t) alone would lose its difference from 1 in float32.
        return jnp.exp(power * jnp.log1p(-1 / t))

    return decay


def warmup_ema(
    decay: Scalar = 0.9999, *, inv_gamma: Scalar = 1.0, power: Scalar = 2 / 3
) -> Decay:
    """Return a decay that rises to a constant, for `make_step(..., ema=...)`.

        decay_t = min(decay, 1 - (1 + step / inv_gamma)^-power)

    (k-diffusion's and diffusers' warm-up.) power = 2/3 reaches 0.999 after 31.6k steps
    and 0.9999 after a million; 3/4 after 10k and 215k.

    Args:
      decay: where it ends, in [0, 1).
      inv_gamma: the scale of the steps, positive.
      power: how fast it rises, positive.

    Returns:
      A function of the step.

    Raises:
      ValueError: if a concrete setting is out of range.

    >>> [round(warmup_ema()(step).item(), 4) for step in (0, 1, 9)]
    [0.0, 0.37, 0.7846]
    """
    value = concrete(decay)
    if value is not None and not 0 <= value < 1:
        raise ValueError(f"decay must be in [0, 1); it is {decay}")
    for name, setting in (("inv_gamma", inv_gamma), ("power", power)):
        value = concrete(setting)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive; it is {setting}")

    def schedule(step: ArrayLike) -> Array:
        rise = -jnp.expm1(-power * jnp.log1p(jnp.asarray(step) / inv_gamma))
        return jnp.minimum(decay, rise)

    return schedule


def posthoc_coefficients(
    steps: NumpyLike, stds: NumpyLike, step: float, std: float
) -> np.ndarray:
    """Return the weights of snapshots that come closest to another average.

    Least squares between the profiles, weights summing to 1 (arXiv:2312.02696,
    sec. 3.2). With p_t(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t],

        <p_a, p_b> = (a + 1) (b + 1) / (a + b + 1) min^(a+b+1) / (t_a^(a+1) t_b^(b+1)).

    Args:
      steps: when each snapshot was taken [N], positive.
      stds: relative width of each [N].
      step: when the wanted average would be taken; at most the last of `steps`.
      std: its relative width.

    Returns:
      float64 NumPy [N].

    Raises:
      ValueError: if there is no snapshot, two are the same, there is not one width for
        each, or a step or a width is out of range.

    >>> posthoc_coefficients([500, 1000], [0.05, 0.05], 1000, 0.05).round(6) + 0.0
    array([0., 1.])
    """
    t = np.atleast_1d(np.asarray(steps, np.float64))
    width = np.atleast_1d(np.asarray(stds, np.float64))
    if t.ndim != 1 or t.shape != width.shape or not t.size:
        raise ValueError(
            "steps and stds must hold one number for each snapshot; their shapes are "
            f"{t.shape} and {width.shape}"
        )
    if len(set(zip(t, width, strict=True))) < len(t):
        raise ValueError(
            f"snapshots must differ in step or std; they are {t} and {width}"
        )
    _check_std(width, "stds")
    _check_std(std)
    if not (t > 0).all() or not 0 < step <= t.max():
        raise ValueError(
            "steps must be positive and step must not be after the last; they are "
            f"{t.tolist()} and {step}"
        )
    gamma = _exponent(width, np)
    target_gamma = _exponent(np.float64(std), np)
    gram = _overlap(t[:, None], gamma[:, None], t[None], gamma[None])
    moments = _overlap(t, gamma, np.float64(step), target_gamma)
    # In units in which all profiles are equally long the system is well conditioned.
    scale = 1 / np.sqrt(np.diag(gram))
    gram = scale[:, None] * gram * scale[None]
    weights = scale * np.linalg.lstsq(gram, scale * moments)[0]
    return weights / weights.sum()


def posthoc_ema(
    snapshots: Iterable[Snapshot], std: float, *, step: int | None = None
) -> Any:
    """Return the average of another width, from snapshots of a run that is over.

    sum_i c_i params_i with the `posthoc_coefficients` (arXiv:2312.02696, sec. 3.2). Two
    widths (0.05 and 0.10) with tens of snapshots over the run give any in between, and
    wider ones at fewer digits.

    Args:
      snapshots: of one run, as `read_snapshots` returns them.
      std: the relative width of the average.
      step: when it would have been taken; at the last snapshot by default.

    Returns:
      A pytree like the `params` of a snapshot, accumulated in float32; leaves that are
      not floats are those of the last snapshot.

    Raises:
      ValueError: as `posthoc_coefficients`.

    >>> early = Snapshot(500, 0.05, {"w": jnp.zeros(1)})
    >>> late = Snapshot(1000, 0.05, {"w": jnp.ones(1)})
    >>> posthoc_ema([early, late], 0.05)["w"]
    Array([1.], dtype=float32)
    """
    ordered = sorted(snapshots, key=lambda snapshot: snapshot.step)
    if not ordered:
        raise ValueError("snapshots must hold at least one; there are none")
    steps, stds = ([s.step for s in ordered], [s.std for s in ordered])
    last = steps[-1] if step is None else step
    weights = posthoc_coefficients(steps, stds, last, std).tolist()

    def add(*leaves: Any) -> Any:
        if not tree.is_float(leaves[-1]):
            return leaves[-1]
        terms = (c * jnp.asarray(v) for c, v in zip(weights, leaves, strict=True))
        return sum(terms, jnp.zeros_like(leaves[-1]))

    return jax.tree.map(add, *(snapshot.params for snapshot in ordered))


def _overlap(t_a: Any, a: Any, t_b: Any, b: Any) -> Any:
    """Return the inner product of two profiles, without forming large powers."""
    least = np.minimum(t_a, t_b)
    share = (least / t_a) ** a * (least / t_b) ** b
    return (a + 1) * (b + 1) / (a + b + 1) * share / np.maximum(t_a, t_b)


def _exponent(std: Any, xp: Any) -> Any:
    """Return gamma of a relative width.

    (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = std^2: the largest of three real roots,
    in trigonometric form.
    """
    inverse = 1 / xp.square(std)
    third = (inverse + 1 / 3) / 3
    half = (2 / 3) * inverse + 1 / 27
    angle = xp.arccos(-half / third**1.5)
    return 2 * xp.sqrt(third) * xp.cos(angle / 3) - 7 / 3


def _check_std(std: Any, name: str = "std") -> None:
    value = concrete(std)
    if value is not None and not ((value > 0) & (value <= _LARGEST + 1e-6)).all():
        raise ValueError(
            f"{name} must be in (0, 12^-1/2], a profile that rises; it is {std}"
        )
