"""Ordered rules on the paths of leaves: how each is split, cast or trained."""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

_Value = TypeVar("_Value")


def first_match(
    names: Iterable[str], rules: Sequence[tuple[str, _Value]], what: str
) -> dict[str, _Value]:
    """Return, for each name that a pattern is found in, the value of the first such.

    Raises:
      ValueError: for a pattern that is no regular expression, or is the first match of
        no name: it is a typing error, or an earlier rule hides it.
    """
    patterns = []
    for pattern, _ in rules:
        try:
            patterns.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(
                f"{what} must be regular expressions; {pattern!r} is none: {error}"
            ) from error
    names, found, used = list(names), {}, set()
    for name in names:
        for index, pattern in enumerate(patterns):
            if pattern.search(name):
                found[name] = rules[index][1]
                used.add(index)
                break
    for index, (pattern, _) in enumerate(rules):
        if index not in used:
            hidden = [name for name in names if patterns[index].search(name)]
            why = (
                f"{hidden[0]} is taken by an earlier rule"
                if hidden
                else "no path has it"
            )
            raise ValueError(
                f"{what} must each be the first match of some path: {pattern!r} is of "
                f"none ({why}; paths look like {', '.join(names[:3])})"
            )
    return found
