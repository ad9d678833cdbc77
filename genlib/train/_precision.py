"""The dtypes in which a loss sees the parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from genlib import tree
from genlib.train._paths import first_match

# One dtype, or ordered (pattern, dtype) pairs on the paths of the parameters.
Precision = DTypeLike | Sequence[tuple[str, DTypeLike]] | None


def cast(params: Any, precision: Precision) -> Any:
    """Return real float leaves in the dtype of the first rule that their path matches.

    The gradient goes back through the cast, so that it arrives in the dtype of the
    master copy.
    """
    if precision is None:
        return params
    rules = precision if isinstance(precision, (list, tuple)) else [(".*", precision)]
    leaves = tree.named(params)
    chosen = first_match(leaves, rules, "precision")

    def convert(name: str, leaf: Any) -> Any:
        if name in chosen and jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(chosen[name])
        return leaf

    converted = [convert(name, leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), converted)


def check(precision: Precision) -> None:
    """Raise a ValueError for dtypes that are no real floats."""
    if precision is None:
        return
    rules: Any = precision
    for rule in rules if isinstance(rules, (list, tuple)) else [(".*", rules)]:
        try:
            pattern, dtype = rule
            known = isinstance(pattern, str) and jnp.issubdtype(dtype, jnp.floating)
        except (TypeError, ValueError):
            known = False
        if not known:
            raise ValueError(
                "precision must be a float dtype, or pairs of a pattern and a float "
                f"dtype; it is {precision!r}"
            )
