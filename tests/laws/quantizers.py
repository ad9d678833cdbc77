"""The registry of quantizers: each entry passes the laws of `test_quantizers`."""

from typing import NamedTuple

from genlib import quantize


class Case(NamedTuple):
    """A bottleneck, and the width of its vectors."""

    quantizer: quantize.Quantizer
    features: int = 4


VQ = quantize.vq(5)
EMA = quantize.ema_vq(5, reset=0.1)

QUANTIZERS = {
    "vq": Case(VQ),
    "vq-cosine-rotate": Case(
        quantize.vq(5, metric="cosine", estimator=quantize.rotate, reset=0.1)
    ),
    "ema_vq": Case(EMA),
    "ema_vq-cosine": Case(quantize.ema_vq(5, metric="cosine")),
    "fsq": Case(quantize.fsq((8, 5, 2, 3))),
    "residual_fsq": Case(quantize.residual_fsq((5, 3, 4), 2), 3),
    "lookup_free": Case(quantize.lookup_free(4)),
    "binary_spherical": Case(quantize.binary_spherical(4)),
    "gumbel": Case(quantize.gumbel(5)),
    "simvq": Case(quantize.simvq(5)),
    "grouped": Case(quantize.grouped(EMA, 2)),
    "grouped-shared": Case(quantize.grouped(EMA, 2, shared=True)),
    "residual": Case(quantize.residual(EMA, 3)),
    "residual-shared": Case(quantize.residual(VQ, 2, shared=True)),
    "projected": Case(quantize.projected(VQ, 2)),
    "residual-of-grouped": Case(quantize.residual(quantize.grouped(EMA, 2), 2)),
}
