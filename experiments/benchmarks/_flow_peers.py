"""The same coupling flow in other libraries.

| library            | what is timed                                            |
|--------------------|----------------------------------------------------------|
| `flowjax`          | `coupling_flow`, compiled                                |
| `distrax`, masked  | `MaskedCoupling` in a `Chain`, compiled                  |
| `distrax`, split   | `SplitCoupling` in a `Chain`, compiled                   |
| `zuko`             | `GeneralCouplingTransform`, eager                        |
| `nflows`           | its coupling transforms, eager                           |

Each is 8 couplings whose networks are d/2 - 64 - 64 - out with relu, affine or with
rational-quadratic splines of 8 bins on [-5, 5], as the library makes them. A network of
distrax is written by hand, as it has none.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, WIDTH, BINS, BOUND = 8, 64, 8, 5.0


class Peer(NamedTuple):
    """Hold the mean negative log-likelihood of a batch, to be called without arguments.

    value: `() -> loss`; gradient: `() -> gradients`; compile: seconds, None if eager.
    """

    value: Callable[[], Any]
    gradient: Callable[[], Any]
    compile: float | None


Library = Callable[[str, np.ndarray], tuple[Any, Any]]


def flowjax(kind: str, x: np.ndarray) -> tuple[Any, Any]:
    """Return parameters and the loss of `coupling_flow`."""
    import equinox as eqx  # pyright: ignore[reportMissingImports]
    import paramax  # pyright: ignore[reportMissingImports]
    from flowjax import bijections, distributions  # pyright: ignore[reportMissingImports]
    from flowjax.flows import coupling_flow  # pyright: ignore[reportMissingImports]

    spline = bijections.RationalQuadraticSpline(knots=BINS, interval=BOUND)
    flow = coupling_flow(
        jax.random.key(0),
        base_dist=distributions.Normal(jnp.zeros(x.shape[-1])),
        transformer=spline if kind == "spline" else None,
        flow_layers=LAYERS,
        nn_width=WIDTH,
        nn_depth=2,
    )
    params, static = eqx.partition(
        flow,
        eqx.is_inexact_array,
        is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable),
    )

    def loss(params: Any, x: Any) -> Any:
        whole = paramax.unwrap(eqx.combine(params, static))
        return -whole.log_prob(x).mean()

    return params, loss


def distrax_masked(kind: str, x: np.ndarray) -> tuple[Any, Any]:
    """Return parameters and the loss of a chain of `MaskedCoupling`."""
    return _distrax(kind, x, masked=True)


def distrax_split(kind: str, x: np.ndarray) -> tuple[Any, Any]:
    """Return parameters and the loss of a chain of `SplitCoupling`."""
    return _distrax(kind, x, masked=False)


def _distrax(kind: str, x: np.ndarray, masked: bool) -> tuple[Any, Any]:
    import distrax  # pyright: ignore[reportMissingImports]

    dimension = x.shape[-1]
    size = 3 * BINS + 1 if kind == "spline" else 2
    seen, moved = (dimension, dimension) if masked else (dimension // 2,) * 2
    mask = np.arange(dimension) % 2 == 0

    def map_of(raw: Any) -> Any:
        raw = raw.reshape(*raw.shape[:-1], moved, size)
        if kind == "spline":
            ends = dict(range_min=-BOUND, range_max=BOUND)
            spline = distrax.RationalQuadraticSpline(
                raw, **ends, boundary_slopes="identity"
            )
            return spline if masked else distrax.Block(spline, 1)
        scale = jnp.tanh(raw[..., 1] / 2) * 2
        affine = distrax.ScalarAffine(raw[..., 0], log_scale=scale)
        return affine if masked else distrax.Block(affine, 1)

    def network(params: Any) -> Any:
        def apply(h: Any) -> Any:
            for index, (w, b) in enumerate(params):
                h = h @ w + b
                h = jax.nn.relu(h) if index < len(params) - 1 else h
            return h

        return apply

    sizes = [seen, WIDTH, WIDTH, moved * size]
    draw = np.random.default_rng(0)
    params = [
        [
            (
                jnp.asarray(draw.normal(size=(a, b)) * 0.1 / np.sqrt(a), jnp.float32),
                jnp.zeros(b),
            )
            for a, b in itertools.pairwise(sizes)
        ]
        for _ in range(LAYERS)
    ]

    def loss(params: Any, x: Any) -> Any:
        layers = []
        for index, own in enumerate(params):
            if masked:
                turn = mask if index % 2 else ~mask
                layers.append(distrax.MaskedCoupling(turn, network(own), map_of))
            else:
                layers.append(
                    distrax.SplitCoupling(
                        dimension // 2, 1, network(own), map_of, swap=bool(index % 2)
                    )
                )
        base = distrax.MultivariateNormalDiag(jnp.zeros(dimension))
        flow = distrax.Transformed(base, distrax.Inverse(distrax.Chain(layers)))
        return -flow.log_prob(x).mean()

    return params, loss


def zuko(kind: str, x: np.ndarray) -> tuple[Any, Any]:
    """Return a module and the loss of zuko's couplings."""
    import torch  # pyright: ignore[reportMissingImports]
    import zuko as library  # pyright: ignore[reportMissingImports]

    dimension = x.shape[-1]
    settings: dict[str, Any] = {}
    if kind == "spline":
        settings["univariate"] = library.transforms.MonotonicRQSTransform
        settings["shapes"] = [(BINS,), (BINS,), (BINS - 1,)]
    masks = [torch.arange(dimension) % 2 == turn for turn in (0, 1)]
    flow = library.flows.Flow(
        [
            library.flows.GeneralCouplingTransform(
                dimension,
                mask=masks[index % 2],
                hidden_features=[WIDTH, WIDTH],
                **settings,
            )
            for index in range(LAYERS)
        ],
        library.flows.UnconditionalDistribution(
            library.distributions.DiagNormal,
            torch.zeros(dimension),
            torch.ones(dimension),
            buffer=True,
        ),
    )
    return flow, lambda x: -flow().log_prob(x).mean()


def nflows(kind: str, x: np.ndarray) -> tuple[Any, Any]:
    """Return a module and the loss of nflows' couplings."""
    import torch  # pyright: ignore[reportMissingImports]
    from nflows import distributions, flows, transforms  # pyright: ignore[reportMissingImports]

    dimension = x.shape[-1]

    class Network(torch.nn.Sequential):
        def __init__(self, seen: int, out: int) -> None:
            linear, relu = torch.nn.Linear, torch.nn.ReLU
            layers = [linear(seen, WIDTH), relu(), linear(WIDTH, WIDTH), relu()]
            super().__init__(*layers, linear(WIDTH, out))

        def forward(self, x: Any, context: Any = None) -> Any:
            return super().forward(x)

    def layer(index: int) -> Any:
        mask = (torch.arange(dimension) + index) % 2
        if kind == "affine":
            return transforms.AffineCouplingTransform(mask, Network)
        return transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, Network, num_bins=BINS, tails="linear", tail_bound=BOUND
        )

    whole = transforms.CompositeTransform([layer(index) for index in range(LAYERS)])
    flow = flows.Flow(whole, distributions.StandardNormal([dimension]))
    return flow, lambda x: -flow.log_prob(x).mean()


COMPILED: dict[str, Library] = {
    "flowjax": flowjax,
    "distrax, masked": distrax_masked,
    "distrax, split": distrax_split,
}
EAGER: dict[str, Library] = {"zuko": zuko, "nflows": nflows}
