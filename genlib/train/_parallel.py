"""One pure step on many devices: by the compiler, or with explicit sums."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from genlib import tree
from genlib.train._gradient import Sums
from genlib.train._mesh import ROWS, batch_sharding
from genlib.train._part import Metrics
from genlib.train._state import State
from genlib.train._step import Step


def jit_step(
    step: Step,
    mesh: Mesh,
    shardings: State | None = None,
    *,
    batch_shardings: Any = None,
    donate: bool = True,
) -> Any:
    """Compile a step for a mesh; the compiler adds the communication.

    The result is that of the same step on one device, random draws included. Give it a
    state that is placed (`replicate`, `init_sharded`) and `shard_batch(batch, mesh)`.

    Args:
      step: from `make_step`.
      mesh: from `make_mesh`.
      shardings: of the state, from `state_shardings`; None for a copy on every device.
      batch_shardings: pytree (or prefix) of shardings of the batch, where some leaves
        are split otherwise than by rows.
      donate: reuse the memory of the state that goes in; it is gone afterwards.

    Returns:
      The jitted step.

    >>> import jax.numpy as jnp, optax
    >>> from genlib.train import init, make_mesh, make_step, replicate, shard_batch
    >>> tx, mesh = optax.sgd(0.1), make_mesh()
    >>> loss_fn = lambda params, x, key: (jnp.sum((params - x) ** 2), x.size, {})
    >>> state = replicate(init(jax.random.key(0), jnp.zeros(()), tx), mesh)
    >>> batch = shard_batch(np.ones(jax.device_count(), np.float32), mesh)
    >>> state, metrics = jit_step(make_step(loss_fn, tx), mesh)(state, batch)
    >>> float(metrics["loss"])
    1.0
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed: Any = everywhere if shardings is None else shardings
    rows = batch_sharding(mesh) if batch_shardings is None else batch_shardings
    return jax.jit(
        _within(mesh.abstract_mesh, step),
        in_shardings=(placed, rows),
        out_shardings=(placed, everywhere),
        donate_argnums=(0,) if donate else (),
    )


def shard_map_step(step: Step, mesh: Mesh, *, donate: bool = True) -> Any:
    """Compile a step as one program for each device, which sums explicitly.

    The loss sees the rows of its device only, and its key is folded with the device's
    place, so that what it draws differs from `jit_step`; a loss whose randomness is in
    the batch gives the same step. With a `LossScale` float16 may overflow earlier, as
    the loss is scaled for the rows of a device. The state is copied to every device.

    Args:
      step: from `make_step`, or any `Step` that gives its sums to `reduce`.
      mesh: from `make_mesh`, without a "tensor" or "sequence" axis.
      donate: reuse the memory of the state that goes in; it is gone afterwards.

    Returns:
      The jitted step, for `replicate(state, mesh)` and `shard_batch(batch, mesh)`.

    Raises:
      ValueError: if the mesh has other axes than "data" and "fsdp" of a size above 1.

    >>> import jax.numpy as jnp, optax
    >>> from genlib.train import init, make_mesh, make_step, replicate, shard_batch
    >>> tx, mesh = optax.sgd(0.1), make_mesh()
    >>> loss_fn = lambda params, x, key: (jnp.sum((params - x) ** 2), x.size, {})
    >>> state = replicate(init(jax.random.key(0), jnp.zeros(()), tx), mesh)
    >>> batch = shard_batch(np.ones(jax.device_count(), np.float32), mesh)
    >>> state, metrics = shard_map_step(make_step(loss_fn, tx), mesh)(state, batch)
    >>> float(metrics["loss"])
    1.0
    """
    if any(size > 1 for axis, size in mesh.shape.items() if axis not in ROWS):
        raise ValueError(
            f"mesh must have only the axes {ROWS} above size 1; it is "
            f"{dict(mesh.shape)}"
        )
    everywhere, rows = PartitionSpec(), PartitionSpec(ROWS)
    # Without the check of what varies, the gradient of a copied parameter is that of
    # this device's rows alone; with it, it would be summed here and once more below.
    mapped = jax.shard_map(
        _summing(step, ROWS),
        mesh=mesh,
        in_specs=(everywhere, rows),
        out_specs=(everywhere, everywhere),
        check_vma=False,
    )
    donated = (0,) if donate else ()
    return jax.jit(_within(mesh.abstract_mesh, mapped), donate_argnums=donated)


def pmap_step(
    step: Step, devices: Sequence[Any] | None = None, *, donate: bool = True
) -> Any:
    """Compile a step with `jax.pmap`, for code that is built on it.

    The same program as `shard_map_step`, with the same keys. The batch is the plain one
    of this process, [B, ...]: its rows are cut among the devices here.

    Args:
      step: from `make_step`, or any `Step` that gives its sums to `reduce`.
      devices: the devices to use; all devices of all processes by default.
      donate: reuse the memory of the state that goes in; it is gone afterwards.

    Returns:
      A function `(state, batch) -> (state, metrics)`, for a state from `init`.

    Raises:
      ValueError: from the step, if a leading axis does not divide by the devices.

    >>> import jax.numpy as jnp, optax
    >>> from genlib.train import init, make_step
    >>> tx = optax.sgd(0.1)
    >>> loss_fn = lambda params, x, key: (jnp.sum((params - x) ** 2), x.size, {})
    >>> state = init(jax.random.key(0), jnp.zeros(()), tx)
    >>> batch = np.ones(jax.device_count(), np.float32)
    >>> state, metrics = pmap_step(make_step(loss_fn, tx))(state, batch)
    >>> float(metrics["loss"])
    1.0
    """
    devices = jax.devices() if devices is None else list(devices)
    here = sum(device.process_index == jax.process_index() for device in devices)
    mapped = jax.pmap(
        _summing(step, "devices"),
        axis_name="devices",
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,) if donate else (),
    )

    def cut(name: str, leaf: Any) -> Any:
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % here:
            raise ValueError(
                f"{name} must have a leading axis that divides by the {here} devices "
                f"of this process; its shape is {np.shape(leaf)}"
            )
        return leaf.reshape(here, -1, *leaf.shape[1:])

    def run(state: State, batch: Any) -> tuple[State, Metrics]:
        leaves = [cut(name, x) for name, x in tree.named(batch, "batch").items()]
        parts = jax.tree.unflatten(jax.tree.structure(batch), leaves)
        return _within(AbstractMesh((), ()), mapped)(state, parts)

    return run


def _within(mesh: AbstractMesh, step: Any) -> Any:
    """Return the step under this mesh, whatever mesh the caller has set."""

    def within(state: State, batch: Any) -> tuple[State, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh):
            return step(state, batch)

    return within


def _summing(step: Step, axes: str | tuple[str, ...]) -> Any:
    """Return the program of one device: its own key, sums over all devices."""

    def reduce(total: Sums) -> Sums:
        return jax.lax.psum(total, axes)

    def local(state: State, batch: Any) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, jax.lax.axis_index(axes))
        new, metrics = step(state._replace(key=key), batch, reduce=reduce)
        return new._replace(key=state.key), metrics

    return local
