"""Flows of images from couplings with vision transformers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from genlib import flows
from genlib.flows import Bijector, Univariate
from genlib.nn._causal import transformer_conditioner
from genlib.nn._tarflow import patch_tokens
from genlib.types import Array, compute_dtype


def jet(
    shape: tuple[int, int, int],
    *,
    patch_size: int,
    width: int = 512,
    depth: int = 32,
    layers: int = 2,
    num_heads: int = 8,
    mlp_ratio: int = 4,
    univariate: Univariate | None = None,
    seed: int = 0,
    remat: bool | str = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Bijector:
    """Build Jet: couplings of patches, conditioned by vision transformers.

        y_a = x_a,  y_b = f(x_b; transformer(x_a, cond))

    By turns a and b are halves of the channels of every patch, drawn at random once,
    and halves of the patches: a checkerboard, rows or columns. All couplings run under
    one `jax.lax.scan`, so that compile time does not grow with `depth`; the halves are
    its constants, not parameters. A new model only cuts images into patches. Both
    directions are parallel and cost one call of each transformer, on half the numbers.

    Args:
        shape: `(H, W, C)` of the images.
        patch_size: side of a patch in pixels; divides H and W.
        width: features inside the transformers, a multiple of `num_heads`.
        depth: number of couplings, even.
        layers: number of blocks of each transformer.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLPs over `width`.
        univariate: the family f; None means `flows.affine()`, whose scale is bounded.
        seed: of the halves of the channels.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: of the transformers; by default what inputs and parameters promote to.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Bijector` from images `[B, H, W, C]` to latents `[B, T, p p C]`, with
        `p = patch_size` and T patches; cond is None or vectors `[B, K]`
        (`jax.nn.one_hot` of labels).

    Raises:
        ValueError: if a size is not positive, `depth` or the number of patches is odd,
            a patch is a single number, `patch_size` does not divide the images or
            `num_heads` the width, `remat` is no policy, or when called with images of
            another shape or another cond.

    Source: arXiv:2412.15129.

    >>> import jax
    >>> model = jet((4, 4, 1), patch_size=2, width=8, layers=1, num_heads=2)
    >>> x = jax.ShapeDtypeStruct((3, 4, 4, 1), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> jax.eval_shape(model.forward, params, x)[0].shape
    (3, 4, 4)
    """
    tokens, grid, features = patch_tokens(shape, patch_size)
    if depth < 2 or depth % 2:
        raise ValueError(f"depth must be even and positive, got {depth}")
    if grid[0] * grid[1] % 2 or features < 2:
        raise ValueError(
            "patch_size must give an even number of patches of at least two numbers, "
            f"got {patch_size} for images {shape}"
        )
    network = transformer_conditioner(
        width,
        layers,
        num_heads,
        mlp_ratio=mlp_ratio,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    couple = flows.coupling(
        flows.affine() if univariate is None else univariate, network
    )

    def pair(orders: Any) -> Bijector:
        channels, places = flows.permute(orders["channels"]), _pair_up(orders["places"])
        return flows.chain(
            *(channels, couple, flows.invert(channels)),
            *(places, couple, flows.invert(places)),
        )

    orders = {
        "channels": flows.permutations(seed, depth // 2, features),
        "places": _halves(depth // 2, *grid),
    }
    return flows.chain(tokens, flows.scan_chain(pair, depth // 2, orders))


def _halves(depth: int, height: int, width: int) -> np.ndarray:
    """Return orders [depth, T] of the places of a grid: a_1, b_1, a_2, b_2, ..."""
    rows, columns = np.indices((height, width), np.int32).reshape(2, -1)
    patterns = [side % 2 for side in (rows + columns, rows, columns)]
    orders = []
    for pattern in patterns:
        if 2 * pattern.sum() == pattern.size:  # an odd side has no equal halves
            halves = [np.flatnonzero(pattern == side) for side in (0, 1)]
            orders += [np.stack(halves, 1).ravel(), np.stack(halves[::-1], 1).ravel()]
    return np.stack([orders[i % len(orders)] for i in range(depth)]).astype(np.int32)


def _pair_up(order: Any) -> Bijector:
    """Put every two tokens of an order into one: [B, T, C] -> [B, T / 2, 2 C]."""

    def still(x: Array, y: Array) -> tuple[Array, Array]:
        return y, jnp.zeros(x.shape[0], compute_dtype(x.dtype))

    def forward(params: Any, x: Array, cond: Any = None) -> tuple[Array, Array]:
        batch, length, features = x.shape
        return still(x, x[:, order].reshape(batch, length // 2, 2 * features))

    def inverse(params: Any, y: Array, cond: Any = None) -> tuple[Array, Array]:
        batch, length, features = y.shape
        x = y.reshape(batch, 2 * length, features // 2)
        return still(y, x[:, jnp.argsort(order)])

    return Bijector(lambda key, x, cond=None: {}, forward, inverse)
