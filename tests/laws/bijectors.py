"""The registry of bijectors: each entry passes the laws of `test_bijectors`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genlib import flows, nn

DENSE = flows.Conditioner(
    init=lambda key, x, features, cond=None: _weights(key, x, features, cond),
    apply=lambda params, x, features, cond=None: _dense(params, x, cond),
)
# Of images, where each place sees the one to its left.
NEIGHBOUR = flows.Conditioner(
    init=DENSE.init,
    apply=lambda params, x, features, cond=None: _dense(
        params, jnp.roll(x, 1, axis=2), cond
    ),
)


def _weights(key, x, features, cond):
    keys = jax.random.split(key)
    params = {"x": 0.5 * jax.random.normal(keys[0], (x.shape[-1], features))}
    if cond is not None:
        params["cond"] = 0.5 * jax.random.normal(keys[1], (cond.shape[-1], features))
    return params


def _dense(params, x, cond):
    h = x @ params["x"].astype(x.dtype)
    if cond is not None:
        extra = cond.astype(x.dtype) @ params["cond"].astype(x.dtype)
        h = h + extra.reshape(len(extra), *[1] * (x.ndim - 2), extra.shape[-1])
    return jnp.tanh(h)


class Case(NamedTuple):
    """A layer, and data that it is for.

    place: normal draws [8, *shape] -> data inside the domain of the layer.
    exact: bound on |log_det - slogdet(jacfwd)| in float64.
    round_trip: bound on |inverse(forward(x)) - x| in float32.
    """

    layer: flows.Bijector
    shape: tuple[int, ...] = (4,)
    cond: int | None = None
    place: Callable = lambda draws: draws
    exact: float = 1e-9
    round_trip: float = 1e-5


MASKS = np.array([[True, False, True, False], [False, False, True, True]])


CONTRACTION = flows.Conditioner(
    init=DENSE.init,
    apply=lambda params, x, features, cond=None: _dense(
        {**params, "x": params["x"] / jnp.maximum(1, nn.spectral_bound(params["x"]))},
        x,
        cond,
    ),
)
FIELD = flows.VectorField(
    init=lambda key, x, cond=None: _weights(key, x, x.shape[-1], cond),
    apply=lambda params, x, t, cond=None: 0.5 * _dense(params, x, cond) - t * x,
)
AFFINE = flows.coupling(flows.affine(), DENSE)
ROTATIONS = flows.rotations(1, 3, 4)


def unit(draws):
    """Inside the unit interval."""
    return 1 / (1 + np.exp(-draws))


BIJECTORS = {
    "coupling": Case(flows.coupling(flows.affine(), DENSE)),
    "coupling_swap": Case(flows.coupling(flows.affine(), DENSE, split=1, swap=True)),
    "coupling_additive": Case(flows.coupling(flows.additive(), DENSE), (5,)),
    "coupling_sigmoid": Case(flows.coupling(flows.affine("sigmoid"), DENSE), cond=3),
    "coupling_image": Case(flows.coupling(flows.affine(), DENSE), (2, 2, 3), cond=2),
    "masked": Case(
        flows.masked_coupling(
            flows.affine(), DENSE, jnp.array([True, False, True, False])
        ),
        cond=2,
    ),
    "checkerboard": Case(
        flows.masked_coupling(flows.affine(), NEIGHBOUR, flows.checkerboard(2, 2)),
        (2, 2, 2),
    ),
    "scan_chain": Case(
        flows.scan_chain(
            lambda mask: flows.masked_coupling(flows.affine(), DENSE, mask), 2, MASKS
        ),
        cond=2,
    ),
    "scan_chain_remat": Case(
        flows.scan_chain(flows.coupling(flows.affine(), DENSE), 3, remat=True, unroll=2)
    ),
    "scan_chain_permutations": Case(
        flows.scan_chain(
            lambda row: flows.chain(flows.permute(row), AFFINE),
            3,
            flows.permutations(0, 3, 4),
        ),
        cond=2,
    ),
    "inverted": Case(flows.invert(flows.coupling(flows.affine(), DENSE)), cond=2),
    "actnorm": Case(flows.actnorm()),
    "actnorm_image": Case(flows.actnorm(ddof=1), (2, 2, 3)),
    "normalize": Case(flows.normalize()),
    "plu_conv": Case(flows.plu_conv()),
    "plu_conv_image": Case(flows.plu_conv(ROTATIONS[0]), (2, 2, 4)),
    "orthogonal_conv": Case(flows.orthogonal_conv(), (2, 2, 4)),
    "scan_chain_rotations": Case(
        flows.scan_chain(
            lambda row: flows.chain(flows.actnorm(), flows.plu_conv(row)), 3, ROTATIONS
        )
    ),
    "permute": Case(flows.permute(np.array([2, 0, 1, 3]))),
    "reverse": Case(flows.reverse()),
    "reverse_tokens": Case(flows.reverse(1), (4, 2)),
    "squeeze": Case(flows.squeeze(), (4, 4, 2)),
    "squeeze_space_to_depth": Case(flows.squeeze(2, "space_to_depth"), (4, 4, 1)),
    "unsqueeze": Case(flows.invert(flows.squeeze()), (2, 2, 4)),
    "reshape": Case(flows.reshape((4, 3), (2, 6)), (4, 3)),
    "split": Case(flows.split(flows.actnorm()), (5,)),
    "split_prior": Case(flows.split(AFFINE, prior=DENSE), (2, 2, 4), cond=2),
    "multi_scale": Case(
        flows.multi_scale([flows.chain(flows.actnorm(), AFFINE)] * 2, prior=DENSE),
        (4, 4, 1),
        cond=2,
    ),
    "shift_and_scale": Case(flows.shift_and_scale(np.arange(4.0), -2.0)),
    "sigmoid": Case(flows.sigmoid()),
    "logit": Case(flows.logit(), place=unit),
    "inverted_sigmoid": Case(flows.invert(flows.sigmoid()), place=unit),
    "continuous": Case(flows.continuous(FIELD, steps=64), (2,), cond=2),
    "residual": Case(flows.residual(CONTRACTION, coefficient=0.9), (2,), cond=2),
    "spline": Case(flows.coupling(flows.spline(8), DENSE), cond=2),
    "spline_plain": Case(
        flows.coupling(flows.spline(5, bound=3.0, limit=None), DENSE, swap=True)
    ),
    "circular_spline": Case(flows.coupling(flows.circular_spline(6), DENSE), cond=2),
    "sigmoidal": Case(flows.coupling(flows.sigmoidal(4), DENSE), cond=2),
    "logistic_mixture": Case(flows.coupling(flows.logistic_mixture(4), DENSE)),
    "planar": Case(flows.planar()),
    "planar_conditional": Case(flows.planar(DENSE), cond=2),
    "radial": Case(flows.radial()),
    "radial_conditional": Case(flows.radial(DENSE), cond=2),
    "maf": Case(
        flows.autoregressive(flows.affine(), nn.masked_conditioner(8, 1)), cond=2
    ),
    "iaf": Case(
        flows.invert(flows.autoregressive(flows.affine(), nn.masked_conditioner(8, 1)))
    ),
    "realnvp": Case(nn.realnvp(depth=2, width=4), cond=2),
}
