"""End of a command that a signal stopped: a line on how to continue, and the usual exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from search.cli.terminal import echo
from search.work.stopping import Stopped


@contextmanager
def exit_if_stopped(command: str) -> Iterator[None]:
    """Exit with 128 plus the number of the signal if a signal stops the block.

    Parameters
    ----------
    command : command that continues the work, for the message
    """
    try:
        yield
    except KeyboardInterrupt:
        echo(f"\nStopped immediately; continue with: {command}", err=True)
        raise typer.Exit(130) from None
    except Stopped as stopped:
        echo(f"{str(stopped).capitalize()}; continue with: {command}", err=True)
        raise typer.Exit(128 + stopped.signal) from None
