"""Multistep solvers of the reverse SDE, with as much noise as one likes.

With l = log_snr / 2 and x_hat = x / alpha, sigma_hat = sigma / alpha = e^-l, they solve

    dx_hat = (1 + eta) (x_0 - x_hat) dl + sqrt(2 eta) sigma_hat dW(l),

which has the marginals of the path for every eta: 0 is the probability-flow ODE, 1 the
reverse SDE. Its linear part is exact, and x_0 is a polynomial through past predictions:

    x_s = keep x_t + alpha_s (1 + eta) int e^((1 + eta)(l - l_s)) P(l) dl + std z,
    keep = sigma_s / sigma_t e^(-eta h), std = sigma_s sqrt(1 - e^(-2 eta h)).
"""

from genlib.samplers._multistep import dpm_multistep
from genlib.samplers._sample import Solver
from genlib.types import Scalar


def dpmpp_2m_sde(
    eta: Scalar = 1.0,
    solver_type: str = "midpoint",
    *,
    lower_order_final: bool = False,
) -> Solver:
    """SDE-DPM-Solver++(2M), second order in x_0 and multistep (arXiv:2211.01095).

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t
          + alpha_s (1 - e^(-(1 + eta) h)) (x_0 + (x_0 - x_0') / (2 r))
          + sigma_s sqrt(1 - e^(-2 eta h)) z, h and r as of `dpmpp_2m`.

    Args:
      eta: 0 is `dpmpp_2m`, 1 the reverse SDE; at least 0.
      solver_type: "midpoint" as above, or "heun", exact for a line through both
        predictions.
      lower_order_final: take the last step with first order.

    Returns:
      A solver with one denoiser call a step, stochastic unless `eta` is 0.

    Raises:
      ValueError: if a concrete `eta` is negative, or `solver_type` is neither.

    >>> dpmpp_2m_sde(0.0).stochastic, dpmpp_2m_sde().stochastic
    (False, True)
    """
    return dpm_multistep(2, "x_0", solver_type, False, lower_order_final, eta)


def dpmpp_3m_sde(
    eta: Scalar = 1.0,
    solver_type: str = "heun",
    *,
    compat: bool = False,
    lower_order_final: bool = False,
) -> Solver:
    """SDE-DPM-Solver++(3M), third order in x_0 and multistep (arXiv:2211.01095).

    The step of `dpmpp_2m_sde` with the parabola through the last three predictions.
    Other libraries weigh its second difference by half of that, see `dpmpp_3m`.

    Args:
      eta: 0 is `dpmpp_3m`, 1 the reverse SDE; at least 0.
      solver_type: of the step with two predictions, see `dpmpp_2m_sde`.
      compat: use the published coefficients.
      lower_order_final: let the order fall to 2 and 1 in the last two steps.

    Returns:
      A solver with one denoiser call a step, stochastic unless `eta` is 0.

    Raises:
      ValueError: if a concrete `eta` is negative, or `solver_type` is neither
        "midpoint" nor "heun".

    >>> dpmpp_3m_sde(0.0).stochastic, dpmpp_3m_sde().stochastic
    (False, True)
    """
    return dpm_multistep(3, "x_0", solver_type, compat, lower_order_final, eta)
