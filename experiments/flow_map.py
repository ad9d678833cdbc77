"""Flow maps in the experiments: networks of two times, their loss and their steps.

A config with `loss = "mean_flow(...)"` trains u(x, s, t), the mean velocity from t to
s. The solver `flow_map` steps with it from each time of the grid to the next, in one
call whatever the length; every other solver sees its velocity u(x, t, t).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from genlib import losses, nn, noise
from genlib.types import Array, Key

Loss = Callable[..., Array]


class TwoTimes(nnx.Module):
    """Embed the times (s, t), stacked as [2, B], in place of a network's one time.

    Args:
      condition: the conditioning of the network, which goes on to see t.
      rngs: random streams for the embedding of the length t - s.
    """

    def __init__(self, condition: nn.Conditioning, *, rngs: nnx.Rngs):
        self.condition = condition
        self.length = nn.TimeEmbedding(
            condition.time.out.out_features,
            time_scale=condition.time.time_scale,
            rngs=rngs,
        )

    def __call__(self, times: Array, labels: Array | None, batch: int) -> Array:
        s, t = times
        return self.condition(t, labels, batch) + self.length(t - s)


def mean_flow(power: float = 1.0, offset: float = 1e-3, share: float = 0.25) -> Loss:
    """Return the MeanFlow loss of `apply(x, [s, t])`; see `losses.mean_flow`.

    share: of the examples with s < t.
    """

    def loss(
        key: Key, apply: Any, path: noise.Path, x_0: Array, times: losses.TimeSampler
    ) -> Array:
        return losses.mean_flow(
            key,
            lambda x, s, t: apply(x, jnp.stack([s, t])),
            x_0,
            interpolant=path,
            steps=losses.random_steps(times, share),
            power=power,
            offset=offset,
        )

    return loss


def velocity(apply: Any, times: np.ndarray | None) -> Callable[[Array, Array], Array]:
    """Return u(x, s, t) as a velocity (x, t), with which Euler's method goes to s.

    s is what follows t on the grid `times`, or t itself without a grid.
    """

    def at(x: Array, t: Array) -> Array:
        s = t
        if times is not None:
            grid = jnp.asarray(times, t.dtype)
            place = jnp.argmin(jnp.abs(t[:, None] - grid[None, :-1]), axis=1)
            s = grid[1:][place]
        return apply(x, jnp.stack([s, t]))

    return at
