"""Meshes, and putting states and batches onto them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genlib import tree
from genlib.train._paths import first_match
from genlib.train._rules import Rules, axes_of, check_axes, state_shardings
from genlib.train._scale import LossScale
from genlib.train._state import State, Trainable, init
from genlib.types import Key

AXES = ("data", "fsdp", "tensor", "sequence")

# The rows of a batch are split over both: FSDP is data parallelism whose state is
# split too.
ROWS = ("data", "fsdp")


def make_mesh(
    data: int = -1,
    *,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    slices: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Make a mesh with the axes "data", "fsdp", "tensor" and "sequence", all `Auto`.

    Rows of a batch are split over "data" and "fsdp"; parameters over "fsdp", and over
    "tensor" where rules say so. Axes of size 1 cost nothing and let one set of rules
    serve every mesh. Neighbours on the later axes are near each other in the machine.

    Args:
      data: devices on the axis "data".
      fsdp: devices on the axis "fsdp".
      tensor: devices on the axis "tensor".
      sequence: devices on the axis "sequence". One of the four may be -1: what is left.
      slices: number of TPU slices, or of hosts, between which the network is slow; only
        the axis "data" crosses it. None takes the slices that the devices tell.
      devices: the devices to use; all devices of all processes by default.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or "data" does
        not divide by the number of slices.

    >>> mesh = make_mesh(devices=jax.devices()[:1])
    >>> dict(mesh.shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = _shape((data, fsdp, tensor, sequence), len(devices))
    told = len({getattr(device, "slice_index", 0) for device in devices})
    hosts = len({device.process_index for device in devices})
    slices = told if slices is None else slices
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        # On a torus an axis of the mesh may take parts of several of its own.
        grid = mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
        return Mesh(grid, AXES, axis_types=types)
    if slices not in (told, hosts) or slices < 1:
        raise ValueError(
            f"slices must be the number of slices, {told}, or of hosts, {hosts}; it is "
            f"{slices}"
        )
    if shape[0] % slices:
        raise ValueError(
            f"data must divide by the number of slices, {slices}; it is {shape[0]}"
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]),
        (slices, 1, 1, 1),
        devices,
        process_is_granule=slices != told,
        allow_split_physical_axes=True,
    )
    return Mesh(grid, AXES, axis_types=types)


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


def init_sharded(
    key: Key,
    init_params: Callable[[Key], Any],
    tx: optax.GradientTransformation | dict[str, optax.GradientTransformation],
    mesh: Mesh,
    rules: Rules = (),
    *,
    ema: bool | tuple[Any, ...] = True,
    trainable: Trainable = None,
    loss_scale: LossScale | None = None,
) -> State:
    """Make the state of a new run where it will live: no device ever holds all of it.

    With `key_run, key_params = jax.random.split(key)` the result equals
    `init(key_run, init_params(key_params), tx, ...)`, split by
    `state_shardings(state, mesh, rules)`.

    Args:
      key: typed key, scalar.
      init_params: `key -> params`, traceable (`nn.lazy` makes one of a network).
      tx: optax transformation, or a dict of them, see `make_step`.
      mesh: from `make_mesh`.
      rules: for the parameters, see `param_shardings`.
      ema: see `init`.
      trainable: see `init`.
      loss_scale: see `init`.

    Raises:
      ValueError: as `init` and `param_shardings`.

    >>> init_params = lambda key: {"w": jax.random.normal(key, (4, 2))}
    >>> key, tx = jax.random.key(0), optax.sgd(0.1)
    >>> state = init_sharded(key, init_params, tx, make_mesh())
    >>> state.params["w"].shape
    (4, 2)
    """

    def make(key: Key) -> State:
        key_run, key_params = jax.random.split(key)
        params = init_params(key_params)
        settings = {"ema": ema, "trainable": trainable, "loss_scale": loss_scale}
        return init(key_run, params, tx, **settings)

    shardings = state_shardings(jax.eval_shape(make, key), mesh, rules)
    return jax.jit(make, out_shardings=shardings)(key)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: rows over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def shard_batch(batch: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Split a batch over the devices of `mesh` along the leading axis.

    Args:
      batch: pytree of NumPy arrays [B, ...], the rows of this process: with N processes
        the global batch has N B rows. Arrays that are on devices already are moved only
        if they must be.
      mesh: from `make_mesh`.
      rules: ordered (pattern, spec) pairs, see `param_shardings`, for leaves that are
        split otherwise: `("tokens", (("data", "fsdp"), "sequence"))`. Their paths begin
        with "batch/".

    Raises:
      ValueError: if an axis does not divide by the devices that split it, or as
        `param_shardings` for the rules.

    >>> batch = shard_batch({"x": np.zeros((jax.device_count(), 3))}, make_mesh())
    >>> batch["x"].sharding.spec
    P(('data', 'fsdp'),)
    """
    leaves = tree.named(batch, "batch")
    chosen = first_match(leaves, rules, "rules")

    def put(name: str, leaf: Any) -> jax.Array:
        spec = check_axes(name, chosen.get(name, (ROWS,)), mesh)
        sharding = NamedSharding(mesh, spec)
        _check_divides(name, leaf, mesh, spec)
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    placed = [put(name, leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(batch), placed)


def _shape(sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    given: dict[str, int] = dict(zip(AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    open_axes = [axis for axis, size in given.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"sizes must be positive, at most one -1; they are {given}")
    if open_axes and count % known == 0:
        given[open_axes[0]] = count // known
    shape = tuple(given.values())
    if math.prod(shape) != count:
        raise ValueError(
            f"sizes must multiply to the number of devices, {count}; they are {given}. "
            f"To use some of them, pass devices=jax.devices()[:{known}]"
        )
    return shape


def _check_divides(name: str, leaf: Any, mesh: Mesh, spec: PartitionSpec) -> None:
    """Say which leaf, and which of its axes, cannot be split as the sharding asks."""
    shape = np.shape(leaf)
    for axis, names in enumerate(axes_of(spec)):
        places = [AXES.index(each) for each in names]
        where = np.argwhere(np.ones(mesh.devices.shape, bool))
        if not isinstance(leaf, jax.Array):  # this process has only its own rows
            mine = np.vectorize(lambda d: d.process_index == jax.process_index())
            where = np.argwhere(mine(mesh.devices))
        ways = len({tuple(place[places]) for place in where})
        if axis >= len(shape) or shape[axis] % ways:
            which = "a leading axis" if axis == 0 else f"an axis {axis}"
            raise ValueError(
                f"{name} must have {which} that divides by the {ways} devices of the "
                f"mesh that split it; its shape is {shape}"
            )
