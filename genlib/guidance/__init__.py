"""Guidance: denoiser -> denoiser, for any sampler and any kind of prediction.

| function                                          | convention                      |
|---------------------------------------------------|---------------------------------|
| `classifier_free(conditional, unconditional, s)`  | s = 1 is the conditional model  |
"""

from genlib.guidance._classifier_free import classifier_free

__all__ = ["classifier_free"]
