"""How parameters, and the state around them, are split over a mesh."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genlib import tree
from genlib.train._paths import first_match
from genlib.train._state import State

# Ordered (pattern, spec) pairs; the spec may be a plain tuple of axis names, or "fsdp".
Rules = Sequence[tuple[str, PartitionSpec | tuple[Any, ...] | str]]

# Below it a leaf is not worth a collective of its own.
_SMALLEST = 2**16


def param_shardings(params: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Say how parameters are split over a mesh.

    A rule `(pattern, spec)` holds for the leaves in whose path, such as
    "blocks/mlp/kernel", the regular expression is found; the first that does wins. A
    leaf without a rule is split over the axis "fsdp" along its longest dimension that
    divides (the last of several), and copied to every device if it has fewer than 65536
    elements or no dimension divides.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      mesh: from `make_mesh`.
      rules: ordered pairs of a pattern and a `PartitionSpec` (or a tuple) that names
        for each dimension the axis, or tuple of axes, that splits it, or None. An axis
        of size 1 splits nothing, so one list of rules serves every mesh. The word
        "fsdp" splits as without a rule, but small leaves too.

    Returns:
      Pytree of `NamedSharding`.

    Raises:
      ValueError: if a rule is the first match of no leaf, its spec names an unknown
        axis or one axis twice, or does not fit the shape of a leaf.

    >>> from genlib.train import make_mesh
    >>> rules = [("out", PartitionSpec("tensor", None))]
    >>> shardings = param_shardings({"out": jnp.ones((4, 2))}, make_mesh(), rules)
    >>> shardings["out"].spec
    P('tensor', None)
    """
    leaves = tree.named(params)
    chosen = first_match(leaves, rules, "rules")
    specs = [
        _checked(name, leaf, chosen[name], mesh)
        if name in chosen
        else _fsdp(leaf, mesh)
        for name, leaf in leaves.items()
    ]
    shardings = [NamedSharding(mesh, spec) for spec in specs]
    return jax.tree.unflatten(jax.tree.structure(params), shardings)


def state_shardings(state: State, mesh: Mesh, rules: Rules = ()) -> State:
    """Say how a state is split: averages and optimizer state as their parameters.

    A leaf of the optimizer state belongs to the parameter whose path ends its own and
    whose shape it has; others are split as a parameter without a rule would be.

    Args:
      state: a `State`, or its shapes (`jax.eval_shape`).
      mesh: from `make_mesh`.
      rules: for the parameters, see `param_shardings`.

    Returns:
      A `State` of `NamedSharding`, for `jit_step`.

    Raises:
      ValueError: as `param_shardings`.

    >>> import optax
    >>> from genlib.train import init, make_mesh
    >>> state = init(jax.random.key(0), {"w": jnp.ones((2, 8))}, optax.adam(1e-3))
    >>> rules = [("w", (None, "tensor"))]
    >>> state_shardings(state, make_mesh(), rules).opt_state[0].mu["w"].spec
    P(None, 'tensor')
    """
    params = param_shardings(state.params, mesh, rules)
    specs = {
        name: (leaf.shape, sharding)
        for (name, leaf), sharding in zip(
            tree.named(state.params).items(), jax.tree.leaves(params), strict=True
        )
    }
    everywhere: Any = NamedSharding(mesh, PartitionSpec())

    def like_params(part: Any) -> Any:
        leaves = tree.named(part)
        found = [_of_param(name, leaf, specs, mesh) for name, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(part), found)

    return State(
        step=everywhere,
        params=params,
        ema=like_params(state.ema),
        opt_state=like_params(state.opt_state),
        key=everywhere,
        loss_scale=jax.tree.map(lambda _: everywhere, state.loss_scale),
    )


def _of_param(
    name: str, leaf: Any, specs: Mapping[str, tuple[Any, NamedSharding]], mesh: Mesh
) -> NamedSharding:
    """Return the sharding of the parameter whose path is the longest end of `name`."""
    first, *rest = name.split("/")
    ends = [rest[start:] for start in range(len(rest))]
    # With an optimizer for each part of the parameters, "generator/0/mu/conv" is of
    # "generator/conv".
    for path in [[first, *rest], *([first, *end] for end in ends), *ends]:
        shape, sharding = specs.get("/".join(path), (None, None))
        if sharding is not None and shape == leaf.shape:
            return sharding
    return NamedSharding(mesh, _fsdp(leaf, mesh))


def _fsdp(leaf: Any, mesh: Mesh, smallest: int = _SMALLEST) -> PartitionSpec:
    size = mesh.shape.get("fsdp", 1)
    divides = [i for i, n in enumerate(leaf.shape) if n % size == 0]
    if size == 1 or not divides or not tree.is_float(leaf) or leaf.size < smallest:
        return PartitionSpec()
    longest = max(divides, key=lambda i: (leaf.shape[i], i))
    return PartitionSpec(*(None,) * longest, "fsdp")


def _checked(name: str, leaf: Any, spec: Any, mesh: Mesh) -> PartitionSpec:
    """Return the spec of a rule, or say why it does not fit the leaf."""
    if spec == "fsdp":
        return _fsdp(leaf, mesh, 0)
    if isinstance(spec, str):
        raise ValueError(
            f'rules must give a spec, a tuple or "fsdp"; for {name} it is {spec!r}'
        )
    spec = spec if isinstance(spec, PartitionSpec) else PartitionSpec(*spec)
    groups = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
    axes = [axis for group in groups for axis in group]
    for axis in axes:
        if axis not in mesh.shape or axes.count(axis) > 1:
            raise ValueError(
                f"rules must name axes of the mesh {tuple(mesh.shape)}, each once; the "
                f"rule for {name} is {spec}"
            )
    if len(groups) > len(leaf.shape):
        raise ValueError(
            f"rules must not name more dimensions than a leaf has; the rule for {name} "
            f"{leaf.shape} is {spec}"
        )
    for length, group in zip(leaf.shape, groups, strict=False):
        ways = int(np.prod([mesh.shape[axis] for axis in group], dtype=int))
        if length % ways:
            raise ValueError(
                f"rules must split dimensions that divide; {name} {leaf.shape} has "
                f"{length} along {group}, which are {ways} devices"
            )
    return spec
