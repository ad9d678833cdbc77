"""Transformer flows of images: autoregressive over patches."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from genlib import flows
from genlib.flows import Bijector, Univariate
from genlib.nn._causal import causal_transformer_conditioner
from genlib.nn._layers import check_positive


def tarflow(
    shape: tuple[int, int, int],
    *,
    patch_size: int,
    width: int = 768,
    depth: int = 8,
    layers: int = 8,
    num_heads: int = 12,
    mlp_ratio: int = 4,
    univariate: Univariate | None = None,
    remat: bool | str = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Bijector:
    """Build TarFlow: transformers that map each patch as the patches before it say.

        y_t = f(x_t; transformer(x_1, ..., x_{t-1}, cond))

    over the T patches of an image, `depth` times, forwards and backwards by turns. All
    run under one `jax.lax.scan`: compile time does not grow with `depth`. A new model
    only cuts images into patches.

    `forward` is parallel. `inverse` is sequential: `depth` times T steps with a cache,
    each of the cost that `causal_transformer_conditioner` states.

    log_det is the sum over the image in nats, where the paper's code has the mean. The
    paper trains on images with added Gaussian noise and denoises its samples; both are
    left to the caller.

    Args:
        shape: `(H, W, C)` of the images.
        patch_size: side of a patch in pixels; divides H and W.
        width: features inside the transformers, a multiple of `num_heads`.
        depth: number of autoregressive maps.
        layers: number of blocks of each transformer.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLPs over `width`.
        univariate: the family f; None means `flows.affine()`, whose scale is bounded.
        remat: what the backward pass recomputes of each block, as of `DiT`.
        dtype: of the transformers; by default what inputs and parameters promote to.
        param_dtype: dtype of the parameters.

    Returns:
        A `flows.Bijector` from images `[B, H, W, C]` to latents `[B, T, p p C]`, with
        `p = patch_size`; cond is None or vectors `[B, K]` (`jax.nn.one_hot` of labels).

    Raises:
        ValueError: if a size is not positive, `patch_size` does not divide the images
            or `num_heads` the width, `remat` is no policy, or when called with images
            of another shape or another cond.

    Source: arXiv:2412.06329. Its 64 x 64 ImageNet model has the defaults here, with
    `patch_size` 2.

    >>> import jax
    >>> model = tarflow((4, 4, 1), patch_size=2, width=8, layers=1, num_heads=2)
    >>> x = jax.ShapeDtypeStruct((3, 4, 4, 1), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> jax.eval_shape(model.forward, params, x)[0].shape
    (3, 4, 4)
    """
    check_positive(depth=depth)
    network = causal_transformer_conditioner(
        width,
        layers,
        num_heads,
        mlp_ratio=mlp_ratio,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    univariate = flows.affine() if univariate is None else univariate
    tokens, _, _ = patch_tokens(shape, patch_size)
    backwards = flows.reverse(1)
    each = flows.chain(flows.causal(univariate, network), backwards)
    # After an odd number of turns one more restores the order.
    last = [backwards] if depth % 2 else []
    return flows.chain(tokens, flows.scan_chain(each, depth), *last)


def patch_tokens(
    shape: tuple[int, int, int], patch_size: int
) -> tuple[Bijector, tuple[int, int], int]:
    """Return the map from images to patches, the grid of these, and their size.

    Raises:
        ValueError: if `patch_size` is not positive or does not divide the images.
    """
    height, width, channels = shape
    check_positive(patch_size=patch_size)
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"patch_size must divide the height and width of the images {shape}, got "
            f"{patch_size}"
        )
    grid, features = (
        (height // patch_size, width // patch_size),
        channels * patch_size**2,
    )
    return (
        flows.chain(
            flows.squeeze(patch_size, "space_to_depth"),
            flows.reshape((*grid, features), (grid[0] * grid[1], features)),
        ),
        grid,
        features,
    )
