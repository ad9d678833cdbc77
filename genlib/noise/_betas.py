"""The usual beta schedules, as float64 vectors for `DiscreteBetas`."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from genlib.types import ArrayLike


def linear_betas(
    steps: int = 1000, start: float = 1e-4, end: float = 0.02
) -> np.ndarray:
    """Return betas that grow linearly from start to end (arXiv:2006.11239, sec. 4).

    The ends are those of 1000 steps: for n steps multiply them by 1000 / n.

    Args:
      steps: how many.
      start: first beta.
      end: last beta.

    Returns:
      betas [steps], float64.

    Raises:
      ValueError: if `steps` is not positive.

    >>> linear_betas()[[0, -1]].tolist()
    [0.0001, 0.02]
    """
    return np.linspace(start, end, _checked(steps))


def scaled_linear_betas(
    steps: int = 1000, start: float = 0.00085, end: float = 0.012
) -> np.ndarray:
    """Return betas whose square root is linear, as of latent diffusion.

    The ends are those of 1000 steps (arXiv:2112.10752).

    Args:
      steps: how many.
      start: first beta.
      end: last beta.

    Returns:
      betas [steps], float64.

    Raises:
      ValueError: if `steps` is not positive.

    >>> scaled_linear_betas()[[0, -1]].round(6).tolist()
    [0.00085, 0.012]
    """
    return np.linspace(start**0.5, end**0.5, _checked(steps)) ** 2


def sigmoid_betas(
    steps: int = 1000, start: float = 1e-4, end: float = 0.02
) -> np.ndarray:
    """Return betas that rise as a sigmoid over [-6, 6] from start to end.

    As of GeoDiff (arXiv:2203.02923); the ends are those of 1000 steps.

    Args:
      steps: how many.
      start: beta towards which the low end goes.
      end: beta towards which the high end goes.

    Returns:
      betas [steps], float64.

    Raises:
      ValueError: if `steps` is not positive.

    >>> sigmoid_betas(5).round(5).tolist()
    [0.00015, 0.00104, 0.01005, 0.01906, 0.01995]
    """
    u = np.linspace(-6.0, 6.0, _checked(steps))
    return start + (end - start) / (1 + np.exp(-u))


def cosine_betas(
    steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999
) -> np.ndarray:
    """Return the betas of alpha_bar = cos^2(pi/2 (t + offset) / (1 + offset)).

    t = k / steps (arXiv:2102.09672, eq. 17).

    Args:
      steps: how many.
      offset: keeps the first betas from vanishing.
      max_beta: bound on the last ones, 1 for zero terminal SNR.

    Returns:
      betas [steps], float64.

    Raises:
      ValueError: if `steps` is not positive.

    >>> cosine_betas()[[0, -1]].round(6).tolist()
    [4.1e-05, 0.999]
    """

    def alpha_bar(t: np.ndarray) -> np.ndarray:
        # cos(pi/2 u) as the sine of 1 - u, which is exactly 0 at the end.
        return np.sin(0.5 * np.pi * (1 - t) / (1 + offset)) ** 2

    return _from_alpha_bar(alpha_bar, steps, max_beta)


def exponential_betas(
    steps: int = 1000, rate: float = 12.0, max_beta: float = 0.999
) -> np.ndarray:
    """Return the betas of alpha_bar = exp(-rate t), t = k / steps: all the same.

    Args:
      steps: how many.
      rate: -ln alpha_bar at the end.
      max_beta: bound on beta.

    Returns:
      betas [steps], float64.

    Raises:
      ValueError: if `steps` is not positive.

    >>> exponential_betas()[:2].round(6).tolist()
    [0.011928, 0.011928]
    """
    return _from_alpha_bar(lambda t: np.exp(-rate * t), steps, max_beta)


def laplace_betas(
    steps: int = 1000,
    mean: float = 0.0,
    scale: float = 0.5,
    max_beta: float = 0.999,
    *,
    compat: Literal["diffusers"] | None = None,
) -> np.ndarray:
    """Return the betas whose log-SNR is Laplace distributed over uniform t = k / steps.

    log-SNR = mean - scale sgn(1/2 - t) ln(1 - 2 |1/2 - t| + 1e-6), and
    alpha_bar = sigmoid(log-SNR) (arXiv:2407.03297): most steps are spent around `mean`.

    Args:
      steps: how many.
      mean: log-SNR in the middle, in nats.
      scale: width of the distribution, in nats.
      max_beta: bound on beta.
      compat: "diffusers" takes the root of this alpha_bar, alpha, for alpha_bar, as
        that library does.

    Returns:
      betas [steps], float64.

    Raises:
      ValueError: if `steps` is not positive or `compat` is unknown.

    >>> laplace_betas()[[0, -1]].round(6).tolist()
    [0.04186, 0.976668]
    """
    if compat not in (None, "diffusers"):
        raise ValueError(f"compat must be None or 'diffusers'; it is {compat!r}")
    power = 0.5 if compat == "diffusers" else 1.0

    def alpha_bar(t: np.ndarray) -> np.ndarray:
        from_middle = 0.5 - t
        tail = np.log(1 - 2 * np.abs(from_middle) + 1e-6)
        log_snr = mean - scale * np.copysign(1.0, from_middle) * tail
        return (1 + np.exp(-log_snr)) ** -power

    return _from_alpha_bar(alpha_bar, steps, max_beta)


def rescale_zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
    """Shift and scale alpha so that the chain ends in pure noise, alpha_T = 0.

    alpha_k <- (alpha_k - alpha_T) alpha_1 / (alpha_1 - alpha_T) (arXiv:2305.08891,
    alg. 1). Networks that predict eps cannot start there; use `prediction.V`.

    Args:
      betas: [steps], at least two.

    Returns:
      betas [steps], float64, with the same first and a last of exactly 1.

    Raises:
      ValueError: if there are fewer than two betas.

    >>> betas = rescale_zero_terminal_snr(linear_betas())
    >>> betas[[0, -1]].round(8).tolist()
    [0.0001, 1.0]
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(f"betas must be [steps >= 2]; their shape is {betas.shape}")
    alpha = np.sqrt(np.cumprod(1 - betas))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    # The first step is left alone: only the others change the ratio of alphas.
    return np.append(betas[:1], 1 - (alpha[1:] / alpha[:-1]) ** 2)


def _from_alpha_bar(
    alpha_bar: Callable[[np.ndarray], np.ndarray], steps: int, max_beta: float
) -> np.ndarray:
    values = alpha_bar(np.linspace(0.0, 1.0, _checked(steps) + 1))
    return np.minimum(1 - values[1:] / values[:-1], max_beta)


def _checked(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps must be positive; it is {steps}")
    return steps
