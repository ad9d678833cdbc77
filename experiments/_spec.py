"""Parts of an experiment as text: `EDM(sigma_max=80.0)` names a path and its settings.

A config and the command line then change a part and its settings in one place, in the
words of the library. Only listed names and literal settings are read: nothing is
executed.
"""

import ast
from collections.abc import Iterable
from typing import Any


def part(name: str, text: str, room: Any, known: Iterable[str], **given: Any) -> Any:
    """Return the part of a room of genlib that a text names.

    `NAME` is that attribute of the room; `NAME(setting=literal, ...)` is its call.

    Args:
      name: of the config entry, for messages.
      text: the name, with or without a call.
      room: the module to look in.
      known: the names that this entry may have.
      **given: further keyword arguments of the call, which the text may not set.

    Raises:
      ValueError: if the text is not of this form, the name is not known, or the part
        refuses its settings.

    >>> from genlib import noise
    >>> part("path", "EDM(sigma_max=20.0)", noise, ["EDM", "Cosine"])
    EDM(sigma_max=20.0)
    """
    called, args, settings = _read(name, text)
    known = tuple(known)
    if called not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {text!r}")
    value = getattr(room, called)
    if settings is None:
        return value
    if overlap := sorted(settings.keys() & given.keys()):
        raise ValueError(f"{name} must leave {', '.join(overlap)} out, got {text!r}")
    try:
        return value(*args, **settings, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={text!r} is refused: {error}") from error


def called(text: str) -> str:
    """Return a part that may be named without its call, as a call.

    >>> called("heun"), called("karras(rho=7.0)")
    ('heun()', 'karras(rho=7.0)')
    """
    return text if "(" in text else f"{text}()"


def _read(name: str, text: str) -> tuple[str, list[Any], dict[str, Any] | None]:
    """Split a text into a name and its settings, None if there is no call."""
    wrong = ValueError(
        f"{name} must be NAME or NAME(setting=value, ...) with plain values, "
        f"got {text!r}"
    )
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Name(called):
                return called, [], None
            case ast.Call(ast.Name(called), args, keywords):
                settings = {
                    str(word.arg): ast.literal_eval(word.value) for word in keywords
                }
                return called, [ast.literal_eval(arg) for arg in args], settings
    except (SyntaxError, ValueError, TypeError):
        pass
    raise wrong
