"""Workers that are paused past their lease, and resumed once another worker has taken over their trial."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select

from storage.records.tables import artifacts, attempts, checkpoints, metrics
from storage.studies import Study
from tests.chaos.fleet import Fleet

LONGEST_PAUSE: Final = 90.0
"""Time after which a worker is resumed even if its trial was not taken over, s. It does not count then."""

DRAIN_SECONDS: Final = 1.0
"""Time by which the database requests of a stopped worker are done, s."""

EXPIRED: Final = "expired"
"""Outcome of an attempt whose worker lost its heartbeat, recorded by the worker that takes the trial over."""


@dataclass(frozen=True)
class _Hold:
    """An attempt at a trial."""

    number: int
    attempt: int


@dataclass
class _PausedWorker:
    pid: int
    since: float
    hold: _Hold | None = None  # the attempt of the paused worker, once it is known


class PausedWorkers:
    """Pauses workers, and counts those that were resumed after their trial had been taken over.

    Attributes
    ----------
    overtaken : number of those workers
    """

    def __init__(self, study: Study, fleet: Fleet) -> None:
        self.overtaken = 0
        self._study = study
        self._fleet = fleet
        self._paused: list[_PausedWorker] = []
        self._missed = 0
        self._written: dict[_Hold, frozenset[object]] = {}

    def __len__(self) -> int:
        return len(self._paused)

    def stop(self, pid: int) -> None:
        """Pause a worker."""
        self._fleet.send(pid, signal.SIGSTOP)
        self._paused.append(_PausedWorker(pid, time.monotonic()))

    def wake(self) -> None:
        """Resume workers whose trial has been taken over. It can be repeated if the database is away."""
        for paused in list(self._paused):
            slept = time.monotonic() - paused.since
            if slept < DRAIN_SECONDS:
                continue
            outcome: str | None = "not asleep"
            if _is_stopped(paused.pid):
                with self._study.database.reading() as connection:
                    outcome = self._outcome(connection, paused)
                    if paused.hold is not None and outcome == EXPIRED:
                        self._written[paused.hold] = self._rows(connection, paused.hold)
            if outcome is None and slept < LONGEST_PAUSE:
                continue
            self._paused.remove(paused)
            self._fleet.send(paused.pid, signal.SIGCONT)
            self.overtaken += outcome == EXPIRED
            self._missed += outcome != EXPIRED

    def take_missed(self) -> int:
        """Workers since the last call that had ended, or were resumed without losing their trial."""
        missed, self._missed = self._missed, 0
        return missed

    def written_since(self) -> int:
        """Number of rows that overtaken workers have added or changed since they were resumed."""
        with self._study.database.reading() as connection:
            return sum(len(self._rows(connection, hold) - before) for hold, before in self._written.items())

    def _outcome(self, connection: Connection, paused: _PausedWorker) -> str | None:
        """Outcome of the attempt of a paused worker; None if it has not ended."""
        if paused.hold is None:
            query = (
                select(attempts.c.number, attempts.c.attempt, attempts.c.worker)
                .where(attempts.c.study_id == self._study.id, attempts.c.ended_at.is_(None))
                .order_by(attempts.c.started_at)
            )
            held = [
                _Hold(row.number, row.attempt)
                for row in connection.execute(query)
                if row.worker["pid"] == paused.pid
            ]
            if not held:
                return "none"  # it was paused between two trials
            paused.hold = held[-1]
        outcome: str | None = connection.execute(
            select(attempts.c.outcome).where(
                attempts.c.study_id == self._study.id,
                attempts.c.number == paused.hold.number,
                attempts.c.attempt == paused.hold.attempt,
            )
        ).scalar_one()
        return outcome

    def _rows(self, connection: Connection, hold: _Hold) -> frozenset[object]:
        """All rows that belong to an attempt."""
        columns = (
            (metrics, ("key", "step", "value", "time_ms")),
            (artifacts, ("path", "digest")),
            (checkpoints, ("epoch", "digest")),
            (attempts, ("ended_at", "outcome", "epochs", "last_epoch")),
        )
        return frozenset(
            (table.name, *row)
            for table, names in columns
            for row in connection.execute(
                select(*(table.c[name] for name in names)).where(
                    table.c.study_id == self._study.id,
                    table.c.number == hold.number,
                    table.c.attempt == hold.attempt,
                )
            )
        )


def _is_stopped(pid: int) -> bool:
    """Whether a process exists and is stopped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The process name, in brackets, may contain anything.
    return status.rpartition(")")[2].split()[0] in ("T", "t")
