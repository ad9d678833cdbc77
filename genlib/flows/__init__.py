"""Normalizing flows: layers that are invertible and say how volumes change.

A layer is a `Bijector`: pure functions `init(key, x) -> params`, `forward(params, x) ->
(y, log_det)` from data to noise, and `inverse(params, y) -> (x, log_det)` back.

| contract and composition          | what it is  |
|-----------------------------------|-------------------------------------------------|
| `Bijector`, `Conditioner`         | a layer; the (init, apply) pair that feeds it  |
| `Univariate`                      | increasing functions of one variable, as pieces  |
| `chain(*layers)`                  | layers in the order of application  |
| `scan_chain(layer, length)`       | equal layers under `lax.scan`  |
| `invert(bijector)`                | the two directions swapped  |
| `density(bijector, base)`         | a `Density`: `log_prob`, `sample`, both  |

| couplings                         | y_b = f(x_b; network(x_a))             | inverse  |
|-----------------------------------|----------------------------------------|--------|
| `coupling(univariate, conditioner)` | halves of the last axis              | parallel |
| `masked_coupling(..., mask)`      | any mask, such as `checkerboard`       | parallel |
| `autoregressive(univariate, ...)` | y_i = f(x_i; network(x_<i)) | D calls |
| `causal(univariate, conditioner)` | tokens, a `CausalConditioner`          | T cached steps |

| free-form                         | the whole of x moves                   | inverse |
|-----------------------------------|----------------------------------------|---------|
| `residual(network)`               | x + g(x), g a contraction         | fixed point  |
| `continuous(field)`               | dx/dt = f(x, t), a `VectorField`  | ODE, back  |
| `planar()`, `radial()`            | along a plane; from a centre    | root; parallel |

| univariate                        | f                                      | arXiv  |
|-----------------------------------|----------------------------------------|----------|
| `additive()`                      | x + b                                  | 1410.8516  |
| `affine()`                        | exp(s) x + b, bounded s                | 1605.08803 |
| `spline(bins)`, `circular_spline` | rational-quadratic; a circle's | 1906.04032 |
| `sigmoidal(hidden)`               | sigmoids, iterative inverse   | 1804.00779 |
| `logistic_mixture(components)`    | and `affine` after them       | 1902.00275 |

| channels and order                | what it does  |
|-----------------------------------|-------------------------------------------------|
| `actnorm()`, `normalize()`        | normalised by the first batch; trained, or fixed |
| `plu_conv(rotation)`              | 1x1 convolution R L U, solved back by triangles  |
| `orthogonal_conv(rotation)`       | 1x1 convolution by a trained rotation  |
| `permute(permutation)`, `reverse` | another order  |
| `rotations`, `permutations`       | random ones, as constants of `scan_chain`  |
| `squeeze(factor)`, `reshape`      | pixels as channels; any other shape  |
| `split(rest)`, `multi_scale`      | half of the channels as latents, at every level |

| surjections                       | what they do (2007.02731)  |
|-----------------------------------|-------------------------------------------------|
| `slicing(count, decoder)`         | variables dropped, and drawn on the way back  |
| `augment(count, noise)`           | variables added, and dropped on the way back  |

| before the flow                   | what it does  |
|-----------------------------------|-------------------------------------------------|
| `shift_and_scale`, `sigmoid`,     | constants; onto (0, 1); and back, with a margin  |
| `logit(alpha)`                    | that keeps the ends finite  |
| `dequantize(key, x)`,             | integers as continuous data: a function, a layer |
| `uniform_dequantization`,         | with its contribution, and one whose noise  |
| `variational_dequantization(flow)`| is a flow itself (1902.00275)  |

| base                              | distribution of the latents  |
|-----------------------------------|-------------------------------------------------|
| `normal()`                        | N(0, I), trained, or as `cond` says  |
| `uniform()`, `student_t(df)`      | on [0, 1]; with heavy tails  |
| `mixture(components)`             | of Gaussians, trained  |
| `Base`                            | the type of all  |
"""

from genlib.flows._actnorm import actnorm, normalize
from genlib.flows._autoregressive import autoregressive
from genlib.flows._base import Base, normal, student_t, uniform
from genlib.flows._bijector import Bijector, Conditioner, invert
from genlib.flows._causal import CausalConditioner, causal
from genlib.flows._chain import chain, scan_chain
from genlib.flows._continuous import VectorField, continuous
from genlib.flows._coupling import checkerboard, coupling, masked_coupling
from genlib.flows._density import Density, density
from genlib.flows._dequantize import (
    dequantize,
    uniform_dequantization,
    variational_dequantization,
)
from genlib.flows._linear import orthogonal_conv, plu_conv, rotations
from genlib.flows._mixture import mixture
from genlib.flows._monotone import logistic_mixture, sigmoidal
from genlib.flows._permute import permutations, permute, reverse
from genlib.flows._planar import planar, radial
from genlib.flows._pointwise import logit, shift_and_scale, sigmoid
from genlib.flows._residual import residual
from genlib.flows._spline import circular_spline, spline
from genlib.flows._split import multi_scale, split
from genlib.flows._squeeze import reshape, squeeze
from genlib.flows._surjections import augment, slicing
from genlib.flows._univariate import Univariate, additive, affine

__all__ = [
    "Base",
    "Bijector",
    "CausalConditioner",
    "Conditioner",
    "Density",
    "Univariate",
    "VectorField",
    "actnorm",
    "additive",
    "affine",
    "augment",
    "autoregressive",
    "causal",
    "chain",
    "checkerboard",
    "circular_spline",
    "continuous",
    "coupling",
    "density",
    "dequantize",
    "invert",
    "logistic_mixture",
    "logit",
    "masked_coupling",
    "mixture",
    "multi_scale",
    "normal",
    "normalize",
    "orthogonal_conv",
    "permutations",
    "permute",
    "planar",
    "plu_conv",
    "radial",
    "reshape",
    "residual",
    "reverse",
    "rotations",
    "scan_chain",
    "shift_and_scale",
    "sigmoid",
    "sigmoidal",
    "slicing",
    "spline",
    "split",
    "squeeze",
    "student_t",
    "uniform",
    "uniform_dequantization",
    "variational_dequantization",
]
