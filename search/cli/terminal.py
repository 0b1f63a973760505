"""Output to a terminal, in which no text from a file, database or server may control the terminal.

A name or a reason could hold escape sequences, which clear the screen, change the title or hide the text
before them. All output of commands goes through here or through the console of :mod:`search.cli.output`.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import typer
from typer.exceptions import TyperException

from dashboards.printable import printable
from storage.addresses import without_secrets


def echo(text: str, err: bool = False) -> None:
    """Write a line to standard output, or to standard error."""
    typer.echo(printable(text), err=err)


class StandardError(logging.Handler):
    """Writes log records to standard error, also while a progress bar has replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message on a line of its own."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(printable(f"{prefix}{record.getMessage()}"), file=sys.stderr)


@contextmanager
def printable_usage_errors() -> Iterator[None]:
    """Make Typer's messages about wrong arguments printable, as they repeat the argument."""
    try:
        yield
    except TyperException as error:
        error.message = printable(error.message)
        raise


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an uncaught error; for ``sys.excepthook``."""
    # The messages of an error and of its causes may contain an address with a password.
    sys.stderr.write(printable(without_secrets("".join(traceback.format_exception(kind, error, trace)))))
