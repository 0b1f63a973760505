"""Workers that sleep past their lease, and are woken when another one has their trial."""

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
"""A worker is woken by then also if nobody was free to take its trial, s. That counts nothing."""

DRAIN_SECONDS: Final = 1.0
"""By then what a worker had asked of the database when it was stopped is done, s."""

EXPIRED: Final = "expired"
"""The outcome of an attempt whose worker fell silent. It is given by the one who takes the trial over."""


@dataclass(frozen=True)
class _Hold:
    """An attempt at a trial."""

    number: int
    attempt: int


@dataclass
class _PausedWorker:
    pid: int
    since: float
    hold: _Hold | None = None  # what it sleeps on, once that is known


class PausedWorkers:
    """Stops workers, and counts those that were woken after their trial had been taken over.

    Attributes
    ----------
    overtaken : so many were
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
        """Let a worker sleep."""
        self._fleet.send(pid, signal.SIGSTOP)
        self._paused.append(_PausedWorker(pid, time.monotonic()))

    def wake(self) -> None:
        """Wake those whose trial another worker has by now. It can be repeated if the database is away."""
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
        """How many, since last asked, had ended, or were woken without that anybody had their trial."""
        missed, self._missed = self._missed, 0
        return missed

    def written_since(self) -> int:
        """Rows of the record that overtaken workers have added or changed since they were woken."""
        with self._study.database.reading() as connection:
            return sum(len(self._rows(connection, hold) - before) for hold, before in self._written.items())

    def _outcome(self, connection: Connection, paused: _PausedWorker) -> str | None:
        """What has become of the attempt that a worker sleeps on; None: it lasts."""
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
                return "none"  # it fell asleep between two trials
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
        """All that the record has of an attempt."""
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
    """Whether a process lives, and is stopped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # Its name, in brackets, may hold anything.
    return status.rpartition(")")[2].split()[0] in ("T", "t")
