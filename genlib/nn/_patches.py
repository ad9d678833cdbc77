"""Images as sequences of flattened square patches, and back."""

import einops

from genlib.types import Array


def patchify(x: Array, patch_size: int) -> Array:
    """Cut images into flattened square patches, row by row.

    `[B, h p, w p, C] -> [B, h w, p p C]` with `p = patch_size`.

    Args:
        x: images `[B, H, W, C]`.
        patch_size: side of a patch in pixels; divides `H` and `W`.

    Returns:
        Patches `[B, (H / p) (W / p), p * p * C]`, of the dtype of `x`.

    Raises:
        ValueError: if `x` has not four axes or `patch_size` does not divide it.

    Source: arXiv:2010.11929 equation 1.

    >>> import jax.numpy as jnp
    >>> patchify(jnp.zeros((1, 4, 6, 3)), 2).shape
    (1, 6, 12)
    """
    if x.ndim != 4:
        raise ValueError(f"x must be [B, H, W, C], got shape {x.shape}")
    if patch_size < 1 or x.shape[1] % patch_size or x.shape[2] % patch_size:
        raise ValueError(
            f"patch_size must divide height and width of x, got patch_size "
            f"{patch_size} and shape {x.shape}"
        )
    return einops.rearrange(
        x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size
    )


def unpatchify(patches: Array, patch_size: int, height: int, width: int) -> Array:
    """Put patches back into images: the inverse of `patchify`.

    Args:
        patches: `[B, (H / p) (W / p), p * p * C]` with `p = patch_size`.
        patch_size: side of a patch in pixels.
        height: height `H` of the images in pixels.
        width: width `W` of the images in pixels.

    Returns:
        Images `[B, H, W, C]`, of the dtype of `patches`.

    Raises:
        ValueError: if the sizes do not belong together.

    Source: arXiv:2212.09748 section 3.2.

    >>> import jax.numpy as jnp
    >>> unpatchify(jnp.zeros((1, 6, 12)), 2, 4, 6).shape
    (1, 4, 6, 3)
    """
    p = patch_size
    fits = (
        patches.ndim == 3
        and p > 0
        and height % p == width % p == 0
        and patches.shape[1] == (height // p) * (width // p)
        and patches.shape[2] % (p * p) == 0
    )
    if not fits:
        raise ValueError(
            f"patches must be [B, (H / p) (W / p), p p C] for H = {height}, "
            f"W = {width}, p = {p}, got shape {patches.shape}"
        )
    return einops.rearrange(
        patches, "b (h w) (p q c) -> b (h p) (w q) c", h=height // p, p=p, q=p
    )
