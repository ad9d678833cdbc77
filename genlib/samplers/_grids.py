"""Time grids: decreasing times from noise to data, float64 where that is possible."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.noise import DiscreteBetas, Path
from genlib.samplers._table import namespace, tabulate, times_at
from genlib.types import Scalar, is_concrete

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
    _check_steps(steps)
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
    xp = namespace(*jax.tree.leaves((path, sigma_min, sigma_max)))
    warp = xp.log, xp.exp
    return _warped(path, steps, sigma_min, sigma_max, to_zero, warp)


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
    warp = lambda s: s ** (1.0 / rho), lambda u: u**rho
    return _warped(path, steps, sigma_min, sigma_max, to_zero, warp, rho)


def leading(
    path: DiscreteBetas, steps: int, *, offset: int = 0, to_zero: bool = True
) -> np.ndarray:
    """Return the "leading" grid of `diffusers` for a discrete chain.

    Every (T // steps)-th time from 1 + offset up, where `diffusers`' timestep is t - 1.
    It does not reach T, so that sampling starts short of pure noise
    (arXiv:2305.08891, Table 2).

    Args:
      path: a chain of T steps.
      steps: number of steps, 1 to T.
      offset: added to every time, as `steps_offset`.
      to_zero: end at the data; otherwise at t = 1, as `set_alpha_to_one=False`.

    Returns:
      Integer times [steps + 1] as float64.

    Raises:
      ValueError: if `path` is not a `DiscreteBetas`, `steps` is not within 1 to T, or a
        time would be beyond T.

    >>> from genlib import noise
    >>> leading(noise.DiscreteBetas(np.full(100, 0.05)), 4)
    array([76., 51., 26.,  1.,  0.])
    """
    total = _check_chain(path, steps)
    times = np.arange(steps)[::-1] * (total // steps) + 1 + offset
    if offset < 0 or times[0] > total:
        raise ValueError(
            f"offset must be 0 to {total - (times[0] - offset)} here; it is {offset}"
        )
    return _to_data(times, to_zero)


def trailing(path: DiscreteBetas, steps: int, *, to_zero: bool = True) -> np.ndarray:
    """Return the "trailing" grid of `diffusers`, which starts at T.

    round(T - k T / steps) for k = 0..steps - 1 (arXiv:2305.08891, Table 2).

    Args:
      path: a chain of T steps.
      steps: number of steps, 1 to T.
      to_zero: end at the data; otherwise at t = 1, as `set_alpha_to_one=False`.

    Returns:
      Integer times [steps + 1] as float64.

    Raises:
      ValueError: if `path` is not a `DiscreteBetas`, or `steps` is not within 1 to T.

    >>> from genlib import noise
    >>> trailing(noise.DiscreteBetas(np.full(100, 0.05)), 4)
    array([100.,  75.,  50.,  25.,   0.])
    """
    total = _check_chain(path, steps)
    return _to_data(np.round(total - np.arange(steps) * (total / steps)), to_zero)


def linspace(path: DiscreteBetas, steps: int, *, to_zero: bool = True) -> np.ndarray:
    """Return the "linspace" grid of `diffusers`: from T to 1 and then the data.

    Args:
      path: a chain of T steps.
      steps: number of steps, 1 to T.
      to_zero: end at the data; otherwise at t = 1, as `set_alpha_to_one=False`.

    Returns:
      Integer times [steps + 1] as float64 (with `to_zero=False` one less: the grid
      already ends at 1).

    Raises:
      ValueError: if `path` is not a `DiscreteBetas`, or `steps` is not within 1 to T.

    >>> from genlib import noise
    >>> linspace(noise.DiscreteBetas(np.full(100, 0.05)), 4)
    array([100.,  67.,  34.,   1.,   0.])
    """
    total = _check_chain(path, steps)
    return _to_data(np.round(np.linspace(total, 1, steps)), to_zero)


def _warped(
    path: Path,
    steps: int,
    sigma_min: Scalar | None,
    sigma_max: Scalar | None,
    to_zero: bool,
    warp: tuple[Any, Any],
    rho: Scalar | None = None,
) -> Any:
    """Return times whose warped sigma / alpha is equally spaced."""
    _check_steps(steps)
    table = tabulate(path, _ends(path))
    xp = namespace(table.t, sigma_min, sigma_max, rho)
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
    forward, backward = warp
    sigma = backward(xp.linspace(forward(high), forward(low), points))
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


def _to_data(times: np.ndarray, to_zero: bool) -> np.ndarray:
    times = times.astype(np.float64)
    last = 0.0 if to_zero else 1.0
    return times if times[-1] == last else np.append(times, last)


def _check_chain(path: Any, steps: int) -> int:
    _check_steps(steps)
    if not isinstance(path, DiscreteBetas):
        raise ValueError(
            "path must be a noise.DiscreteBetas, which has integer times; "
            f"it is {type(path).__name__}"
        )
    if steps > path.t_max:
        raise ValueError(
            f"steps must be at most the {path.t_max} of the chain; it is {steps}"
        )
    return path.t_max


def _check_steps(steps: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a positive integer; it is {steps!r}")
