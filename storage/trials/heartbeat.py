"""Heartbeat that renews the lease of an attempt."""

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
"""Renewals per duration of a lease. With each, a worker learns whether its study was stopped."""


class Heartbeat:
    """Context manager that renews the lease of an attempt in its own thread while the block lasts.

    Attributes
    ----------
    lost
        Set when another worker has taken the trial over. Database errors do not set it: once the database is
        back, the lease is either renewed or found lost.
    unwanted
        Set when the study was stopped or archived, so that the worker must hand the trial back.
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
            pass  # DatabaseError: stopped while the database was away
        finally:
            if not self._stop.is_set():  # whatever ended this thread, the lease is no longer renewed
                self.lost.set()
