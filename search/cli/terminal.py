"""What is written to a terminal: no text from a file, database or server may steer it.

A name or a reason could hold escape sequences, which clear the screen, change the title or hide what comes
before them. All that a command says goes through here or through the console of :mod:`search.cli.output`.
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
    """Shows a record on standard error, also while a progress bar has taken that over."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message on a line of its own."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(printable(f"{prefix}{record.getMessage()}"), file=sys.stderr)


@contextmanager
def printable_usage_errors() -> Iterator[None]:
    """Let what Typer says of a wrong argument, which it repeats, be printable."""
    try:
        yield
    except TyperException as error:
        error.message = printable(error.message)
        raise


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an error that nobody caught; for ``sys.excepthook``."""
    # The texts of an error and of its causes may hold an address.
    sys.stderr.write(printable(without_secrets("".join(traceback.format_exception(kind, error, trace)))))
