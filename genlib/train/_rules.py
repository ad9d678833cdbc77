"""How parameters, and the state around them, are split over a mesh."""

from collections.abc import Callable, Mapping, Sequence
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
    float leaf without a rule is split over the axis "fsdp" along its longest dimension
    that divides (the last of several), and copied to every device if it has fewer than
    65536 elements or no dimension divides. Other leaves are copied.

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

    >>> import jax.numpy as jnp
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

    What the optimizer keeps of every parameter, such as moments, lies with it. Where it
    keeps them of some only, a leaf belongs to the parameter whose path ends its own and
    whose shape it has. Others are split as a parameter without a rule would be.

    Args:
      state: a `State`, or its shapes (`jax.eval_shape`).
      mesh: from `make_mesh`.
      rules: for the parameters, see `param_shardings`.

    Returns:
      A `State` of `NamedSharding`, for `jit_step`.

    Raises:
      ValueError: as `param_shardings`.

    >>> import jax.numpy as jnp, optax
    >>> from genlib.train import init, make_mesh
    >>> state = init(jax.random.key(0), {"w": jnp.ones((2, 8))}, optax.adam(1e-3))
    >>> rules = [("w", (None, "tensor"))]
    >>> state_shardings(state, make_mesh(), rules).opt_state[0].mu["w"].spec
    P(None, 'tensor')
    """
    params = param_shardings(state.params, mesh, rules)
    everywhere: Any = NamedSharding(mesh, PartitionSpec())
    specs = _by_path(state.params, params)
    ends = lambda average: _like(average, lambda path: [path], specs, mesh)
    averages = state.ema
    return State(
        step=everywhere,
        params=params,
        ema=tuple(map(ends, averages)) if _several(state) else ends(averages),
        opt_state=_optimizer(state.opt_state, state.params, params, mesh),
        key=everywhere,
        loss_scale=jax.tree.map(lambda _: everywhere, state.loss_scale),
    )


def _several(state: State) -> bool:
    """Tell whether the state holds a tuple of averages."""
    whole = jax.tree.structure(state.params)
    alone = isinstance(state.params, tuple) and whole == jax.tree.structure(state.ema)
    return type(state.ema) is tuple and not alone


def _optimizer(opt_state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Return shardings of what an optimizer keeps, or of one for each part."""
    if type(opt_state) is dict and isinstance(params, Mapping):  # as `make_step` has it
        return {
            name: _optimizer(each, params[name], shardings[name], mesh)
            for name, each in opt_state.items()
        }
    specs, whole = _by_path(params, shardings), jax.tree.structure(params)
    floats = jax.tree.structure(tree.split_floats(params)[0])

    def of_params(node: Any) -> bool:
        return jax.tree.structure(node) in (whole, floats)

    def place(path: Any, node: Any) -> Any:
        if of_params(node):  # a moment of each parameter
            return _like(node, lambda name: [name], specs, mesh)
        # A moment of some parameters only (others are frozen or masked), or neither.
        keys = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        ends = ["/".join(keys[start:]) for start in range(len(keys))]
        return _like(node, lambda _: ends, specs, mesh)

    return jax.tree_util.tree_map_with_path(place, opt_state, is_leaf=of_params)


def _by_path(params: Any, shardings: Any) -> dict[str, tuple[Any, NamedSharding]]:
    """Return shape and sharding of every parameter under its path."""
    named = tree.named(params)
    pairs = zip(named.items(), jax.tree.leaves(shardings), strict=True)
    return {name: (leaf.shape, sharding) for (name, leaf), sharding in pairs}


def _like(
    values: Any,
    candidates: Callable[[str], list[str]],
    specs: Mapping[str, tuple[Any, NamedSharding]],
    mesh: Mesh,
) -> Any:
    """Place leaves as the first parameter of these paths that has their shape."""

    def place(path: str, leaf: Any) -> NamedSharding:
        for candidate in candidates(path):
            shape, sharding = specs.get(candidate, (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, _fsdp(leaf, mesh))

    placed = [place(path, leaf) for path, leaf in tree.named(values).items()]
    return jax.tree.unflatten(jax.tree.structure(values), placed)


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
    if not isinstance(spec, (PartitionSpec, tuple, list)):
        raise ValueError(
            f'rules must give a spec, a tuple or "fsdp"; for {name} it is {spec!r}'
        )
    spec = check_axes(name, spec, mesh)
    groups = axes_of(spec)
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


def axes_of(spec: PartitionSpec) -> list[tuple[str, ...]]:
    """Return the axes that split each dimension."""
    return [(axes,) if isinstance(axes, str) else axes or () for axes in spec]


def check_axes(name: str, spec: Any, mesh: Mesh) -> PartitionSpec:
    """Return the spec of a rule if it names axes of the mesh, each once."""
    spec = spec if isinstance(spec, PartitionSpec) else PartitionSpec(*spec)
    axes = [axis for group in axes_of(spec) for axis in group]
    for axis in axes:
        if axis not in mesh.shape or axes.count(axis) > 1:
            raise ValueError(
                f"rules must name axes of the mesh {tuple(mesh.shape)}, each once; the "
                f"rule for {name} is {spec}"
            )
    return spec
