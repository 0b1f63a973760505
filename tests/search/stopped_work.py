"""A watcher that stops a worker in the middle of a trial, as Ctrl-C would."""

from __future__ import annotations

import signal

from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher


class StopAt(SilentWatcher):
    """Stops the work in the middle of a trial."""

    def __init__(self, number: int) -> None:
        self.stop = StopRequest()
        self._number = number

    def epoch(self, number: int, done: int) -> None:
        if number == self._number and done == 2:
            self.stop.ask(signal.SIGINT)
