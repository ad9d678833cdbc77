"""Any Flax network as a plain dict of parameters and a pure function.

Optimisers, EMAs, checkpoints and sharding rules then see nothing of Flax, and `jax.jit`
of a pure function over a dict has none of the per-call cost of `nnx.jit`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, linen, nnx

from genlib.types import Array, Key

Params = dict[str, Any]


def from_nnx(module: nnx.Module) -> tuple[Params, Callable[..., Any]]:
    """Turn an NNX module into parameters and a pure function.

    `apply(params, *args, **kwargs)` equals `module(*args, **kwargs)` with the
    parameters replaced by `params`; it works under `jit`, `grad` and `vmap`.

    Args:
        module: the module. It is not changed, and its arrays are copied, so that it
            stays usable after `params` have been donated to a train step.

    Returns:
        `params`, a nested dict with string keys of all `nnx.Param` values, and `apply`.
        Everything else in the module (other variables, random streams) is closed over
        as it is now.

    Raises:
        ValueError: from `apply`, if the call updates the module (BatchNorm statistics
            in training mode, a random stream that is advanced): a pure function would
            lose the update. Call `module.eval()` first, or use layers without state.
            Also if `params` have another structure.

    Source: https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/graph.html

    >>> params, apply = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> apply(params, jnp.zeros((4, 2))).shape
    (4, 3)
    """
    graphdef, state, rest = nnx.split(module, nnx.Param, ...)
    values = nnx.to_pure_dict(state)
    # Lists of modules have integer names, which checkpoint formats do not keep.
    params = _string_keys(jax.tree.map(jnp.copy, values))
    return params, _pure(graphdef, values, nnx.to_pure_dict(rest))


def lazy(
    make: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[Key], Params], Callable[..., Any]]:
    """Turn the making of an NNX module into a pure function of a key.

    `init(key)` equals the `params` of `from_nnx(make(nnx.Rngs(key)))`, and nothing is
    computed before it is called: under `jax.eval_shape` it gives shapes only, and
    `train.init_sharded` makes parameters that no single device could hold.

    Args:
        make: `rngs -> module`.

    Returns:
        `init`, `key -> params`, and `apply` as of `from_nnx`. Variables that are not
        parameters are made once, from the key 0.

    Raises:
        ValueError: from `apply`, as `from_nnx`.

    Source: https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/graph.html

    >>> init, apply = lazy(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> jax.eval_shape(init, jax.random.key(0))["kernel"].shape
    (2, 3)
    """

    def init(key: Key) -> Params:
        _, state, _ = nnx.split(make(_rngs(key)), nnx.Param, ...)
        return _string_keys(nnx.to_pure_dict(state))

    def constants() -> Any:
        _, _, rest = nnx.split(make(_rngs(jax.random.key(0))), nnx.Param, ...)
        return nnx.to_pure_dict(rest)

    abstract: Any = nnx.eval_shape(lambda: make(_rngs(jax.random.key(0))))
    graphdef, values, others = nnx.split(abstract, nnx.Param, ...)
    # Compiled, the parameters that nobody asks for are not made; and what is kept may
    # not belong to a trace that this call is in.
    with jax.ensure_compile_time_eval():
        rest = jax.jit(constants)() if jax.tree.leaves(others) else {}
    return init, _pure(graphdef, nnx.to_pure_dict(values), rest)


def sized(make: Callable[..., nnx.Module]) -> Callable[..., tuple[Any, Any, Any]]:
    """Describe a network once for each size of what it is called with.

    Args:
        make: `(*sizes, rngs) -> module`.

    Returns:
        `sizes -> (init, apply, shapes)`: those of `lazy`, and the shapes of the
        parameters, for `check_params`.

    >>> network = sized(lambda inputs, rngs: nnx.Linear(inputs, 3, rngs=rngs))
    >>> network(2)[2]["kernel"], network(2) is network(2)
    ((2, 3), True)
    """

    @functools.cache
    def network(*sizes: Any) -> tuple[Any, Any, Any]:
        init, apply = lazy(lambda rngs: make(*sizes, rngs))
        like = jax.eval_shape(init, jax.random.key(0))
        return init, apply, jax.tree.map(jnp.shape, like)

    return network


def check_params(what: str, params: Params, shapes: Any) -> None:
    """Refuse parameters that were made for a network of other sizes.

    Args:
        what: they must be those of, for the message.
        params: of `init`.
        shapes: as `sized` returns them.

    Raises:
        ValueError: if their shapes are others.

    >>> check_params("a layer", {"bias": jnp.zeros(3)}, {"bias": (3,)})
    """
    if (own := jax.tree.map(jnp.shape, params)) != shapes:
        raise ValueError(
            f"params must be those of {what}: {shapes}; their shapes are {own}"
        )


class _Stream(nnx.RngStream):
    """A stream that counts in Python: a count that is traced costs milliseconds."""

    def __init__(self, key: Key, *, tag: str):
        super().__init__(key, tag=tag)
        self.drawn = 0

    def __call__(self) -> Key:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key


def _rngs(key: Key) -> nnx.Rngs:
    """Return streams of the keys of `nnx.Rngs(key)`, quicker to trace."""
    rngs = nnx.Rngs(key)
    setattr(rngs, "default", _Stream(key, tag="default"))  # noqa: B010
    return rngs


def _pure(graphdef: nnx.GraphDef, values: Any, constants: Any) -> Callable[..., Any]:
    """Return `apply` for the module of a graph whose parameters are like `values`."""
    template = jax.tree.map(lambda _: None, values)
    structure = jax.tree.structure(_string_keys(values))

    def apply(params: Params, *args, **kwargs) -> Any:
        if jax.tree.structure(params) != structure:
            raise ValueError(
                "params must have the structure that from_nnx returned, "
                f"{structure}, got {jax.tree.structure(params)}"
            )
        before = _named_like(template, params)
        network = nnx.merge(graphdef, before, constants)
        result = network(*args, **kwargs)
        _check_unchanged(network, graphdef, before, constants)
        return result

    return apply


def from_linen(
    module: linen.Module, key: Key, *example_args, **example_kwargs
) -> tuple[Params, Callable[..., Any]]:
    """Initialise a Linen module and turn it into parameters and a pure function.

    `apply(params, *args, rngs=None, **kwargs)` is `module.apply` on these parameters;
    `rngs` is Linen's dict of keys, for example `{"dropout": key}`.

    Args:
        module: the module.
        key: random key for the initial parameters.
        *example_args: arguments of the call, from which Linen takes the shapes.
        **example_kwargs: keyword arguments of that call.

    Returns:
        `params`, a nested dict, and `apply`. Other collections (BatchNorm statistics)
        are closed over as they were initialised.

    Raises:
        ValueError: from `apply`, if the call updates one of those collections.

    Source: https://flax-linen.readthedocs.io

    >>> params, apply = from_linen(linen.Dense(3), jax.random.key(0), jnp.zeros((1, 2)))
    >>> apply(params, jnp.zeros((4, 2))).shape
    (4, 3)
    """
    variables = linen.unbox(module.init(key, *example_args, **example_kwargs))
    constants = {name: value for name, value in variables.items() if name != "params"}

    def apply(
        params: Params, *args, rngs: dict[str, Key] | None = None, **kwargs
    ) -> Any:
        collections = {**constants, "params": params}
        try:
            return module.apply(collections, *args, rngs=rngs, **kwargs)
        except errors.ModifyScopeVariableError as error:
            raise ValueError(
                "module must not update its state when called, got an update that "
                f"apply would lose: {error}"
            ) from error

    return dict(variables.get("params", {})), apply


def _string_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {str(name): _string_keys(child) for name, child in tree.items()}


def _named_like(template: Any, tree: Any) -> Any:
    """Return `tree` with the integer keys that `template` has."""
    if not isinstance(template, dict):
        return tree
    return {
        name: _named_like(child, tree[str(name)]) for name, child in template.items()
    }


def _check_unchanged(
    network: nnx.Module, graphdef: nnx.GraphDef, params: Any, constants: Any
) -> None:
    after, new_params, new_constants = nnx.split(network, nnx.Param, ...)
    old = _leaves((params, constants))
    new = _leaves((nnx.to_pure_dict(new_params), nnx.to_pure_dict(new_constants)))
    changed = [path for path, leaf in new.items() if old.get(path) is not leaf]
    if changed or old.keys() != new.keys() or after != graphdef:
        raise ValueError(
            "module must not update itself when called, got an update of "
            f"{', '.join(changed) or 'an attribute'} that apply would lose"
        )


def _leaves(trees: tuple[Any, Any]) -> dict[str, Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for tree in trees
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
