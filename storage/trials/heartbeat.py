"""Keeps the lease of an attempt while it lasts."""

from __future__ import annotations

import threading

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_random_exponential,
)

from storage.errors import DatabaseError, LeaseLostError
from storage.lifecycle import CLOSED
from storage.trials.attempts import Attempt

HEARTBEATS_PER_LEASE = 12
"""Of a lease, while it lasts: with each a worker learns whether its study was stopped."""


class Heartbeat:
    """Renews the lease of an attempt in a thread of its own, for as long as the block lasts.

    Attributes
    ----------
    lost
        Set when another worker has taken the trial over. A database that is away, or refuses, does not set
        it: once it is back, either the lease is renewed, or it was really lost.
    unwanted
        Set when the study was stopped or archived: the trial is to be handed back.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.lost = threading.Event()
        self.unwanted = threading.Event()
        self._attempt = attempt
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
        interval = self._attempt.claim.lease_seconds / HEARTBEATS_PER_LEASE
        retrying = Retrying(
            retry=retry_if_exception_type(DatabaseError),
            wait=wait_random_exponential(multiplier=0.2, max=interval),
            stop=stop_when_event_set(self._stop),
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )
        try:
            while not self._stop.wait(interval):
                if retrying(self._attempt.renew) in CLOSED:
                    self.unwanted.set()
        except (LeaseLostError, DatabaseError):
            pass  # the latter: told to stop while the database was away
        finally:
            if not self._stop.is_set():  # whatever ends this thread: nobody keeps the lease now
                self.lost.set()
