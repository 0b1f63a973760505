"""Runs the relay of a study in its own process, since MLflow's import and calls would disturb a training."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from types import FrameType

from sqlalchemy import select
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential_jitter,
)
from tenacity.stop import stop_base

from storage.addresses import redacted
from storage.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnreachableError,
    RelayLeaseLostError,
    TrackingUnavailableError,
)
from storage.records.tables import attempts, now
from storage.studies import Study
from storage.tracking.health import RelayHealth
from storage.tracking.lease import (
    Holder,
    RelayLease,
    is_relay_running,
    last_error,
    running_relay,
    seize_lease,
    take_lease,
)
from storage.tracking.relay import FileWriter, NoteWriter, Relay, retry_rejected, undelivered

log = logging.getLogger("anitune")

POLL_SECONDS = 0.5
"""Interval at which the relay checks the outbox, s."""

SYNC_POLL_SECONDS = 0.25
"""Interval at which ``sync`` checks whether the relay is done, s; short, since a person waits."""

IDLE_SECONDS = 20.0
"""A relay ends after this time without rows to deliver, if no worker works on the study."""

GIVE_UP_SECONDS = 3600.0
"""A relay ends if the server is away for this time and no worker works on the study. The rows stay."""

LONGEST_WAIT_SECONDS = 30.0
"""Longest wait between two attempts to reach a server that is away."""

SAY_SECONDS = 2.0
"""After this time ``sync`` reports which relay it waits for."""

SYNC_TRIES = 4

END_PATIENCE = 20.0
"""How long ``sync`` waits for a relay that it ends, s; a relay has low priority, and may starve."""

LEASE_VARIABLE = "ANITUNE_RELAY_LEASE"
"""Passes to a relay the lease that was taken for it, so that no second relay starts meanwhile."""

_started: list[subprocess.Popen[bytes]] = []
"""Relays that this process started, kept to be reaped: an exited one stays a zombie until then."""

_AWAY = (DatabaseUnreachableError, DatabaseBusyError)
_PASSING = (TrackingUnavailableError, *_AWAY, OSError)
"""Errors that pass by themselves, or once somebody frees disk space; the operation is retried."""


@dataclass(frozen=True)
class SyncResult:
    """Result of a synchronous delivery, in rows of the outbox.

    Attributes
    ----------
    delivered
        Rows newly delivered to MLflow.
    rejected
        Rows that remain, because MLflow rejects them or an earlier row of the same run.
    """

    delivered: int
    rejected: int


def start_relay(study: Study) -> subprocess.Popen[bytes] | None:
    """Start a relay in the background, unless one delivers the study already.

    The relay has its own process session, outlives this process, ends by itself, and logs to
    ``logs/relay-STUDY.log`` in the home folder. If one is running, the call costs one query: make it whenever
    a worker claims a trial.
    """
    _forget_ended()
    if is_relay_running(study):
        return None
    settings = study.database.settings
    settings.logs.mkdir(parents=True, exist_ok=True)
    with (settings.logs / f"relay-{study.name}.log").open("ab") as output:
        lease = take_lease(study)
        if lease is None:
            return None
        relay = subprocess.Popen(
            # With -P nothing is imported from the current folder.
            [sys.executable, "-P", "-m", "search.cli.main", "relay", "--", study.name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                **settings.environment(),
                LEASE_VARIABLE: lease.token,
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,
        )
    lease.hand_to(relay.pid)
    _started.append(relay)
    return relay


def run_relay(
    study: Study,
    write_note: NoteWriter,
    idle_seconds: float = IDLE_SECONDS,
    health: RelayHealth | None = None,
    write_files: FileWriter | None = None,
) -> bool:
    """Deliver a study until no worker works on it and nothing is left, or until SIGTERM.

    It returns at once if another relay delivers. Call it in the main thread, because it handles signals.

    Returns
    -------
    Whether the study's run has the final state of the study.

    Parameters
    ----------
    health
        Counters to update, for monitoring.
    """
    health = health or RelayHealth()
    stopping = Event()
    trouble = _Trouble(study, health)
    patiently = _patience(stop_when_event_set(stopping) | _GivenUp(study), stopping, trouble.record_failure)
    token = os.environ.get(LEASE_VARIABLE)
    with _set_by_signals(stopping):
        lease = RelayLease(study, token) if token is not None else patiently(take_lease, study)
        if lease is None:
            log.info("%s: another relay delivers", study.name)
            return False
        health.lease = lease
        relay = patiently(Relay, lease, write_note, stopping, write_files)
        synced = False
        log.info("%s: relay to %s starts", study.name, redacted(study.database.settings.tracking_uri))
        try:
            with suppress(*_PASSING):  # stopped by a signal, or gave up
                _deliver_while_open(relay, health, trouble, patiently, stopping, idle_seconds)
            with suppress(*_PASSING):  # the next relay syncs it
                relay.sync_study()
                synced = True
            with suppress(*_AWAY):  # the lease ends with this process
                lease.release()
                log.info("%s: relay ends, %d rows left", study.name, undelivered(study))
        except RelayLeaseLostError as error:
            log.warning("%s: relay ends: %s", study.name, error)
            with suppress(*_PASSING):
                if undelivered(study):  # late writes may have made rows undelivered after the new relay ended
                    start_relay(study)
            return False
        return synced


def sync(study: Study, write_note: NoteWriter, write_files: FileWriter | None = None) -> SyncResult:
    """Deliver all outbox rows of a study now, and retry rejected ones.

    If a relay is delivering, wait for it; but take over at once from a relay that delivers to another
    address, or with other proxies or passwords. A relay that this process started is ended, unless a worker
    works on the study.

    Raises
    ------
    TrackingUnavailableError
        if the tracking server does not answer; nothing is lost.
    """
    before = left = undelivered(study)
    retry_rejected(study)
    never = Event()
    patiently = _patience(stop_after_attempt(SYNC_TRIES), never)  # failures are reported only at the end
    began = well = time.monotonic()
    taken_over, notified = None, False
    while (lease := take_lease(study)) is None:
        if (holder := running_relay(study)) is not None and holder.delivers_elsewhere(study):
            log.info("%s: taking over from the relay of %s", study.name, holder)
            taken_over, lease = holder, seize_lease(study)
            break
        last, left = left, undelivered(study)
        if (trouble := last_error(study)) is None or left < last:  # it stays until a pass succeeds
            well = time.monotonic()
        elif time.monotonic() - well > 2 * LONGEST_WAIT_SECONDS:  # the relay has retried in vain
            raise TrackingUnavailableError(
                f"{trouble} (reported by its relay, {holder}; to stop the relay: {holder.stop_command})"
                if holder
                else trouble
            )
        if holder is not None and left and not notified and time.monotonic() - began > SAY_SECONDS:
            log.info(
                "%s: waiting for its relay, %s; to stop the relay: %s",
                study.name,
                holder,
                holder.stop_command,
            )
            notified = True
        if left == 0:
            # The relay may not have synced the study's run yet. Doing it twice is harmless.
            if holder is None or not _end_own_relay(study, holder):
                patiently(Relay(RelayLease(study, token=""), write_note, never, write_files).sync_study)
            return SyncResult(delivered=before, rejected=0)
        time.sleep(SYNC_POLL_SECONDS)
        _forget_ended()
    relay = Relay(lease, write_note, never, write_files)
    try:
        while patiently(relay.deliver):
            pass
        patiently(relay.sync_study)
    finally:
        lease.release()
        # Workers of another machine start a relay there: this machine may not reach the server later.
        if taken_over is not None and taken_over.host == socket.gethostname() and _is_worked_on(study):
            start_relay(study)
    left = undelivered(study)
    return SyncResult(delivered=before - left, rejected=left)


def _end_own_relay(study: Study, holder: Holder) -> bool:
    """End a relay that this process started; return whether it has synced the study's run.

    It has imported MLflow and what draws the plots, which would take this process some seconds.
    """
    relay = next((each for each in _started if each.pid == holder.pid), None)
    if relay is None or holder.host != socket.gethostname() or _is_worked_on(study):
        return False
    relay.terminate()
    with suppress(subprocess.TimeoutExpired):
        return relay.wait(END_PATIENCE) == 0
    return False


def _forget_ended() -> None:
    """Reap exited relays; a zombie process still appears to hold its lease."""
    _started[:] = [relay for relay in _started if relay.poll() is None]


def _deliver_while_open(
    relay: Relay,
    health: RelayHealth,
    trouble: _Trouble,
    patiently: Retrying,
    stopping: Event,
    idle_seconds: float,
) -> None:
    idle_since = time.monotonic()

    def goes_on() -> bool:
        """Make one pass, which can be repeated from any point; return whether another one follows."""
        nonlocal idle_since
        if delivered := relay.deliver():
            idle_since = time.monotonic()
        health.passed(delivered)
        if not stopping.is_set():
            trouble.is_over()
        if delivered:
            return True
        if time.monotonic() - idle_since <= idle_seconds:
            stopping.wait(POLL_SECONDS)
            return True
        if _is_worked_on(relay.study):
            idle_since = time.monotonic()
            return True
        relay.sync_study()  # no other relay will start to sync the final state of the study
        return False

    while not stopping.is_set() and patiently(goes_on):
        pass


class _Trouble:
    """Reports why delivery fails: once in the log, and in the relay's row for ``sync``."""

    def __init__(self, study: Study, health: RelayHealth) -> None:
        self._study = study
        self._health = health
        self._said: str | None = None

    def record_failure(self, state: RetryCallState) -> None:
        assert state.outcome is not None, "tenacity calls this after a failure"
        self._health.failed()
        error = state.outcome.exception()
        if str(error) == self._said:
            return
        with suppress(*_AWAY):  # then it is reported after the next try
            if not isinstance(error, DatabaseError):  # after a DatabaseError the records cannot be written
                self._record(str(error))
            self._said = str(error)
            log.warning("%s: not delivered yet: %s", self._study.name, error)

    def is_over(self) -> None:
        if self._said is not None:
            self._record(None)
            self._said = None
            log.info("%s: delivering again", self._study.name)

    def _record(self, message: str | None) -> None:
        assert self._health.lease is not None, "before there is one, only the database is asked"
        self._health.lease.record_error(message)


