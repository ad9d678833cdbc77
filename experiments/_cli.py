"""Command lines whose mistakes end in one clear line and exit status 1."""

import ast
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags, logging

CONFIGS = Path(__file__).parent / "configs"


@contextlib.contextmanager
def one_line_errors(traceback: bool) -> Iterator[None]:
    """Turn a ValueError into one line, which says what is wrong."""
    try:
        yield
    except ValueError as error:
        if traceback:
            raise
        sys.exit(f"error: {error} (--traceback shows where)")


def say(text: str) -> None:
    """Print on one process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def config_file(text: str) -> str:
    """Return the path of a config, `NAME` or `FILE.py`, each perhaps with `:MODE`.

    A bare name is one of the configs of this package, so that it works from anywhere.

    Raises:
      ValueError: if there is no such file.
    """
    file, colon, mode = text.partition(":")
    path = Path(file) if file.endswith(".py") else CONFIGS / f"{file}.py"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("[!_]*.py")))
        raise ValueError(f"config must be a FILE.py or one of {known}, got {file!r}")
    return f"{path}{colon}{mode}"


def parse(argv: list[str]) -> list[str]:
    """Parse the flags of absl, with configs by name and errors of one line."""
    # absl's own default is INFO, at which the checkpoint library fills pages.
    argv = [*argv[:1], f"--verbosity={logging.WARNING}", *argv[1:]]
    try:
        for index, word in enumerate(argv):
            if word.startswith(("--config=", "-config=")):
                argv[index] = f"--config={config_file(word.partition('=')[2])}"
            elif word in ("--config", "-config") and index + 1 < len(argv):
                argv[index + 1] = config_file(argv[index + 1])
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise ValueError(f"flags must begin with --, got {rest[1]!r}")
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {_one_line(str(error))}")


def _one_line(text: str) -> str:
    if "Traceback" in text:  # raised in the config file
        text = text.strip().splitlines()[-1]
    if text[0] == text[-1] and text[0] in "\"'":  # the repr of a KeyError's message
        text = str(ast.literal_eval(text))
    return " ".join(text.split())
