"""Named flows of vectors: NICE, RealNVP, MAF, neural spline flows."""

import functools

from genlib import flows
from genlib.nn._conditioner_masked import masked_conditioner
from genlib.nn._conditioners import mlp_conditioner, resnet_conditioner
from genlib.nn._flow_parts import mixed, network
from genlib.types import Scalar


def nice(
    depth: int = 4,
    width: int | None = None,
    *,
    mixing: str = "reverse",
    conditioner: flows.Conditioner | None = None,
    seed: int = 0,
    remat: bool = False,
    unroll: int = 1,
) -> flows.Bijector:
    """Make NICE: additive couplings, then one trained scale for each variable.

        x_b <- x_b + network(x_a),  `depth` times;  z = (x + shift) exp(log_scale)

    The last layer is `flows.actnorm`, which starts at the scale of the data.

    Args:
        depth: number of couplings.
        width: of the network, an MLP with five hidden layers; 1000 by default.
        mixing: what comes between couplings: "reverse", "permutation" (random and
            fixed) or "plu" (`flows.plu_conv`, trained).
        conditioner: another network.
        seed: of random permutations and rotations.
        remat: see `flows.scan_chain`.
        unroll: see `flows.scan_chain`.

    Returns:
        A `flows.Bijector` for x `[B, ..., D]`, D >= 2; both directions are parallel.

    Raises:
        ValueError: for another mixing, or both `width` and `conditioner`.

    Source: arXiv:1410.8516.

    >>> import jax
    >>> model = flows.density(nice())
    >>> x = jax.ShapeDtypeStruct((8, 3), "float32")
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> jax.eval_shape(model.log_prob, params, x).shape
    (8,)
    """
    make = functools.partial(mlp_conditioner, depth=5)
    step = flows.coupling(flows.additive(), network(make, 1000, width, conditioner))
    layers = mixed(step, mixing, depth, seed, remat=remat, unroll=unroll)
    return flows.chain(layers, flows.actnorm())


def realnvp(
    depth: int = 8,
    width: int | None = None,
    *,
    bound: Scalar = 2.0,
    mixing: str = "reverse",
    conditioner: flows.Conditioner | None = None,
    seed: int = 0,
    remat: bool = False,
    unroll: int = 1,
) -> flows.Bijector:
    """Make RealNVP of vectors: affine couplings, normalised in between.

        x_b <- exp(s) x_b + b,  (b, s) = network(x_a),  |s| < bound,  `depth` times

    with `flows.actnorm` before each, in place of the paper's batch normalisation. For
    images see `multiscale_realnvp`.

    Args:
        depth: number of couplings.
        width: of the network, an MLP with two hidden layers; 64 by default.
        bound: of the log-scales, see `flows.affine`.
        mixing: see `nice`.
        conditioner: another network.
        seed: of random permutations and rotations.
        remat: see `flows.scan_chain`.
        unroll: see `flows.scan_chain`.

    Returns:
        A `flows.Bijector` for x `[B, ..., D]`, D >= 2; both directions are parallel.

    Raises:
        ValueError: as `nice`, and if `bound` is not positive.

    Source: arXiv:1605.08803.

    >>> import jax
    >>> model = flows.density(realnvp(depth=2, width=16))
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> model.sample(jax.random.key(2), model.init(jax.random.key(1), x), (5, 3)).shape
    (5, 3)
    """
    own = network(mlp_conditioner, 64, width, conditioner)
    step = flows.chain(flows.actnorm(), flows.coupling(flows.affine(bound=bound), own))
    return mixed(step, mixing, depth, seed, remat=remat, unroll=unroll)


def maf(
    depth: int = 5,
    width: int | None = None,
    *,
    bound: Scalar = 2.0,
    mixing: str = "reverse",
    conditioner: flows.Conditioner | None = None,
    seed: int = 0,
    remat: bool = False,
    unroll: int = 1,
) -> flows.Bijector:
    """Make a masked autoregressive flow, with normalisation in between.

        x_i <- exp(s_i) x_i + b_i,  (b_i, s_i) = network(x_1 ... x_{i-1}),  |s| < bound

    with `flows.actnorm` before each layer, in place of the paper's batch normalisation.
    `forward` is parallel; THE INVERSE IS SEQUENTIAL: `depth` times D calls of the
    network for D variables. An inverse autoregressive flow, fast to sample, is
    `flows.invert(maf(...))` (arXiv:1606.04934).

    Args:
        depth: number of layers.
        width: of the network, `masked_conditioner` with two hidden layers; 512 by
            default.
        bound: of the log-scales, see `flows.affine`.
        mixing: see `nice`.
        conditioner: another network; see `flows.autoregressive` on what it may see.
        seed: of random permutations and rotations.
        remat: see `flows.scan_chain`.
        unroll: see `flows.scan_chain`.

    Returns:
        A `flows.Bijector` for x `[B, ..., D]`.

    Raises:
        ValueError: as `realnvp`.

    Source: arXiv:1705.07057.

    >>> import jax
    >>> model = flows.density(maf())
    >>> x = jax.ShapeDtypeStruct((8, 3), "float32")
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> jax.eval_shape(model.log_prob, params, x).shape
    (8,)
    """
    own = network(masked_conditioner, 512, width, conditioner)
    step = flows.chain(
        flows.actnorm(), flows.autoregressive(flows.affine(bound=bound), own)
    )
    return mixed(step, mixing, depth, seed, remat=remat, unroll=unroll)


def neural_spline_flow(
    depth: int = 10,
    width: int | None = None,
    *,
    bins: int = 8,
    bound: Scalar = 3.0,
    autoregressive: bool = False,
    mixing: str = "plu",
    conditioner: flows.Conditioner | None = None,
    seed: int = 0,
    remat: bool = False,
    unroll: int = 1,
) -> flows.Bijector:
    """Make a neural spline flow: rational-quadratic splines that a network decides.

    RQ-NSF (C) has couplings, and both directions are parallel. RQ-NSF (AR) has
    autoregressive layers: its forward is parallel, and ITS INVERSE SEQUENTIAL, `depth`
    times D calls of the network for D variables.

    Args:
        depth: number of layers.
        width: of the network; 128 by default. It is `resnet_conditioner` with two
            blocks, or `masked_conditioner` with two layers if autoregressive.
        bins: of each spline.
        bound: splines act on [-bound, bound] and are the identity outside, so the data
            should be of unit scale: put `flows.actnorm()` or `flows.normalize()` first.
        autoregressive: see above.
        mixing: see `nice`. The paper's linear layers are "plu".
        conditioner: another network.
        seed: of random permutations and rotations.
        remat: see `flows.scan_chain`.
        unroll: see `flows.scan_chain`.

    Returns:
        A `flows.Bijector` for x `[B, ..., D]`, D >= 2 for couplings.

    Raises:
        ValueError: as `nice`, and as `flows.spline`.

    Source: arXiv:1906.04032.

    >>> import jax
    >>> model = flows.density(flows.chain(flows.actnorm(), neural_spline_flow()))
    >>> x = jax.ShapeDtypeStruct((8, 3), "float32")
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> jax.eval_shape(model.log_prob, params, x).shape
    (8,)
    """
    make = masked_conditioner if autoregressive else resnet_conditioner
    layer = flows.autoregressive if autoregressive else flows.coupling
    spline = flows.spline(bins, bound=bound)
    step = layer(spline, network(make, 128, width, conditioner))
    return mixed(step, mixing, depth, seed, remat=remat, unroll=unroll)
