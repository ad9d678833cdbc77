"""How far samples are apart, and how straight trajectories carry them there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.types import Array, ArrayLike, compute_dtype, concrete, float_array


def wasserstein(x: ArrayLike, y: ArrayLike, *, order: int = 2) -> Array:
    """Return the exact Wasserstein distance between two sets of as many samples.

    W_p = (min over pairings pi of mean_i |x_i - y_pi(i)|^p)^(1/p), by the assignment
    solver of SciPy in float64 on the host: seconds for a few thousand samples, and not
    under `jit`.

    Args:
      x: samples [N, ...], flattened to [N, D].
      y: samples of the same shape.
      order: the p of W_p, at least 1.

    Returns:
      A scalar >= 0, in units of the samples.

    Raises:
      ValueError: if the shapes differ, there are no samples, they are being traced, or
        `order` is less than 1.
      ImportError: without SciPy.

    >>> x = jax.random.normal(jax.random.key(0), (100, 2))
    >>> round(wasserstein(x, x[::-1] + jnp.array([[3.0, 4.0]])).item(), 4)
    5.0
    """
    _check_pair(x, y)
    if jnp.shape(x) != jnp.shape(y):
        raise ValueError(
            f"y must have as many samples as x, {jnp.shape(x)}; it is {jnp.shape(y)}"
        )
    if not order >= 1:
        raise ValueError(f"order must be at least 1; it is {order}")
    a, b = concrete(x), concrete(y)
    if a is None or b is None:
        raise ValueError("x and y must be concrete: wasserstein runs on the host")
    try:
        from scipy.optimize import linear_sum_assignment
        from scipy.spatial.distance import cdist
    except ImportError as error:
        raise ImportError("wasserstein needs SciPy: pip install scipy") from error
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    cost = cdist(a, b) ** order
    value = cost[linear_sum_assignment(cost)].mean() ** (1.0 / order)
    return jnp.asarray(value, compute_dtype(jnp.result_type(x, y)))


def mmd(x: Array, y: Array, bandwidth: ArrayLike) -> Array:
    """Return the unbiased squared maximum mean discrepancy of two sets of samples.

    E k(x, x') + E k(y, y') - 2 E k(x, y) over distinct pairs, with the Gaussian kernel
    k(a, b) = exp(-|a - b|^2 / (2 bandwidth^2)) (arXiv:0805.2368). Unbiased, hence
    negative at times where the distributions agree.

    Args:
      x: samples [N, ...], flattened to [N, D], N >= 2.
      y: samples [M, ...] of the same size, M >= 2.
      bandwidth: the width of the kernel in units of the samples, or several [K], whose
        kernels are averaged.

    Returns:
      A scalar, in [-1, 2].

    Raises:
      ValueError: if there are fewer than two samples, their sizes differ, or a
        bandwidth is not positive.

    >>> x = jnp.array([[0.0], [1.0]])
    >>> round(mmd(x, x, 1.0).item(), 4)  # e^-1/2 - 1
    -0.3935
    """
    _check_pair(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"x and y must hold at least two samples; they hold {len(x)} and {len(y)}"
        )
    widths = concrete(bandwidth)
    if widths is not None and not (widths > 0).all():
        raise ValueError(f"bandwidth must be positive; it is {bandwidth}")
    x, y = (float_array(v).reshape(len(v), -1) for v in (x, y))
    scale = -0.5 / jnp.square(jnp.atleast_1d(jnp.asarray(bandwidth, x.dtype)))

    def total(a: Array, b: Array) -> Array:
        def row(point: Array) -> Array:  # differences: |a|^2 + |b|^2 - 2ab cancels
            square = jnp.square(point[None] - b).sum(1)
            return jnp.exp(scale[:, None] * square[None]).mean(0).sum()

        return jax.lax.map(row, a, batch_size=32).sum()

    n, m = len(x), len(y)
    within_x = (total(x, x) - n) / (n * (n - 1))
    within_y = (total(y, y) - m) / (m * (m - 1))
    return within_x + within_y - 2.0 * total(x, y) / (n * m)


def straightness(
    trajectory: Array,
    times: ArrayLike,
    velocity: Callable[[Array, Array], Array] | None = None,
) -> Array:
    """Return how far each trajectory is from a straight line run at constant speed.

        mean over t of |(x_T - x_0) - T v(x_t, t)|^2,  T = times[-1] - times[0],

    which is 0 for a straight one (arXiv:2209.03003, sec. 2.2, with T = 1).

    Args:
      trajectory: x at each of the times [N + 1, B, ...].
      times: monotone times [N + 1].
      velocity: `(x, t) -> dx/dt`, averaged by the trapezoidal rule; by default the
        slope between two points of the trajectory.

    Returns:
      [B], in squared units of x.

    Raises:
      ValueError: if there are fewer than two times, they stand still or turn back, or
        there is not one x for each.

    >>> points = jnp.array([0.0, 1.0, 4.0])[:, None]
    >>> straightness(points, jnp.array([0.0, 0.5, 1.0]))
    Array([4.], dtype=float32)
    """
    trajectory, times = _check_trajectory(trajectory, times)
    line = trajectory[-1] - trajectory[0]
    return _mean_square(trajectory, times, velocity, line)


def path_energy(
    trajectory: Array,
    times: ArrayLike,
    velocity: Callable[[Array, Array], Array] | None = None,
) -> Array:
    """Return the kinetic energy of each trajectory, at least |x_T - x_0|^2.

        mean over t of |T v(x_t, t)|^2,  T = times[-1] - times[0]

    (arXiv:2302.00482, with T = 1). Without `velocity` it is the `straightness` plus
    |x_T - x_0|^2, exactly.

    Args:
      trajectory: x at each of the times [N + 1, B, ...].
      times: monotone times [N + 1].
      velocity: `(x, t) -> dx/dt`, averaged by the trapezoidal rule; by default the
        slope between two points of the trajectory.

    Returns:
      [B], in squared units of x.

    Raises:
      ValueError: as `straightness`.

    >>> points = jnp.array([0.0, 1.0, 4.0])[:, None]
    >>> path_energy(points, jnp.array([0.0, 0.5, 1.0]))
    Array([20.], dtype=float32)
    """
    trajectory, times = _check_trajectory(trajectory, times)
    return _mean_square(trajectory, times, velocity, jnp.zeros_like(trajectory[0]))


def normalised_path_energy(energy: Array, distance: ArrayLike) -> Array:
    """Return by how much trajectories take more energy than optimal transport.

        |mean(energy) - W_2^2| / W_2^2   (arXiv:2302.00482)

    Args:
      energy: `path_energy` of each trajectory [B].
      distance: `wasserstein` distance W_2 of the two distributions, positive.

    Returns:
      A scalar, 0 for optimal transport.

    Raises:
      ValueError: if a concrete `distance` is not positive.

    >>> normalised_path_energy(jnp.array([4.0, 6.0]), 2.0).item()
    0.25
    """
    value = concrete(distance)
    if value is not None and not value > 0:
        raise ValueError(f"distance must be positive; it is {distance}")
    least = jnp.square(jnp.asarray(distance))
    return jnp.abs(energy.mean() - least) / least


def _mean_square(trajectory: Array, times: Array, velocity: Any, line: Array) -> Array:
    """Return the mean over t of |line - T v|^2."""
    steps, duration = jnp.diff(times), times[-1] - times[0]
    share = steps / duration

    def square(v: Array) -> Array:
        gap = (line[None] - duration * v).reshape(*v.shape[:2], -1)
        return jnp.square(gap).sum(-1)

    if velocity is None:
        slopes = jnp.diff(trajectory, axis=0)
        return share @ square(slopes / steps.reshape(-1, *(1,) * line.ndim))
    at_node = lambda node: velocity(*node)
    values = square(jax.lax.map(at_node, (trajectory, times)))
    return share @ (0.5 * (values[1:] + values[:-1]))


def _check_trajectory(trajectory: Array, times: ArrayLike) -> tuple[Array, Array]:
    values = concrete(times)
    times = jnp.asarray(times)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(
            f"times must be a vector of at least two; its shape is {times.shape}"
        )
    if trajectory.ndim < 2 or trajectory.shape[0] != times.size:
        raise ValueError(
            f"trajectory must be [times, B, ...] with {times.size} times; "
            f"its shape is {trajectory.shape}"
        )
    if values is not None:
        steps = np.diff(values)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError(
                f"times must increase or decrease; they are {values.tolist()}"
            )
    trajectory = float_array(trajectory)
    return trajectory, times.astype(trajectory.dtype)


def _check_pair(x: ArrayLike, y: ArrayLike) -> None:
    shapes = jnp.shape(x), jnp.shape(y)
    if (
        min(map(len, shapes)) < 1
        or shapes[0][1:] != shapes[1][1:]
        or 0 in sum(shapes, ())
    ):
        raise ValueError(
            "x and y must be non-empty samples of one size, [N, ...] and [M, ...]; "
            f"their shapes are {shapes[0]} and {shapes[1]}"
        )
