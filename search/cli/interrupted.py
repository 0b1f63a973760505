"""How a command ends that a signal stopped: it says how to go on, and exits as such programs do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from search.cli.terminal import echo


@contextmanager
def exit_if_stopped(command: str) -> Iterator[None]:
    """Turn a signal that stops the block into the exit code of a program that it ended.

    Parameters
    ----------
    command : goes on with the work
    """
    from search.work.stopping import Stopped

    try:
        yield
    except KeyboardInterrupt:
        echo(f"\nStopped at once; go on with: {command}", err=True)
        raise typer.Exit(130) from None
    except Stopped as stopped:
        echo(f"{str(stopped).capitalize()}; go on with: {command}", err=True)
        raise typer.Exit(128 + stopped.signal) from None
