"""Stopping of a worker by a signal: after the epoch, or within a long one; with a second Ctrl-C at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818  (nothing went wrong)
    """A signal stopped the work. Its results so far are kept, and the same call continues it.

    Parameters
    ----------
    signal : the signal
    where : progress of the work, for people: ``after epoch 3 of 10``
    """

    def __init__(self, signal: signal.Signals, where: str = "") -> None:
        super().__init__(f"stopped {where}".strip())
        self.signal = signal


class StopRequest:
    """A flag that this worker must stop, because of a signal or because a part of it cannot continue.

    Attributes
    ----------
    signal : the signal that asked to stop, if any
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._event = Event()

    @property
    def asked(self) -> bool:
        """Whether the worker was asked to stop."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, but wake up when asked to stop."""
        self._event.wait(seconds)

    def ask(self, by: signal.Signals | None = None) -> None:
        """Ask the worker to stop."""
        self.signal = by or self.signal
        self._event.set()

    def raise_if_signalled(self, where: str = "") -> None:
        """Raise :class:`Stopped` if a signal asked to stop.

        Parameters
        ----------
        where : progress of the work
        """
        if self.signal is not None:
            raise Stopped(self.signal, where)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM in the block into a stop request; after that SIGINT acts as usual.

    Further SIGTERMs are ignored: a scheduler and a supervisor may each send one to all processes of a job.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal is not None and number == signal.SIGTERM:
            return
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        request.ask(signal.Signals(number))
        # Not with print or logging, which the signal may have interrupted.
        os.write(2, b"\nStopping at the end of this epoch, or within a long one; once more: at once.\n")

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
