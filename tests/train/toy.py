"""A masked regression that every training test shares: small, ragged, exact."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def params() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    bias = jnp.zeros((1, 8), jnp.float32)
    return {"dense": {"b": bias, "w": draw(3, 8)}, "out": draw(8, 2)}


def batch(index: int, rows: int = 32) -> dict[str, np.ndarray]:
    """Rows that differ in size and, from one quarter to the next, in number."""
    rng = np.random.default_rng(index)
    x = rng.normal(size=(rows, 3)) * np.linspace(0.2, 2.0, rows)[:, None]
    mask = rng.uniform(size=rows) < np.array([0.9, 0.1, 0.5, 0.2])[np.arange(rows) % 4]
    mask[0] = True
    y = np.stack([np.sin(x).sum(1), np.cos(x).sum(1)], 1)
    return {name: v.astype(np.float32) for name, v in dict(x=x, y=y, mask=mask).items()}


def predict(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["dense"]["w"] + params["dense"]["b"]) @ params["out"]


def loss_fn(params: Any, batch: Any, key: Any) -> tuple[Any, Any, Any]:
    """Masked squared error, with the masked mean of |error| as aux."""
    error = predict(params, batch["x"]) - batch["y"]
    loss = (batch["mask"] * jnp.square(error).sum(1)).sum()
    weight = batch["mask"].sum()
    return loss, weight, {"abs": ((batch["mask"] * abs(error).sum(1)).sum(), weight)}


def noisy_loss_fn(params: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, Any]:
    """The same, with noise on the inputs drawn from the key."""
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    return loss_fn(params, {**batch, "x": x}, key)


def assert_identical(a: Any, b: Any) -> None:
    """Check equal structure, dtypes and bits, typed keys included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


def assert_close(a: Any, b: Any, tolerance: float = 1e-6) -> None:
    """Check equal structure, and floats within a tolerance (keys are not compared)."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def on_host(values: Any) -> Any:
    """Return arrays as NumPy, from where they are cut up without compiling anything."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), values)


def assert_placed(values: Any, shardings: Any) -> None:
    """Check that every leaf lies as its sharding says."""
    leaves = jax.tree.leaves(values), jax.tree.leaves(shardings)
    for leaf, sharding in zip(*leaves, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect the names of all tracing, lowering and compiling that happens inside."""
    events = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
