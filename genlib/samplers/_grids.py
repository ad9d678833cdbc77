"""Time grids: decreasing times from noise to data, float64 where that is possible."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from genlib.noise import Path
from genlib.samplers._table import namespace, tabulate, times_at
from genlib.types import ArrayLike, Scalar, check_positive, is_concrete

# EDM's noise levels, the ends of grids on paths that reach beyond them.
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0


def uniform(path: Path, steps: int) -> Any:
    """Return steps + 1 times, equally spaced from t_max to t_min.

    Args:
      path: the forward process.
      steps: number of steps, at least 1.

    Returns:
      Times [steps + 1].

    Raises:
      ValueError: if `steps` is not a positive integer.

    >>> from genlib import noise
    >>> uniform(noise.Rectified(), 4)
    array([1.  , 0.75, 0.5 , 0.25, 0.  ])
    """
    check_steps(steps)
    u = np.linspace(1.0, 0.0, steps + 1)
    first, last = _ends(path)
    return last + u * (first - last)


def uniform_log_snr(
    path: Path,
    steps: int,
    *,
    sigma_min: Scalar | None = None,
    sigma_max: Scalar | None = None,
    to_zero: bool = True,
) -> Any:
    """Return times equally spaced in log-SNR (arXiv:2206.00927, sec. 3.4).

    Args:
      path: the forward process.
      steps: number of steps, at least 1.
      sigma_min: smallest sigma / alpha; by default the path's own, or 0.002 if the path
        goes further.
      sigma_max: largest sigma / alpha; by default the path's own, or 80 if the path
        goes further (then start from `noise.prior(..., t=times[0])`).
      to_zero: let the last step go from sigma_min to the data end of the path.

    Returns:
      Times [steps + 1]. With `to_zero` the last is t_min and the `steps` before it are
      equally spaced in log-SNR, otherwise all are.

    Raises:
      ValueError: if `steps` is not a positive integer, or the noise levels are not
        increasing and within the path.

    >>> from genlib import noise
    >>> uniform_log_snr(noise.EDM(), 4, sigma_min=0.01, sigma_max=10.0).round(4)
    array([10.  ,  1.  ,  0.1 ,  0.01,  0.  ])
    """
    return polyexponential(
        path, steps, 1.0, sigma_min=sigma_min, sigma_max=sigma_max, to_zero=to_zero
    )


def karras(
    path: Path,
    steps: int,
    *,
    rho: Scalar = 7.0,
    sigma_min: Scalar | None = None,
    sigma_max: Scalar | None = None,
    to_zero: bool = True,
) -> Any:
    """Return EDM's times: sigma^(1/rho) equally spaced (arXiv:2206.00364, eq. 5).

    On any path sigma / alpha takes the place of sigma.

    Args:
      path: the forward process.
      steps: number of steps, at least 1.
      rho: larger values put more steps near the data.
      sigma_min: smallest sigma / alpha; by default the path's own, or 0.002 if the path
        goes further.
      sigma_max: largest sigma / alpha; by default the path's own, or 80 if the path
        goes further (then start from `noise.prior(..., t=times[0])`).
      to_zero: let the last step go from sigma_min to the data end of the path.

    Returns:
      Times [steps + 1]. With `to_zero` the last is t_min and the `steps` before it are
      spaced as above, otherwise all are.

    Raises:
      ValueError: if `steps` is not a positive integer, or the noise levels are not
        increasing and within the path.

    >>> from genlib import noise
    >>> [round(t, 3) for t in karras(noise.EDM(), 5).tolist()]
    [80.0, 17.528, 2.515, 0.17, 0.002, 0.0]
    """
    root = 1.0 / rho
    shape = lambda u, low, high: (low**root + u * (high**root - low**root)) ** rho
    return _between(path, steps, sigma_min, sigma_max, to_zero, shape, rho)


def polyexponential(
    path: Path,
    steps: int,
    rho: Scalar = 1.0,
    *,
    sigma_min: Scalar | None = None,
    sigma_max: Scalar | None = None,
    to_zero: bool = True,
) -> Any:
    """Return times whose log sigma falls as u^rho for u from 1 to 0 (k-diffusion).

    log sigma = log sigma_min + u^rho log(sigma_max / sigma_min), where sigma stands for
    sigma / alpha. rho = 1 is `uniform_log_snr`.

    Args:
      path: the forward process.
      steps: number of steps, at least 1.
      rho: larger values put more steps near the data.
      sigma_min: smallest sigma / alpha, as in `karras`.
      sigma_max: largest sigma / alpha, as in `karras`.
      to_zero: let the last step go from sigma_min to the data end of the path.

    Returns:
      Times [steps + 1], as in `karras`.

    Raises:
      ValueError: as `karras`.

    >>> from genlib import noise
    >>> grid = polyexponential(noise.EDM(), 4, 2.0, sigma_min=0.01, sigma_max=10.0)
    >>> grid.round(4)
    array([10.    ,  0.2154,  0.0215,  0.01  ,  0.    ])
    """

    def shape(u: Any, low: Any, high: Any) -> Any:
        xp = namespace(low, high, rho)
        return xp.exp(xp.log(low) + u**rho * (xp.log(high) - xp.log(low)))

    return _between(path, steps, sigma_min, sigma_max, to_zero, shape, rho)


def beta(
    path: Path,
    steps: int,
    a: float = 0.6,
    b: float = 0.6,
    *,
    sigma_min: Scalar | None = None,
    sigma_max: Scalar | None = None,
    to_zero: bool = True,
) -> Any:
    """Return noise levels that are quantiles of a beta distribution (arXiv:2407.12173).

    sigma = sigma_min + (sigma_max - sigma_min) Q(u) for u from 1 to 0, where sigma
    stands for sigma / alpha and Q is the quantile function of Beta(a, b).

    Args:
      path: the forward process.
      steps: number of steps, at least 1.
      a: the smaller, the more steps near the data.
      b: the smaller, the more steps near the noise.
      sigma_min: smallest sigma / alpha, as in `karras`.
      sigma_max: largest sigma / alpha, as in `karras`.
      to_zero: let the last step go from sigma_min to the data end of the path.

    Returns:
      Times [steps + 1], as in `karras`.

    Raises:
      ValueError: as `karras`, or if `a` or `b` is not a positive number.

    >>> from genlib import noise
    >>> beta(noise.EDM(), 4, sigma_min=1.0, sigma_max=10.0).round(4)
    array([10.    ,  7.5213,  3.4787,  1.    ,  0.    ])
    """
    if not (is_concrete(a, b) and a > 0 and b > 0):
        raise ValueError(f"a and b must be positive numbers; they are {a} and {b}")

    def shape(u: Any, low: Any, high: Any) -> Any:
        from scipy.stats import beta as distribution  # slow to import

        return low + (high - low) * distribution.ppf(u, a, b)

    return _between(path, steps, sigma_min, sigma_max, to_zero, shape)


def like(path: Path, times: ArrayLike, source: Path) -> Any:
    """Return the times at which a path has the noise levels of another at its times.

    Grids of one process serve another so: EDM's VP ablation, for instance, walks
    `noise.EDM(200.0)` at the noise levels of `noise.VPLinear()` at equal times
    (arXiv:2206.00364, table 1).

    Args:
      path: the process to sample on.
      times: times [N + 1] of `source`, from noise to data.
      source: the process whose log-SNR at `times` is taken.

    Returns:
      Times [N + 1] of `path`. The ends of `source` become the ends of `path` where both
      have the same noise level there.

    Raises:
      ValueError: if `path` does not reach a noise level.

    >>> from genlib import noise
    >>> like(noise.Rectified(), [1.0, 0.5, 0.0], noise.Cosine()).round(4)
    array([1. , 0.5, 0. ])
    """
    log_snr = tabulate(source, times).log_snr
    ends = tabulate(path, _ends(path))
    xp = namespace(log_snr, ends.t)
    if (
        xp is np
        and not (
            (log_snr >= ends.log_snr[0] - 1e-6) & (log_snr <= ends.log_snr[1] + 1e-6)
        ).all()
    ):
        raise ValueError(
            f"times must have log-SNRs within {ends.log_snr.tolist()} of "
            f"{type(path).__name__}; they are {log_snr.tolist()}"
        )
    finite = xp.isfinite(log_snr)
    inner = times_at(path, xp.where(finite, log_snr, 0.0))
    found = xp.where(finite, inner, xp.where(log_snr > 0, ends.t[1], ends.t[0]))
    return xp.clip(found, ends.t[1], ends.t[0])


def power(path: Path, steps: int, exponent: Scalar = 2.0) -> Any:
    """Return times t_min + (t_max - t_min) u^exponent for u from 1 to 0.

    2 is the "quadratic" grid of DDIM (arXiv:2010.02502, app. D.2), 1 is `uniform`.

    Args:
      path: the forward process.
      steps: number of steps, at least 1.
      exponent: larger values put more steps near the data.

    Returns:
      Times [steps + 1].

    Raises:
      ValueError: if `steps` is not a positive integer.

    >>> from genlib import noise
    >>> power(noise.Rectified(), 4)
    array([1.    , 0.5625, 0.25  , 0.0625, 0.    ])
    """
    check_steps(steps)
    first, last = _ends(path)
    return last + np.linspace(1.0, 0.0, steps + 1) ** exponent * (first - last)


def flow_shifted(
    path: Path,
    steps: int,
    shift: Scalar = 3.0,
    *,
    last: Scalar | None = None,
    terminal: Scalar | None = None,
) -> Any:
    """Return equal steps of time u, shifted to s u / (1 + (s - 1) u), s the shift.

    On `noise.Rectified` this takes 2 ln s off the log-SNR, as in Stable Diffusion 3
    (arXiv:2403.03206, eq. 23); `noise.Shifted` is the same change of the path itself,
    and one should do only one of them.

    Args:
      path: the forward process.
      steps: number of steps, at least 1.
      shift: larger values put more steps near the noise, for higher resolutions.
      last: the time of the last call before the shift, by default as in `uniform`.
      terminal: stretch the shifted times so that the last call is made at this one.

    Returns:
      Times [steps + 1], with both ends of the path.

    Raises:
      ValueError: if `steps` is not a positive integer, or `shift` is not positive.

    >>> from genlib import noise
    >>> flow_shifted(noise.Rectified(), 5, last=0.001).round(4)
    array([1.    , 0.9001, 0.7504, 0.501 , 0.003 , 0.    ])
    """
    check_steps(steps)
    check_positive("shift", shift)
    first, end = _ends(path)
    last = first + (end - first) * (1 - 1 / steps) if last is None else last
    xp = namespace(first, last, shift, terminal)
    u = (xp.linspace(first, last, steps) - end) / (first - end)
    u = shift * u / (1 + (shift - 1) * u)
    times = end + u * (first - end)
    if terminal is not None and steps > 1:
        times = first - (first - times) * (first - terminal) / (first - times[-1])
    return xp.concatenate([times, xp.stack([end])])


def _between(
    path: Path,
    steps: int,
    sigma_min: Scalar | None,
    sigma_max: Scalar | None,
    to_zero: bool,
    shape: Callable[[Any, Any, Any], Any],
    *settings: Scalar,
) -> Any:
    """Return times whose sigma / alpha is shape(u, low, high) for u from 1 to 0."""
    check_steps(steps)
    table = tabulate(path, _ends(path))
    xp = namespace(table.t, sigma_min, sigma_max, *settings)
    with np.errstate(over="ignore"):
        most, least = xp.exp(-0.5 * table.log_snr)
    low = xp.maximum(least, _SIGMA_MIN) if sigma_min is None else sigma_min
    high = xp.minimum(most, _SIGMA_MAX) if sigma_max is None else sigma_max
    slack = 1 + 1e-6  # settings given in float32 may round past the end
    known = is_concrete(low, high, most, least)
    if known and not (0 < low < high and least <= low * slack and high <= most * slack):
        raise ValueError(
            f"sigma_min and sigma_max must satisfy {least:g} <= sigma_min < "
            f"sigma_max <= {most:g} on {type(path).__name__}; they are {low} and {high}"
        )
    from_end = known and bool(high >= most / slack)
    to_end = known and bool(low <= least * slack)
    # VE ends at its own sigma_min: no further step leads to the data.
    append = to_zero and not to_end
    points = steps if append else steps + 1
    sigma = shape(np.linspace(1.0, 0.0, points), low, high)
    times = times_at(path, -2.0 * xp.log(sigma))
    times = [xp.clip(times, table.t[1], table.t[0])]
    # The ends of the path exactly, not to a rounding of their log-SNR.
    if from_end:
        times = [table.t[:1], times[0][1:]]
    if append:
        times = [*times, table.t[1:]]
    elif to_end:
        times = [*times[:-1], times[-1][:-1], table.t[1:]]
    return xp.concatenate(times)


def _ends(path: Path) -> Any:
    if is_concrete(path.t_max):
        return np.asarray([path.t_max, path.t_min], np.float64)
    return jnp.stack([jnp.asarray(path.t_max), jnp.asarray(path.t_min)])


def check_steps(steps: Any) -> None:
    """Raise a ValueError unless `steps` is a positive integer."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a positive integer; it is {steps!r}")
