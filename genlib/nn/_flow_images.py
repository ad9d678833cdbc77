"""Named flows of images: RealNVP and Glow."""

import functools

import numpy as np

from genlib import flows
from genlib.nn._conditioners import conv_conditioner, resnet_conditioner
from genlib.nn._flow_parts import for_shape, mixed, network


def multiscale_realnvp(
    levels: int = 2,
    width: int | None = None,
    *,
    depth: int = 3,
    univariate: flows.Univariate | None = None,
    conditioner: flows.Conditioner | None = None,
    remat: bool = False,
    unroll: int = 1,
) -> flows.Bijector:
    """Make RealNVP of images: checkerboards, squeeze, channels, split, and again.

    Each level but the last has `depth` couplings under alternating checkerboards, then
    turns squares of pixels into channels, has `depth` couplings of alternating halves
    of the channels, and leaves half of them as latents. The last has `depth + 1` under
    checkerboards. `flows.actnorm` comes before each coupling, in place of the paper's
    batch normalisation.

    Args:
        levels: number of scales.
        width: of the network, `resnet_conditioner` with eight blocks of 3 x 3
            convolutions; 64 by default.
        depth: couplings of each kind in a level.
        univariate: how variables move; `flows.affine()` by default.
        conditioner: another network.
        remat: see `flows.scan_chain`.
        unroll: see `flows.scan_chain`.

    Returns:
        A `flows.Bijector` for x `[B, H, W, C]`, with H and W divisible by
        2^(levels - 1) and larger than that, cond None or `[B, K]`. Latents are nested
        tuples (rest, b), an array with one level. Both directions are parallel.

    Raises:
        ValueError: if `levels` is not positive, both `width` and `conditioner` are
            given, and as `flows.squeeze`.

    Source: arXiv:1605.08803, sec. 3.6 and 4.1.

    >>> import jax
    >>> flow = multiscale_realnvp(levels=2)
    >>> x = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
    >>> params = jax.eval_shape(flow.init, jax.random.key(0), x)
    >>> [z.shape for z in jax.eval_shape(flow.forward, params, x)[0]]
    [(8, 16, 16, 6), (8, 16, 16, 6)]
    """
    if levels < 1:
        raise ValueError(f"levels must be positive; it is {levels}")
    make = functools.partial(resnet_conditioner, depth=8, kernel_size=3)
    own = network(make, 64, width, conditioner)
    univariate = flows.affine() if univariate is None else univariate
    kwargs = {"remat": remat, "unroll": unroll}

    def checkerboards(length: int) -> flows.Bijector:
        def layer(mask: np.ndarray) -> flows.Bijector:
            coupling = flows.masked_coupling(univariate, own, mask)
            return flows.chain(flows.actnorm(), coupling)

        def stack(height: int, width: int, channels: int) -> flows.Bijector:
            even = np.asarray(flows.checkerboard(height, width))
            masks = np.stack([even ^ bool(i % 2) for i in range(length)])
            return flows.scan_chain(layer, length, masks, **kwargs)

        return for_shape(stack)

    by_channels = flows.chain(flows.actnorm(), flows.coupling(univariate, own))
    flow = checkerboards(depth + 1)
    for _ in range(levels - 1):
        flow = flows.chain(
            checkerboards(depth),
            flows.squeeze(),
            mixed(by_channels, "reverse", depth, 0, **kwargs),
            flows.split(flow),
        )
    return flow


def glow(
    levels: int = 3,
    depth: int = 32,
    width: int | None = None,
    *,
    univariate: flows.Univariate | None = None,
    conditioner: flows.Conditioner | None = None,
    seed: int = 0,
    remat: bool = False,
    unroll: int = 1,
) -> flows.Bijector:
    """Make Glow: squeeze, steps of actnorm, 1x1 convolution and coupling, split, again.

    The 1x1 convolutions are `flows.plu_conv`, with random rotations at the start.
    Latents that are left behind are standardised by a network that sees the others, the
    learned prior, with the architecture of those in the couplings. `cond`, such as
    one-hot classes, goes to all of them.

    Args:
        levels: number of scales, L.
        depth: steps at each, K.
        width: channels of the networks, `conv_conditioner`; 512 by default.
        univariate: how variables move; `flows.affine()` by default, which is the
            identity at the start. Glow's code has `flows.affine("sigmoid")`.
        conditioner: another network, for couplings and priors.
        seed: of the rotations.
        remat: keep no insides of steps for the backward pass, see `flows.scan_chain`.
        unroll: see `flows.scan_chain`.

    Returns:
        A `flows.Bijector` for x `[B, H, W, C]`, with H and W divisible by 2^levels, and
        cond None or `[B, K]`. Latents are nested tuples (rest, b), an array with one
        level. Both directions are parallel.

    Raises:
        ValueError: if `levels` or `depth` is not positive, both `width` and
            `conditioner` are given, and as `flows.squeeze`.

    Source: arXiv:1807.03039.

    >>> import jax
    >>> flow = glow()
    >>> x = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
    >>> params = jax.eval_shape(flow.init, jax.random.key(0), x)
    >>> [z.shape for z in jax.tree.leaves(jax.eval_shape(flow.forward, params, x)[0])]
    [(8, 4, 4, 48), (8, 8, 8, 12), (8, 16, 16, 6)]
    """
    own = network(conv_conditioner, 512, width, conditioner)
    univariate = flows.affine() if univariate is None else univariate

    def step(rotation: np.ndarray) -> flows.Bijector:
        coupling = flows.coupling(univariate, own)
        return flows.chain(flows.actnorm(), flows.plu_conv(rotation), coupling)

    def level(index: int) -> flows.Bijector:
        def stack(height: int, width: int, channels: int) -> flows.Bijector:
            rows = flows.rotations(seed + index, depth, channels)
            return flows.scan_chain(step, depth, rows, remat=remat, unroll=unroll)

        return for_shape(stack)

    return flows.multi_scale([level(index) for index in range(levels)], prior=own)
