"""What becomes of a cell, or a program, whose work is interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def said_if_stopped(raises: bool = False) -> Iterator[None]:
    """Say that work which an interrupt stopped goes on when it is run again.

    Parameters
    ----------
    raises : whether the interrupt goes on: there is no result without the rest of the work
    """
    from search.work.stopping import Stopped

    try:
        yield
    except Stopped as stopped:
        print(f"{str(stopped).capitalize()}. What was done is kept: run this again to go on.")
        if stopped.signal == signal.SIGTERM:
            raise SystemExit(128 + stopped.signal) from None
        if raises:
            raise KeyboardInterrupt from None
