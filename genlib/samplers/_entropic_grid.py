"""A grid that spends its steps where the noise is still undecided about the data."""

from collections.abc import Callable
from typing import Any

import numpy as np

from genlib.noise import Path
from genlib.samplers._grids import check_steps, polyexponential
from genlib.samplers._table import namespace, tabulate, times_at

_POINTS = 2048


def entropic(
    path: Path,
    steps: int,
    mmse: Callable[[Any], Any],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
) -> Any:
    """Return times at which the entropy of x_0 given x_t falls in equal steps.

    dH(x_0 | x_t) = -(1/2) mmse dSNR (the I-MMSE relation, arXiv:cs/0412108, theorem 1),
    so that every step of the sampler decides as much as any other (arXiv:2504.13612).

    Args:
      path: the forward process.
      steps: number of steps, at least 1.
      mmse: maps log-SNRs [M] to the expected squared error of the denoiser
        E |x_0 - D(x_t)|^2, up to a factor; on NumPy arrays.
      sigma_min: smallest sigma / alpha, as in `karras`.
      sigma_max: largest sigma / alpha, as in `karras`.
      to_zero: let the last step go from sigma_min to the data end of the path.

    Returns:
      Times [steps + 1], as in `karras`.

    Raises:
      ValueError: as `karras`, or if `mmse` is not positive and finite, or the path is
        traced.

    >>> from genlib import noise
    >>> gaussian = lambda log_snr: 1 / (1 + np.exp(log_snr))  # of data N(0, I)
    >>> times = entropic(noise.EDM(), 3, gaussian, sigma_max=10.0, to_zero=False)
    >>> [round(t, 3) for t in times.tolist()]
    [10.0, 0.127, 0.016, 0.002]
    """
    check_steps(steps)
    fine = polyexponential(
        path, _POINTS, sigma_min=sigma_min, sigma_max=sigma_max, to_zero=to_zero
    )
    if namespace(fine) is not np:
        raise ValueError("path must not be traced: an entropic grid is made beforehand")
    # Whether the last step goes on to the data end.
    append = to_zero and not np.isfinite(tabulate(path, fine[-1:]).log_snr[0])
    log_snr = tabulate(path, fine[:-1] if append else fine).log_snr
    rate = np.asarray(mmse(log_snr), np.float64)
    if rate.shape != log_snr.shape or not (np.isfinite(rate) & (rate > 0)).all():
        raise ValueError("mmse must return a positive number for each log-SNR")
    rate = rate * np.exp(log_snr - log_snr.max())
    step = 0.5 * (rate[1:] + rate[:-1]) * np.diff(log_snr)
    decided = np.concatenate([[0.0], np.cumsum(step)])
    points = steps if append else steps + 1
    levels = np.interp(np.linspace(0.0, decided[-1], points), decided, log_snr)
    inner = times_at(path, levels[1:] if append else levels[1:-1])
    return np.concatenate([fine[:1], inner, fine[-1:]])
