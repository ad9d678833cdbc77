"""Data parallelism: one mesh axis, a replicated state and a split batch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genlib import tree
from genlib.train._step import Step

_AXIS = "data"


def make_mesh(data: int = -1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh with one axis "data", on which batches are split.

    Args:
      data: number of devices on the axis; -1 for all.
      devices: the devices to use; all devices of all processes by default.

    Raises:
      ValueError: if `data` is not the number of devices.

    >>> make_mesh(1, devices=jax.devices()[:1]).shape["data"]
    1
    """
    devices = jax.devices() if devices is None else list(devices)
    size = len(devices) if data == -1 else data
    if size != len(devices):
        raise ValueError(
            f"data must be -1 or the number of devices, {len(devices)}; it is {data}. "
            f"To use some of them, pass devices=jax.devices()[:{data}]"
        )
    return jax.make_mesh((size,), (_AXIS,), (AxisType.Auto,), devices=devices)


def replicate(values: Any, mesh: Mesh) -> Any:
    """Copy a pytree (a state, parameters) onto every device of `mesh`.

    The result shares no buffer with `values`: donating it leaves them intact.

    >>> state = replicate({"w": jnp.ones(2)}, make_mesh())
    >>> state["w"].is_fully_replicated
    True
    """
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            # device_put refuses typed keys on the devices of other processes.
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        # device_put alone may hand the first device its old buffer.
        return jnp.copy(jax.device_put(leaf, sharding))

    return jax.tree.map(put, values)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Split a batch over the devices of `mesh` along the leading axis.

    Args:
      batch: pytree of NumPy arrays [B, ...], the rows of this process: with N processes
        the global batch has N B rows. Arrays that are on devices already are moved only
        if they must be.
      mesh: from `make_mesh`.

    Raises:
      ValueError: if a leading axis does not divide by this process's devices.

    >>> batch = shard_batch({"x": np.zeros((jax.device_count(), 3))}, make_mesh())
    >>> batch["x"].sharding.spec
    P('data',)
    """
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    local = mesh.local_mesh.size
    for name, leaf in tree.named(batch, "batch").items():
        rows = jnp.shape(leaf)[0] if jnp.ndim(leaf) else None
        shards = mesh.size if isinstance(leaf, jax.Array) else local
        if rows is None or rows % shards:
            raise ValueError(
                f"{name} must have a leading axis that divides by the {shards} devices "
                f"of the mesh; its shape is {jnp.shape(leaf)}"
            )

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, batch)


def jit_step(step: Step, mesh: Mesh, *, donate: bool = True) -> Any:
    """Compile a step for data parallelism: state replicated, batch split over "data".

    The gradients are summed by the compiler; the result is that of the same step on one
    device. Give it `replicate(state, mesh)` and `shard_batch(batch, mesh)`.

    Args:
      step: from `make_step`.
      mesh: from `make_mesh`.
      donate: reuse the memory of the state that goes in; it is gone afterwards.

    Returns:
      The jitted step.

    >>> import optax
    >>> from genlib.train import init, make_step
    >>> tx, mesh = optax.sgd(0.1), make_mesh()
    >>> loss_fn = lambda params, x, key: (jnp.sum((params - x) ** 2), x.size, {})
    >>> state = replicate(init(jax.random.key(0), jnp.zeros(()), tx), mesh)
    >>> batch = shard_batch(np.ones(jax.device_count(), np.float32), mesh)
    >>> state, metrics = jit_step(make_step(loss_fn, tx), mesh)(state, batch)
    >>> float(metrics["loss"])
    1.0
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(_AXIS))
    return jax.jit(
        step,
        in_shardings=(everywhere, split),
        out_shardings=(everywhere, everywhere),
        donate_argnums=(0,) if donate else (),
    )
