"""Interrupts of work that runs in a notebook cell or a program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from search.work.stopping import Stopped


@contextmanager
def said_if_stopped(raises: bool = False) -> Iterator[None]:
    """Catch an interrupt, and print that running the same code again continues the work.

    Parameters
    ----------
    raises : whether to raise KeyboardInterrupt afterwards, as there is no result to return yet
    """
    try:
        yield
    except Stopped as stopped:
        print(f"{str(stopped).capitalize()}. Finished work is kept: run this again to continue.")
        if stopped.signal == signal.SIGTERM:
            raise SystemExit(128 + stopped.signal) from None
        if raises:
            raise KeyboardInterrupt from None
