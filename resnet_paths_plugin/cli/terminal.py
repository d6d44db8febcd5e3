"""Text for a terminal: names that come from a model or a file are shown, and never obeyed as control sequences."""

import errno
import os
import sys
from contextlib import suppress
from typing import Any

import click

from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.visible_text import visible

QUIET = "resnet_paths_plugin.quiet"
"""Says in a command's context that only errors and warnings are wanted."""
_UNPRINTED: list[OSError] = []
"""Why standard output could not be written to, such as a full disk; that its reader has gone is none."""


def echo(text: object, *, err: bool = False) -> None:
    """Print a text and end the line, with control characters and those that the terminal lacks written out.

    A stream that is closed or full loses the text and all that follows, so that the command itself is completed. Under
    --quiet nothing is printed to standard output.
    """
    if not err and is_quiet():
        return
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = visible(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(shown, err=err)
    except (OSError, ValueError) as error:  # ValueError of a stream that is closed
        if not err and isinstance(error, OSError) and error.errno != errno.EPIPE:
            _UNPRINTED.append(error)
        _drop(stream)


def is_terminal(stream: Any) -> bool:
    """Whether a stream, which a process may lack, is a terminal."""
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:  # it is closed
        return False


def is_quiet() -> bool:
    """Whether the command that runs is to print errors and warnings only."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def shows_progress(asked: bool | None) -> bool:
    """Whether progress bars are shown: as asked, else in a terminal unless only errors are wanted."""
    return is_terminal(sys.stderr) and not is_quiet() if asked is None else asked


def check_printed() -> None:
    """Raise the error that kept what was printed from standard output.

    Raises:
        FileError: if there was one.
    """
    if _UNPRINTED:
        error = _UNPRINTED.pop()
        _UNPRINTED.clear()
        raise FileError(f"cannot print to standard output: {error.strerror or error}. Files are complete") from error


def _drop(stream: Any) -> None:
    """Let a stream lose what is written to it, that which it still holds included: Python writes it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
