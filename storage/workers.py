"""Running workers: each sends heartbeats, also while it has no trial."""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from storage.database import Database
from storage.errors import DatabaseError
from storage.records.tables import attempts, metrics, now, of_latest_attempt, studies, trials, workers
from storage.trials.queue import LEASE_SECONDS, WorkerInfo

EPOCH_SECONDS = "train/epoch_seconds"
"""The metric of the duration of an epoch, s."""

RETENTION_SECONDS = 86_400.0
"""How long the row of a worker is kept after its last heartbeat, s."""


@dataclass(frozen=True)
class TrialInHand:
    """A trial that a worker trains now: its study, number, attempt, and the epochs reached and planned."""

    study: str
    number: int
    attempt: int
    epoch: int
    planned_epochs: int | None


@dataclass(frozen=True)
class LiveWorker:
    """A worker whose last heartbeat is recent.

    Attributes
    ----------
    gpu
        The device that it is pinned to, as in ``CUDA_VISIBLE_DEVICES``; None if it is not pinned.
    study
        The study that it works on; None if it serves all studies.
    started, renewed
        Seconds since 1970-01-01 UTC.
    silent
        Seconds since its last heartbeat.
    structures_per_second
        Speed of all its trials together, by the last epoch of each; None before the first epoch has ended.
    """

    name: str
    host: str
    pid: int
    device: str
    gpu: str | None
    study: str | None
    started: float
    renewed: float
    silent: float
    trials: tuple[TrialInHand, ...]
    structures_per_second: float | None


class WorkerHeartbeat:
    """Context manager that sends a worker's heartbeats from its own thread while the block lasts.

    The work continues while the database is unavailable.
    """

    def __init__(
        self,
        database: Database,
        worker: WorkerInfo,
        study: str | None,
        gpu: str | None = None,
        seconds: float = LEASE_SECONDS,
    ) -> None:
        self._database = database
        self._values = {"worker": asdict(worker), "study": study, "gpu": gpu}
        self._seconds = seconds
        self._token = uuid.uuid4().hex
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="sign-of-life", daemon=True)

    def __enter__(self) -> WorkerHeartbeat:
        with self._database.writing() as connection:
            connection.execute(delete(workers).where(workers.c.renewed_at < now() - RETENTION_SECONDS))
            connection.execute(
                insert(workers).values(
                    token=self._token,
                    **self._values,
                    started_at=now(),
                    renewed_at=now(),
                    lease_until=now() + self._seconds,
                )
            )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            with self._database.writing() as connection:
                connection.execute(delete(workers).where(workers.c.token == self._token))
        except DatabaseError:
            pass  # the row expires by itself

    @property
    def silent(self) -> float:
        """Seconds since the last heartbeat that the database received."""
        return time.monotonic() - self._renewed

    def set_structures(self, count: int) -> None:
        """Record how many structures an epoch has."""
        self._renew(structures=count)

    def _keep(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            try:
                self._renew()
            except DatabaseError:
                continue  # the next heartbeat tries again

    def _renew(self, **values: Any) -> None:
        row = update(workers).where(workers.c.token == self._token)
        with self._database.writing() as connection:
            connection.execute(row.values(renewed_at=now(), lease_until=now() + self._seconds, **values))
        self._renewed = time.monotonic()


def live_workers(database: Database) -> list[LiveWorker]:
    """All running workers, sorted by name."""
    silent = (now() - workers.c.renewed_at).label("silent")
    query = select(workers, silent).where(workers.c.lease_until >= now())
    with database.reading() as connection:
        in_hand = _trials_in_hand(connection)
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        key = (row.worker["name"], row.worker["host"], row.worker["pid"])
        pairs = in_hand.get(key, [])
        speeds = [row.structures / seconds for _, seconds in pairs if row.structures and seconds]
        found.append(
            LiveWorker(
                name=row.worker["name"],
                host=row.worker["host"],
                pid=row.worker["pid"],
                device=row.worker["device"],
                gpu=row.gpu,
                study=row.study,
                started=row.started_at,
                renewed=row.renewed_at,
                silent=max(0.0, row.silent),
                trials=tuple(trial for trial, _ in pairs),
                structures_per_second=sum(speeds) if speeds else None,
            )
        )
    return sorted(found, key=lambda worker: (worker.name, worker.started))


def _trials_in_hand(
    connection: Connection,
) -> dict[tuple[str, str, int], list[tuple[TrialInHand, float | None]]]:
    """Maps name, host and process id of a worker to its trials, each with the seconds of its last epoch."""
    every = attempts.alias("every")
    reached = (
        select(func.max(every.c.last_epoch))
        .where(every.c.study_id == trials.c.study_id, every.c.number == trials.c.number)
        .scalar_subquery()
    )
    seconds = (
        select(metrics.c.value)
        .where(
            metrics.c.study_id == trials.c.study_id,
            metrics.c.number == trials.c.number,
            metrics.c.key == EPOCH_SECONDS,
        )
        .order_by(metrics.c.step.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(
            studies.c.name,
            trials.c.number,
            trials.c.planned_epochs,
            attempts.c.attempt,
            attempts.c.worker,
            reached.label("reached"),
            seconds.label("seconds"),
        )
        .join(trials, trials.c.study_id == studies.c.id)
        .join(attempts, of_latest_attempt)
        .where(attempts.c.ended_at.is_(None), attempts.c.lease_until >= now())
        .order_by(studies.c.name, trials.c.number)
    )
    found = defaultdict(list)
    for row in connection.execute(query):
        trial = TrialInHand(row.name, row.number, row.attempt, row.reached, row.planned_epochs)
        key = (row.worker["name"], row.worker["host"], row.worker["pid"])
        found[key].append((trial, row.seconds))
    return found
