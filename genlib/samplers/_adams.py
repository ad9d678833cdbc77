"""Adams-Bashforth methods: on eps (DEIS, LMS), and on dx/dt.

d(x / alpha) / d rho = eps with rho = sigma / alpha: a polynomial through past values of
eps can be integrated over rho exactly, in whatever variable it is a polynomial.
"""

from typing import Any

from genlib.noise import Path
from genlib.samplers._multistep import (
    History,
    amendments,
    eps_lift,
    exponential_weights,
    highest_order,
    history,
    interpolation_weights,
    lower_at_the_end,
    multistep,
    multistep_rows,
)
from genlib.samplers._runge_kutta import velocity_rows
from genlib.samplers._sample import Rows, Solver
from genlib.samplers._table import Table, namespace, tabulate


def deis(
    order: int = 3,
    variable: str = "log_rho",
    *,
    compat: bool = False,
    lower_order_final: bool = False,
) -> Solver:
    """Diffusion exponential integrator sampler, "tAB-DEIS" (arXiv:2204.13902, eq. 14).

    x_s = (alpha_s / alpha_t) x_t + alpha_s int P d rho, rho = sigma / alpha, for the
    polynomial P through the last `order` values of eps.

    Args:
      order: 1 (DDIM) to 4; the first steps have lower orders. From order 3 on the
        second value of eps corrects the first step, whose error is the largest.
      variable: what P is a polynomial in: "log_rho" (minus half the log-SNR, as
        `diffusers`), "rho" (`lms`), or "t", the path's own time.
      compat: leave the first step as it is, as other libraries do.
      lower_order_final: let the order fall towards the last step, which has order 1.

    Returns:
      A deterministic solver with one denoiser call a step.

    Raises:
      ValueError: if `order` or `variable` is none of these.

    >>> deis(2).stochastic
    False
    """
    if variable not in ("log_rho", "rho", "t"):
        raise ValueError(
            f"variable must be 'log_rho', 'rho' or 't'; it is {variable!r}"
        )
    _check_order(order)

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times)
        past = history(_variable(table, variable), order)
        if lower_order_final:
            past = lower_at_the_end(past)
        if variable == "log_rho":
            weigh = lambda past, k: exponential_weights(table, past, k, "eps")
        else:
            weigh = lambda past, k: _rho_weights(path, table, past, k, variable)
        weights = [weigh(past, k) for k in range(2, order + 1)]
        rows = multistep_rows(table, highest_order(past, weights), "eps")
        if order < 3 or compat:
            return rows
        return rows | {"amend": amendments(past, eps_lift(table), weigh)}

    return multistep(plan, order, "eps")


def lms(order: int = 4) -> Solver:
    """Linear multistep method in sigma / alpha: k-diffusion's LMS, "rhoAB-DEIS".

    Adams-Bashforth for d(x / alpha) / d(sigma / alpha) = eps, with the coefficients of
    unequal steps: `deis(order, "rho", compat=True)` (arXiv:2204.13902).

    Args:
      order: 1 to 4; the first steps have lower orders.

    Returns:
      A deterministic solver with one denoiser call a step.

    Raises:
      ValueError: if `order` is none of these.

    >>> lms().stochastic
    False
    """
    return deis(order, "rho", compat=True)


def adams_bashforth(order: int = 2) -> Solver:
    """Adams-Bashforth for dx/dt in the path's own time, with coefficients of its grid.

    x_s = x_t + int P dt for the polynomial P through the last `order` values of dx/dt.
    On `noise.Rectified` this extrapolates flow matching's velocity, on `noise.EDM` it
    is `lms` (there dx/dt is eps).

    Args:
      order: 1 (Euler) to 4; the first steps have lower orders.

    Returns:
      A deterministic solver with one denoiser call a step.

    Raises:
      ValueError: if `order` is none of these, or the path has infinite rates at a time
        of the grid but the last.

    >>> adams_bashforth(3).stochastic
    False
    """
    _check_order(order)

    def plan(path: Path, times: Any) -> Rows:
        table = tabulate(path, times[:-1])
        drift, pull = velocity_rows(path, table)
        past = history(times, order)
        flat = lambda u: namespace(u).ones_like(u)
        weigh = lambda k: interpolation_weights(
            past.value[:, :k], times[:-1], times[1:], flat
        )
        step_size = times[1:] - times[:-1]
        weights = [weigh(k)[:, 1:] for k in range(2, order + 1)]
        return {
            "t": table.t,
            "keep": 1.0 + step_size * drift,
            "add": step_size * pull,
            "of_x": drift,
            "of_x_0": pull,
            "weights": highest_order(past, weights),
        }

    return multistep(plan, order, "velocity")


def _rho_weights(
    path: Path, table: Table, past: History, order: int, variable: str
) -> Any:
    """Return the weights [N, order - 1] exact for a polynomial in rho or in t."""
    xp = namespace(past.value)
    nodes = past.value[:, :order]
    end = xp.where(past.usable[:, 0], _variable(table, variable)[1:], 0.0)

    def slope(u: Any) -> Any:
        """Return alpha_s d rho / du at points u."""
        if variable == "rho":
            return table.alpha[1:, None] * xp.ones_like(u)
        # Where a row is not used u may be anywhere.
        usable = past.usable[:, :1]
        at = tabulate(path, xp.where(usable, u, table.t[-1]))
        rate = at.sigma_rate - at.sigma * at.alpha_rate / at.alpha
        return xp.where(usable, table.alpha[1:, None] * rate / at.alpha, 0.0)

    return interpolation_weights(nodes, nodes[:, 0], end, slope)[:, 1:]


def _variable(table: Table, variable: str) -> Any:
    """Return what the polynomials are in; infinite where it is of no use."""
    xp = namespace(table.alpha)
    if variable == "log_rho":
        return 0.5 * table.log_snr
    has_signal = table.alpha > 0
    if variable == "t":
        return xp.where(has_signal, table.t, xp.inf)
    rho = table.sigma / xp.where(has_signal, table.alpha, 1.0)
    return xp.where(has_signal, rho, xp.inf)


def _check_order(order: int) -> None:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4; it is {order!r}")
