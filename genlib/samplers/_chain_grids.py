"""The time grids of discrete chains: integer times, as `diffusers` spaces them."""

from typing import Any

import numpy as np

from genlib.noise import DiscreteBetas
from genlib.samplers._grids import check_steps


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


def distilled(
    path: DiscreteBetas,
    steps: int,
    *,
    teacher_steps: int = 50,
    to_zero: bool = True,
) -> np.ndarray:
    """Return times at which a distilled model was trained, as `diffusers`' for LCM.

    The teacher's grid k T / teacher_steps, thinned evenly from its noisy end.

    Args:
      path: a chain of T steps.
      steps: number of steps, 1 to `teacher_steps`.
      teacher_steps: how many steps the model was distilled with, 1 to T.
      to_zero: end at the data; otherwise at t = 1.

    Returns:
      Integer times [steps + 1] as float64.

    Raises:
      ValueError: if `path` is not a `DiscreteBetas`, or a number of steps is out of
        range.

    >>> from genlib import noise
    >>> distilled(noise.DiscreteBetas(np.full(1000, 0.01)), 4)
    array([1000.,  760.,  500.,  260.,    0.])
    """
    total = _check_chain(path, teacher_steps)
    _check_chain(path, steps)
    if steps > teacher_steps:
        raise ValueError(
            f"steps must be at most the {teacher_steps} of teacher_steps; it is {steps}"
        )
    grid = np.arange(teacher_steps, 0, -1) * (total // teacher_steps)
    thin = np.floor(np.arange(steps) * (teacher_steps / steps)).astype(int)
    return _to_data(grid[thin], to_zero)


def _to_data(times: np.ndarray, to_zero: bool) -> np.ndarray:
    times = times.astype(np.float64)
    last = 0.0 if to_zero else 1.0
    return times if times[-1] == last else np.append(times, last)


def _check_chain(path: Any, steps: int) -> int:
    check_steps(steps)
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
