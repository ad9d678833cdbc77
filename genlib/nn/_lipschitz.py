"""Networks that never stretch their input: what residual flows need."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from genlib.flows import Conditioner
from genlib.nn._conditioner_parts import Activation, FirstLayer, Hidden, Network
from genlib.nn._conditioners import conditioner
from genlib.nn._layers import ZEROS, check_positive
from genlib.types import Array, compute_dtype

# The bound is at most rank^(1 / 2^(SQUARINGS + 2)) times the norm: 1.6 % for width 64.
SQUARINGS = 6


def spectral_bound(matrices: Array) -> Array:
    """Bound the largest singular value of matrices from above, closely.

        |W| <= |(W^* W)^p|_F^(1/2p),  p = 2^6,

    by squaring, rescaled on the way. Power iteration would give a lower bound, with
    which a network may stretch after all.

    Args:
        matrices: `[..., m, n]`, real or complex.

    Returns:
        `[...]`, real, at most `min(m, n)^(1/256)` times the norm; differentiable.

    Source: arXiv:2305.16173 (Gram iteration).

    >>> bound = spectral_bound(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
    >>> round(bound.item(), 4)
    3.0
    """
    rows, columns = matrices.shape[-2:]
    multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    # Any constant will do here: it keeps the first squares within range.
    scale = jnp.abs(jax.lax.stop_gradient(matrices)).max((-2, -1), keepdims=True)
    scale = jnp.where(scale > 0, scale, 1.0)
    matrices = matrices / scale
    adjoint = jnp.swapaxes(matrices.conj(), -1, -2)
    power = (
        multiply(adjoint, matrices) if rows >= columns else multiply(matrices, adjoint)
    )
    log_scale = jnp.zeros(matrices.shape[:-2], power.real.dtype)
    # Unrolled, so that compilers can take it out of the loops that invert the network.
    for _ in range(SQUARINGS):
        norm = _frobenius(power)
        log_scale = 2 * (log_scale + jnp.log(norm))
        power = power / norm[..., None, None]
        power = multiply(power, power)
    log_bound = (log_scale + jnp.log(_frobenius(power))) / 2 ** (SQUARINGS + 1)
    present = jnp.any(power != 0, (-2, -1))
    return scale[..., 0, 0] * jnp.where(present, jnp.exp(log_bound), 0.0)


def lipschitz_conditioner(
    width: int = 64,
    depth: int = 2,
    *,
    kernel_size: int | None = None,
    activation: Activation = lambda x: jax.nn.silu(x) / 1.1,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Conditioner:
    """Map vectors or images with Lipschitz constant at most 1, for `flows.residual`.

        h_i = act(W_i h_{i-1} / max(1, |W_i|) + b_i)

    with |W| the spectral norm, bounded from above by `spectral_bound`. The last layer
    starts at zero, so that a new residual flow is the identity; the others start as
    orthogonal matrices.

    A convolution pads with zeros. Its norm is bounded by that of the periodic one on an
    image larger by `kernel_size - 1`, which contains it: one matrix for each frequency
    (arXiv:1805.10408), about H W / 2 of them, so that the bound costs as much as a few
    dozen images.

    Args:
        width: of the hidden layers.
        depth: number of hidden layers.
        kernel_size: None for vectors `[B, ..., C]` and dense layers; k for images
            `[B, H, W, C]` and k x k convolutions.
        activation: after each of them, with slopes within [-1, 1] and itself smooth,
            as the density depends on its slope: LipSwish by default, tanh will do too.
        dtype: of the computation; by default what inputs and parameters promote to.
            Rounding in bfloat16 may stretch by a percent.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Conditioner`; cond, `[B, K]` or with the places of x, is added linearly
        to the first layer and does not count.

    Raises:
        ValueError: if a size is not positive, and as `conditioner`.

    Source: arXiv:1811.00995, section 2.1; arXiv:1906.02735, section 3.3 (LipSwish).

    >>> network = lipschitz_conditioner(width=3, depth=1)
    >>> x = jnp.ones((2, 3))
    >>> params = network.init(jax.random.key(0), x, 3)
    >>> network.apply(params, x, 3).sum().item()
    0.0
    """
    check_positive(width=width, depth=depth, kernel_size=kernel_size or 1)
    kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    orthogonal = nnx.initializers.orthogonal()

    def make(inputs: int, outputs: int, cond: int, rngs: nnx.Rngs) -> nnx.Module:
        layer: Any = functools.partial(_Linear, rngs=rngs, **kwargs)
        if kernel_size is not None:
            window = (kernel_size, kernel_size)
            layer = functools.partial(_Conv, kernel_size=window, rngs=rngs, **kwargs)
        of_x = layer(inputs, width, kernel_init=orthogonal)
        first = FirstLayer(of_x, cond, width, rngs=rngs, **kwargs)
        hidden = [
            Hidden(layer(width, width, kernel_init=orthogonal), activation)
            for _ in range(depth - 1)
        ]
        return Network(
            first, hidden, activation, layer(width, outputs, kernel_init=ZEROS)
        )

    return conditioner(make)


class _Linear(nnx.Linear):
    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...]
        kernel = _shrunk(kernel, spectral_bound(_wide(kernel)))
        dtype = self.dtype or jnp.result_type(x, kernel)
        return x.astype(dtype) @ kernel.astype(dtype) + _row(self.bias, x, dtype)


class _Conv(nnx.Conv):
    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...]
        height, width = kernel.shape[:2]
        sizes = (x.shape[1] + height - 1, x.shape[2] + width - 1)
        waves = jnp.fft.rfft2(_wide(kernel), sizes, axes=(0, 1))
        kernel = _shrunk(kernel, spectral_bound(waves).max())
        dtype = self.dtype or jnp.result_type(x, kernel)
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + _row(self.bias, x, dtype)


def _wide(kernel: Array) -> Array:
    return kernel.astype(compute_dtype(kernel.dtype))


def _shrunk(kernel: Array, bound: Array) -> Array:
    return _wide(kernel) / jnp.maximum(bound, 1.0)


def _row(bias: Any, x: Array, dtype: DTypeLike) -> Array:
    return bias[...].astype(dtype).reshape(*(1,) * (x.ndim - 1), -1)


def _frobenius(matrices: Array) -> Array:
    """Return the norm of each matrix, and 1 with derivative 0 for a matrix of zeros."""
    squares = jnp.square(matrices.real) + jnp.square(matrices.imag)
    square = squares.sum((-2, -1))
    return jnp.sqrt(jnp.where(square > 0, square, 1.0))
