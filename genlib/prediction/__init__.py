"""What a network's output means.

Every target that networks are trained on is linear in (x_0, eps); with
x_t = alpha x_0 + sigma eps that makes one 2x2 system, and `convert` solves it.

| kind                          | target                               | arXiv      |
|-------------------------------|--------------------------------------|------------|
| `X0`                          | x_0                                  |            |
| `EPS`                         | eps                                  | 2006.11239 |
| `V`                           | alpha eps - sigma x_0                | 2202.00512 |
| `SCORE`                       | grad log q(x_t | x_0) = -eps / sigma | 2011.13456 |
| `VELOCITY`                    | d x_t / dt = alpha' x_0 + sigma' eps | 2210.02747 |
| `EDM(sigma_data)`             | (x_0 - c_skip x_t / alpha) / c_out   | 2206.00364 |
| `Consistency(sigma_data)`     | the same, where c_out(sigma_min) = 0 | 2303.01469 |

| function                                       | what it gives                     |
|------------------------------------------------|-----------------------------------|
| `target(path, x_0, eps, t, kind)`              | what the network should output    |
| `convert(path, value, x_t, t, source, target)` | one kind of prediction as another |
| `denoiser(predict, path, kind)`                | a `Denoiser` from a network       |
| `retime(denoise, source, target)`              | the same denoiser on another path |
| `latent_consistency(denoise)`                  | LCM's boundary on a denoiser      |
| `learned_range(path, value, x_t, s, t, kind)`  | p(x_s | x_t), variance learned    |

`KINDS` has the kinds by name and `check_kind` refuses what is none. A new kind
subclasses `Prediction` and returns a `Linear` form; see there.
"""

from genlib.prediction._consistency import latent_consistency
from genlib.prediction._convert import convert, denoiser, retime, target
from genlib.prediction._kinds import (
    EDM,
    EPS,
    KINDS,
    SCORE,
    VELOCITY,
    X0,
    Consistency,
    Linear,
    Prediction,
    V,
    check_kind,
)
from genlib.prediction._learned_range import learned_range

__all__ = [
    "EDM",
    "EPS",
    "KINDS",
    "SCORE",
    "VELOCITY",
    "X0",
    "Consistency",
    "Linear",
    "Prediction",
    "V",
    "check_kind",
    "convert",
    "denoiser",
    "latent_consistency",
    "learned_range",
    "retime",
    "target",
]
