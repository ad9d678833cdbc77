"""A path evaluated on a grid of times, in float64 on the host where possible."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib.noise import Path, marginal_and_rate
from genlib.types import ArrayLike, float_array, is_concrete


class Table(NamedTuple):
    """Everything a solver may want to know of a path at its times, each [N].

    Arrays are float64 NumPy, or traced where the path or the times are. `log_snr` is
    infinite at alpha = 0 and at sigma = 0, so that the first and the last step of a
    whole grid often need a formula of their own.
    """

    t: Any
    alpha: Any
    sigma: Any
    alpha_rate: Any
    sigma_rate: Any
    log_snr: Any

    def steps(self) -> tuple["Table", "Table"]:
        """Return the table at the starts and at the ends of its steps."""
        return Table(*(c[:-1] for c in self)), Table(*(c[1:] for c in self))


def tabulate(path: Path, times: ArrayLike) -> Table:
    """Evaluate a path on a grid: marginals, their rates and log-SNR.

    Concrete paths and times are evaluated in float64, whatever the ambient precision
    and also inside a trace, so that coefficients carry no rounding error of float32.

    Args:
      path: the forward process.
      times: times of any shape.

    Returns:
      A `Table` of float64 NumPy arrays with the shape of `times`; of traced arrays in
      the ambient dtype where `path` or `times` are traced.

    >>> from genlib import noise
    >>> tabulate(noise.Rectified(), [1.0, 0.5]).alpha
    array([0. , 0.5])
    """
    return on_host(_evaluate, path, times)


def times_at(path: Path, log_snr: ArrayLike) -> Any:
    """Return the times of log-SNRs as `tabulate` would: the inverse of its `log_snr`.

    Unlike `noise.time_at` it stays in float64 on the host, also inside a trace: plans
    and grids that place times in log-SNR use it.

    Args:
      path: the forward process.
      log_snr: log(alpha^2 / sigma^2) in nats, of any shape.

    Returns:
      Times as float64 NumPy; traced where `path` or `log_snr` are.

    >>> from genlib import noise
    >>> times_at(noise.Rectified(), [0.0])
    array([0.5])
    """
    return on_host(_time_at, path, log_snr)


def on_host(function: Callable[[Path, Any], Any], path: Path, x: Any) -> Any:
    """Return `function(path, x)` in float64 NumPy if path and x are concrete."""
    if not is_concrete(path, x):
        return function(path, float_array(x))
    # The transfers are of a few numbers, once, before anything runs on the device.
    allowed = jax.transfer_guard("allow")
    with allowed, jax.ensure_compile_time_eval(), jax.enable_x64(True):
        # Arrays of their own: JAX remembers a NumPy array as it first saw it, and that
        # may have been as float32.
        x = jnp.asarray(np.array(x, np.float64))
        # One small compiled program; eager operations would be compiled one by one.
        if jax.tree_util.all_leaves([path]):  # no pytree: its settings are constants
            result = jax.jit(functools.partial(function, path))(x)
        else:
            path = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), path)
            result = _jitted(function)(path, x)
        return jax.tree.map(lambda column: np.asarray(column, np.float64), result)


@functools.cache
def _jitted(function: Callable) -> Callable:
    return jax.jit(function)


def namespace(*arrays: Any) -> ModuleType:
    """Return `numpy` if all arrays are on the host, else `jax.numpy`.

    Plans are written once against it: they then run in float64 before tracing, and in
    the ambient dtype where a setting is traced. Pass it all that the next line uses;
    results of `jax.numpy` are traced inside a trace even for concrete inputs, those of
    `tabulate` and `times_at` are not.

    >>> namespace(np.ones(2), 0.5).__name__, namespace(np.ones(2), jnp.ones(2)).__name__
    ('numpy', 'jax.numpy')
    """
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def _time_at(path: Path, log_snr: Any) -> Any:
    return path.time_at(log_snr)


def _evaluate(path: Path, t: Any) -> Table:
    (alpha, sigma), rate = marginal_and_rate(path, t)
    return Table(t, alpha, sigma, rate.alpha, rate.sigma, path.log_snr(t))
