"""The relay as a process of its own, one a study: MLflow's import and its calls would disturb a training."""

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
"""How often the outbox is looked into."""

SYNC_POLL_SECONDS = 0.1
"""How often ``sync`` looks whether the relay is done: a person waits."""

IDLE_SECONDS = 20.0
"""A relay ends when for so long there was nothing to deliver, and nobody works on the study."""

GIVE_UP_SECONDS = 3600.0
"""A relay ends when for so long the server was away, and nobody works on the study. The rows stay."""

LONGEST_WAIT_SECONDS = 30.0
"""Between two tries to reach a server that is away."""

SAY_SECONDS = 2.0
"""``sync`` says for which relay it waits when it has waited for so long."""

SYNC_TRIES = 4

LEASE_VARIABLE = "ANITUNE_RELAY_LEASE"
"""Hands a relay the lease that was taken for it, so that no second one is started meanwhile."""

_started: list[subprocess.Popen[bytes]] = []
"""Relays that this process started: kept, since one that ended is a zombie until it is asked for."""

_AWAY = (DatabaseUnreachableError, DatabaseBusyError)
_PASSING = (TrackingUnavailableError, *_AWAY, OSError)
"""What ends by itself, or by somebody who frees some space: it is tried again."""


@dataclass(frozen=True)
class SyncResult:
    """What a synchronous delivery came to, in rows of the outbox.

    Attributes
    ----------
    delivered
        Rows that MLflow has now and had not before.
    rejected
        Rows that remain: MLflow will not take them, or one before them.
    """

    delivered: int
    rejected: int


def start_relay(study: Study) -> subprocess.Popen[bytes] | None:
    """Start a relay in the background, unless one delivers the study already.

    It is a session of its own, outlives us, ends by itself, and logs to ``logs/relay-STUDY.log`` in the home
    folder. Where one lives this costs one query: call it whenever a worker takes a trial.
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
            # -P: what lies in the current folder is never imported.
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
) -> None:
    """Deliver a study until nobody works on it and nothing is left, or until SIGTERM.

    Returns at once where another relay delivers. Must be called in the main thread, for the signals.

    Parameters
    ----------
    health
        Told what goes on, if somebody watches.
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
            return
        health.lease = lease
        relay = patiently(Relay, lease, write_note, stopping, write_files)
        log.info("%s: relay to %s begins", study.name, redacted(study.database.settings.tracking_uri))
        try:
            with suppress(*_PASSING):  # told to end, or nobody waits for it any more
                _deliver_while_open(relay, health, trouble, patiently, stopping, idle_seconds)
            with suppress(*_PASSING):  # the next relay says it
                relay.sync_study()
            with suppress(*_AWAY):  # the lease ends with this process
                lease.release()
                log.info("%s: relay ends, %d rows left", study.name, undelivered(study))
        except RelayLeaseLostError as error:
            log.warning("%s: relay ends: %s", study.name, error)
            with suppress(*_PASSING):
                if undelivered(study):  # who took over may have ended before we said something too late
                    start_relay(study)


def sync(study: Study, write_note: NoteWriter, write_files: FileWriter | None = None) -> SyncResult:
    """Deliver all that a study has to tell, now; parked queues are tried again.

    Where a relay delivers already, wait for it. From one that delivers to another address, or with other
    proxies or passwords, the study is taken over at once.

    Raises
    ------
    TrackingUnavailableError
        if the tracking server does not answer; nothing is lost.
    """
    before = left = undelivered(study)
    retry_rejected(study)
    never = Event()
    patiently = _patience(stop_after_attempt(SYNC_TRIES), never)  # who waits for us is told at the end
    began = well = time.monotonic()
    taken_over, notified = None, False
    while (lease := take_lease(study)) is None:
        if (holder := running_relay(study)) is not None and holder.delivers_elsewhere(study):
            log.info("%s: taking over from the relay of %s", study.name, holder)
            taken_over, lease = holder, seize_lease(study)
            break
        last, left = left, undelivered(study)
        if (trouble := last_error(study)) is None or left < last:  # it is said until a pass had none
            well = time.monotonic()
        elif time.monotonic() - well > 2 * LONGEST_WAIT_SECONDS:  # the relay has tried again since, in vain
            raise TrackingUnavailableError(
                f"{trouble} (says its relay, {holder}; to end that: {holder.stop_command})"
                if holder
                else trouble
            )
        if holder is not None and left and not notified and time.monotonic() - began > SAY_SECONDS:
            log.info(
                "%s: waiting for its relay, %s; to end that: %s", study.name, holder, holder.stop_command
            )
            notified = True
        if left == 0:
            # The relay may not have come to this yet. It follows from the trials alone: twice does no harm.
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
        # Workers of another machine start one there again: this one may not reach the server tomorrow.
        if taken_over is not None and taken_over.host == socket.gethostname() and _is_worked_on(study):
            start_relay(study)
    left = undelivered(study)
    return SyncResult(delivered=before - left, rejected=left)


def _forget_ended() -> None:
    """Let the relays of ours that have ended be gone: until then their leases seem to be held."""
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
        """One pass, which can be repeated from any point; answers whether another one follows."""
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
        relay.sync_study()  # nobody will start another relay to say how the study ended
        return False

    while not stopping.is_set() and patiently(goes_on):
        pass


class _Trouble:
    """Says what keeps us from delivering: once in the log, and in the relay's row for ``sync``."""

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
        with suppress(*_AWAY):  # then it is said after the next try
            if not isinstance(error, DatabaseError):  # otherwise it is the records that cannot be written
                self._record(str(error))
            self._said = str(error)
            log.warning("%s: not delivered yet: %s", self._study.name, error)

    def is_over(self) -> None:
        if self._said is not None:
            self._record(None)
            self._said = None
            log.info("%s: delivers again", self._study.name)

    def _record(self, message: str | None) -> None:
        assert self._health.lease is not None, "before there is one, only the database is asked"
        self._health.lease.record_error(message)


class _GivenUp(stop_after_delay):
    """Whether it has taken too long, and nobody works on the study."""

    def __init__(self, study: Study) -> None:
        super().__init__(GIVE_UP_SECONDS)
        self._study = study

    def __call__(self, retry_state: RetryCallState) -> bool:
        try:
            return super().__call__(retry_state) and not _is_worked_on(self._study)
        except _AWAY:
            return True  # nor can anybody work


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
    """Whether a worker holds a trial."""
    held = select(attempts.c.number).where(
        attempts.c.study_id == study.id, attempts.c.ended_at.is_(None), attempts.c.lease_until > now()
    )
    with study.database.reading() as connection:
        return connection.execute(held.limit(1)).first() is not None
