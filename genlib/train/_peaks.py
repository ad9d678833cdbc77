"""What devices can do at most, and how much of it a step uses."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Peak(NamedTuple):
    """What one device can do at most, as JAX counts devices.

    Attributes:
      bfloat16: FLOP/s of dense matrix products with float32 sums.
      float32: FLOP/s of float32 outside of matrix units, None where no one says.
      memory: bytes of its own memory.
      bandwidth: bytes a second of that memory.
    """

    bfloat16: float
    float32: float | None
    memory: float
    bandwidth: float


# From the vendors' data sheets, without sparsity: docs.cloud.google.com/tpu/docs/v3,
# v4, v5e, v5p, v6e, tpu7x (a v3 or 7x chip is two devices); NVIDIA's data sheets of the
# A100, H100, H200, HGX B200 (an eighth), L4, and the Ada GPU architecture paper. Their
# "GB" of memory, taken as 1e9, are GiB on some: the real limit is never lower.
DEVICE_PEAKS: dict[str, Peak] = {
    "TPU v3": Peak(61.5e12, None, 16e9, 450e9),
    "TPU v4": Peak(275e12, None, 32e9, 1228e9),
    "TPU v5 lite": Peak(197e12, None, 16e9, 819e9),
    "TPU v5": Peak(459e12, None, 95e9, 2765e9),
    "TPU v6 lite": Peak(918e12, None, 32e9, 1638e9),
    "TPU7x": Peak(1153.5e12, None, 96e9, 3690e9),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 19.5e12, 40e9, 1555e9),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 19.5e12, 40e9, 1555e9),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 19.5e12, 80e9, 2039e9),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 19.5e12, 80e9, 1935e9),
    "NVIDIA H100 80GB HBM3": Peak(989.4e12, 66.9e12, 80e9, 3350e9),
    "NVIDIA H100 PCIe": Peak(756e12, 51.2e12, 80e9, 2000e9),
    "NVIDIA H200": Peak(989.4e12, 66.9e12, 141e9, 4800e9),
    "NVIDIA B200": Peak(2250e12, 75e12, 180e9, 7700e9),
    "NVIDIA L4": Peak(121e12, 30.3e12, 24e9, 300e9),
    "NVIDIA GeForce RTX 4090": Peak(165.2e12, 82.6e12, 24e9, 1008e9),
}


def device_peak(device: Any) -> Peak | None:
    """Return what a device can do, None for a kind that `DEVICE_PEAKS` does not know.

    Args:
      device: a `jax.Device`, or its `device_kind`.

    >>> device_peak("NVIDIA H200").bandwidth
    4800000000000.0
    >>> device_peak("abacus") is None
    True
    """
    return DEVICE_PEAKS.get(getattr(device, "device_kind", device))


def mfu(
    flops_per_step: float,
    seconds: float,
    devices: Sequence[Any] | None = None,
    *,
    dtype: DTypeLike = jnp.bfloat16,
) -> float:
    """Return the model FLOPs utilisation of a step.

        flops_per_step / (seconds * sum of the peaks of the devices)

    Args:
      flops_per_step: of all devices together. By convention what the model needs: count
        `flops` without `jax.checkpoint` to leave out what is computed twice.
      seconds: that a step takes.
      devices: the devices, or their kinds; `jax.devices()` by default.
      dtype: of the matrix products, bfloat16 or float32.

    Returns:
      A fraction of 1.

    Raises:
      ValueError: if `seconds` is not positive, or a peak is not known.

    >>> round(mfu(4e14, 1.0, ["NVIDIA H200"]), 3)
    0.404
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive; it is {seconds}")
    name = jnp.dtype(dtype).name
    if name not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be bfloat16 or float32; it is {name}")
    total = 0.0
    for device in jax.devices() if devices is None else devices:
        peak = getattr(device_peak(device), name, None)
        if peak is None:
            kind = getattr(device, "device_kind", device)
            raise ValueError(
                f"devices must have a known {name} peak, one of "
                f"{', '.join(DEVICE_PEAKS)} (no float32 for TPUs); one is {kind!r}"
            )
        total += peak
    return flops_per_step / (seconds * total)
