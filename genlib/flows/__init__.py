"""Normalizing flows: layers that are invertible and say how volumes change.

A layer is a `Bijector`: pure functions `init(key, x) -> params`, `forward(params, x) ->
(y, log_det)` from data to noise, and `inverse(params, y) -> (x, log_det)` back. Where
the table says parallel, both cost the same; D calls are one of the network for each
variable. Named flows (`glow`, `maf`, ...) and networks are in `genlib.nn`. The function
of the first stochastic layer is `dequantize`.

| contract and composition        | what it is                                         |
|---------------------------------|----------------------------------------------------|
| `Bijector`, `Conditioner`       | a layer; the (init, apply) pair that feeds it      |
| `chain(*layers)`                | layers in the order of application                 |
| `scan_chain(layer, length)`     | equal layers under `lax.scan`                      |
| `permutations`, `rotations`     | random constants for `scan_chain`                  |
| `invert(bijector)`              | the two directions swapped                         |
| `log_det_like(x, elementwise)`  | log-derivatives summed to one number per example   |
| `density(bijector, base)`       | a `Density`: `log_prob`, `sample`, both            |

| layer                           | map                               | inverse        |
|---------------------------------|-----------------------------------|----------------|
| `coupling(univariate, ...)`     | y_b = f(x_b; network(x_a))        | parallel       |
| `masked_coupling(..., mask)`    | any mask, such as `checkerboard`  | parallel       |
| `autoregressive(univariate)`    | y_i = f(x_i; network(x_<i))       | D calls        |
| `causal(univariate, ...)`       | tokens; a `CausalConditioner`     | T cached steps |
| `residual(network)`             | x + g(x), g a contraction         | fixed point    |
| `continuous(field)`             | dx/dt of a `VectorField`          | the same solve |
| `planar()`                      | along one direction               | 1-D root       |
| `radial()`                      | towards or from a centre          | parallel       |
| `actnorm()`, `normalize()`      | the first batch normalised        | parallel       |
| `plu_conv(rotation)`            | 1x1 convolution R L U             | two triangles  |
| `orthogonal_conv(rotation)`     | 1x1 convolution, a rotation       | parallel       |
| `permute(order)`, `reverse()`   | variables in another order        | parallel       |
| `squeeze(factor)`, `reshape`    | pixels as channels; any shape     | parallel       |
| `split(rest)`, `multi_scale`    | half of the channels as latents   | parallel       |
| `shift_and_scale`               | constants                         | parallel       |
| `sigmoid()`, `logit(alpha)`     | onto (0, 1), and back             | parallel       |

| stochastic layer                | what it does                      | arXiv          |
|---------------------------------|-----------------------------------|----------------|
| `uniform_dequantization`        | integers spread over bins         | 1511.01844     |
| `variational_dequantization`    | noise that a flow shapes          | 1902.00275     |
| `slicing(count, decoder)`       | variables dropped, drawn again    | 2007.02731     |
| `augment(count, noise)`         | variables added, dropped again    | 2002.07101     |

| univariate                      | f, of type `Univariate`           | arXiv          |
|---------------------------------|-----------------------------------|----------------|
| `additive()`                    | x + b                             | 1410.8516      |
| `affine()`                      | exp(s) x + b, bounded s           | 1605.08803     |
| `spline(bins)`                  | rational-quadratic in an interval | 1906.04032     |
| `circular_spline(bins)`         | rational-quadratic on a circle    | 2002.02428     |
| `sigmoidal(hidden)`             | sigmoids; iterative inverse       | 1804.00779     |
| `logistic_mixture(components)`  | the same, then affine             | 1902.00275     |

| base                            | distribution of the latents, a `Base`              |
|---------------------------------|----------------------------------------------------|
| `normal()`                      | N(0, I), trained, or as `cond` says                |
| `uniform()`, `student_t(df)`    | on [0, 1]; with heavy tails                        |
| `mixture(components)`           | of Gaussians, trained                              |
"""

from genlib.flows._actnorm import actnorm, normalize
from genlib.flows._autoregressive import autoregressive
from genlib.flows._base import Base, normal, student_t, uniform
from genlib.flows._bijector import Bijector, Conditioner, invert, log_det_like
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
    "log_det_like",
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