class _GivenUp(stop_after_delay):
    """Stops retrying after :data:`GIVE_UP_SECONDS` if no worker works on the study."""

    def __init__(self, study: Study) -> None:
        super().__init__(GIVE_UP_SECONDS)
        self._study = study

    def __call__(self, retry_state: RetryCallState) -> bool:
        try:
            return super().__call__(retry_state) and not _is_worked_on(self._study)
        except _AWAY:
            return True  # without the database no worker can work either


def _patience(
    stop: stop_base, woken: Event, before_sleep: Callable[[RetryCallState], None] | None = None
) -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(_PASSING),
        wait=wait_exponential_jitter(max=LONGEST_WAIT_SECONDS),
        stop=stop,
        sleep=sleep_using_event(woken),
        before_sleep=before_sleep,
        reraise=True,
    )


@contextmanager
def _set_by_signals(event: Event) -> Iterator[None]:
    def set_event(number: int, frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, set_event) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_worked_on(study: Study) -> bool:
    """Whether a worker holds a lease of a trial."""
    held = select(attempts.c.number).where(
        attempts.c.study_id == study.id, attempts.c.ended_at.is_(None), attempts.c.lease_until > now()
    )
    with study.database.reading() as connection:
        return connection.execute(held.limit(1)).first() is not None
