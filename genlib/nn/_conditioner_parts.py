"""The modules of which conditioners are made."""

from collections.abc import Callable, Sequence

from flax import nnx
from jax.typing import DTypeLike

from genlib.nn._layers import keep_rows
from genlib.types import Array

Activation = Callable[[Array], Array]


class FirstLayer(nnx.Module):
    """Add what x and what cond say linearly, as a layer on both would, concatenated.

    So cond `[B, K]` is multiplied once, whatever the number of places in x.
    """

    def __init__(
        self,
        of_x: Callable[[Array], Array],
        cond_features: int,
        width: int,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.of_x = of_x
        self.of_cond = (
            nnx.Linear(
                cond_features,
                width,
                use_bias=False,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            if cond_features
            else None
        )

    def __call__(self, x: Array, cond: Array | None) -> Array:
        if isinstance(self.of_x, nnx.Conv) and x.ndim != 4:
            raise ValueError(f"x must be images [B, H, W, C]; its shape is {x.shape}")
        h = self.of_x(keep_rows(x))
        if self.of_cond is None:
            return h
        assert cond is not None
        if cond.ndim != 2 and cond.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"cond must be [B, K] or have the places of x {x.shape[:-1]}; its "
                f"shape is {cond.shape}"
            )
        moved = self.of_cond(cond)
        if cond.ndim == 2:
            moved = moved.reshape(-1, *(1,) * (h.ndim - 2), moved.shape[-1])
        return h + moved


class Network(nnx.Module):
    """Layers from x and cond to numbers, with an activation before the last one."""

    def __init__(
        self,
        first: FirstLayer,
        layers: Sequence[nnx.Module],
        activation: Activation,
        out: nnx.Module,
    ):
        self.first = first
        self.layers = nnx.List(layers)
        self.activation = activation
        self.out = out

    def __call__(self, x: Array, cond: Array | None) -> Array:
        h = self.first(x, cond)
        for layer in self.layers:
            h = layer(keep_rows(h))
        return self.out(self.activation(keep_rows(h)))


class Hidden(nnx.Module):
    """`layer(act(h))`."""

    def __init__(self, layer: nnx.Module, activation: Activation):
        self.activation = activation
        self.layer = layer

    def __call__(self, h: Array) -> Array:
        return self.layer(self.activation(h))


class Block(nnx.Module):
    """`h + out(act(hidden(act(norm(h)))))`."""

    def __init__(
        self,
        norm: nnx.Module,
        hidden: nnx.Module,
        out: nnx.Module,
        activation: Activation,
    ):
        self.norm = norm
        self.hidden = hidden
        self.out = out
        self.activation = activation

    def __call__(self, h: Array) -> Array:
        y = self.hidden(self.activation(self.norm(h)))
        return h + self.out(self.activation(y))
